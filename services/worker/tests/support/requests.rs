//! Random requests, and what an engine answers to them.

use std::{sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use steering_proto::{
    HookPoint, Site,
    generate::{Priority, Telemetry},
    intervention::{Edit, FeatureOperation, Intervention, Positions, Scope, StrengthUnit},
    payload::{Activation, InputNormalization, SaeFeature, Vector},
    readout::{Comparison, Condition, Gate, GateMode, Probe, Readout, Source},
};
use steering_worker::{
    engine::{
        self, EngineConfig, EngineHandle, Event, Finish, Job, SamplingPlan, Strategy, SubmitError,
        Task, TokenEvent,
    },
    model::Model,
    steering::{Program, ProgramSpec},
    text::TextCodec,
};

/// A request that can be sent any number of times.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) variants: Vec<Arc<Program>>,
    pub(crate) task: Task,
}

/// Everything that was said to a request, per variant, bit for bit.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) variants: Vec<Vec<String>>,
}

/// What a test may vary about how a request is served.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reader {
    /// Reads all there is.
    Eager,
    /// Stops for a while after each event.
    Slow,
    /// Goes away after this many events.
    Leaves(usize),
}

pub(crate) fn config(
    max_sequences: usize,
    chunk: usize,
    prefix_cache_bytes: usize,
) -> EngineConfig {
    EngineConfig {
        max_sequences,
        max_queued: 1024,
        prompt_tokens_per_step: chunk,
        max_stall: 0.25,
        max_parked: Duration::from_secs(60),
        context_length: 64,
        kv_cache_bytes: 1 << 30,
        prefix_cache_bytes,
    }
}

impl Request {
    pub(crate) fn submit(&self, engine: &EngineHandle) -> engine::Outcome {
        self.submit_as(engine, Priority::Interactive)
            .expect("the queue has room")
    }

    pub(crate) fn submit_as(
        &self,
        engine: &EngineHandle,
        priority: Priority,
    ) -> Result<engine::Outcome, SubmitError> {
        let (link, outcome) = engine::link(self.variants.len(), None);
        let job = Job {
            prompt: self.prompt.clone(),
            task: self.task.clone(),
            variants: self.variants.clone(),
            priority,
            link,
        };
        engine.submit(job)?;
        Ok(outcome)
    }

    /// What an engine says; none if the reader left.
    pub(crate) fn ask(&self, engine: &EngineHandle, reader: Reader) -> Option<Answer> {
        let mut outcome = self.submit(engine);
        let mut variants = vec![Vec::new(); self.variants.len()];
        let mut seen = 0;
        while let Some(event) = outcome.events.blocking_recv() {
            let (variant, said) = describe(&event);
            variants[variant].push(said);
            seen += 1;
            match reader {
                Reader::Eager => {}
                Reader::Slow => std::thread::sleep(Duration::from_micros(300)),
                Reader::Leaves(after) if seen > after => return None,
                Reader::Leaves(_) => {}
            }
        }
        assert_eq!(outcome.failure(), None);
        Some(Answer { variants })
    }
}

/// An event in words that differ if any bit does. How much of a prompt was
/// shared depends on who was there before, and is left out.
fn describe(event: &Event) -> (usize, String) {
    match event {
        Event::Token(TokenEvent {
            variant,
            choice,
            text,
            readings,
            kl_divergence,
        }) => {
            let kl = kl_divergence.map(f32::to_bits);
            let logprob = choice.logprob.to_bits();
            let said = format!("{} {logprob} {text:?} {readings:?} {kl:?}", choice.token_id);
            (*variant, said)
        }
        Event::Finished(Finish {
            variant,
            reason,
            text,
            generated,
            shared_prompt_tokens: _,
            tallies,
            readings,
        }) => (
            *variant,
            format!("{reason:?} {text:?} {generated} {tallies:?} {readings:?}"),
        ),
        Event::Scored(scored) => {
            let bits: Vec<u32> = scored.logprobs.iter().map(|l| l.to_bits()).collect();
            (scored.variant, format!("{bits:?} {:?}", scored.tallies))
        }
        Event::Captured(collected) => (0, format!("{collected:?}")),
    }
}

/// Draws requests for a model.
pub(crate) struct Random<'a> {
    pub(crate) rng: ChaCha8Rng,
    model: &'a Model,
    /// Beginnings that several prompts have.
    beginnings: Vec<Vec<u32>>,
    /// Vectors that several requests use.
    vectors: Vec<Arc<Vector>>,
}

impl<'a> Random<'a> {
    pub(crate) fn new(seed: u64, model: &'a Model) -> Self {
        let mut random = Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            model,
            beginnings: Vec::new(),
            vectors: Vec::new(),
        };
        random.beginnings = (0..3).map(|n| random.tokens(10 + 5 * n)).collect();
        random.vectors = (0..4).map(|_| random.vector()).collect();
        random
    }

    pub(crate) fn tokens(&mut self, n: usize) -> Vec<u32> {
        let vocab = self.model.config().vocab_size as u32;
        (0..n).map(|_| self.rng.random_range(0..vocab)).collect()
    }

    fn vector(&mut self) -> Arc<Vector> {
        let width = self.model.config().d_model;
        Arc::new(Vector {
            name: "v".to_owned(),
            values: (0..width)
                .map(|_| self.rng.random_range(-1.0..1.0))
                .collect(),
        })
    }

    fn hook(&mut self) -> HookPoint {
        let sites = [Site::ResidPre, Site::AttnOut, Site::MlpOut, Site::ResidPost];
        HookPoint {
            layer: self.rng.random_range(0..self.model.config().layers.len()),
            site: *sites.choose(&mut self.rng).expect("not empty"),
        }
    }

    fn shared_vector(&mut self) -> Arc<Vector> {
        self.vectors
            .choose(&mut self.rng)
            .expect("not empty")
            .clone()
    }

    fn feature(&mut self, hook: HookPoint) -> Arc<SaeFeature> {
        Arc::new(SaeFeature {
            sae_id: String::new(),
            feature_index: self.rng.random_range(0..1000),
            label: String::new(),
            model_id: String::new(),
            hook,
            encoder: self.shared_vector().values.clone(),
            encoder_bias: 0.1,
            decoder: self.vector().values.clone(),
            activation: Activation::JumpRelu { threshold: 0.2 },
            input_normalization: InputNormalization::None,
        })
    }

    fn readout(&mut self, hook: HookPoint) -> Readout {
        let source = if self.rng.random_bool(0.5) {
            Source::Feature(self.feature(hook))
        } else {
            Source::Direction {
                vector: self.shared_vector(),
                bias: 0.0,
            }
        };
        Readout { hook, source }
    }

    fn condition(&mut self, hook: HookPoint) -> Condition {
        Condition {
            readout: self.readout(hook),
            comparison: Comparison::Above(self.rng.random_range(-1.0..3.0)),
        }
    }

    fn gate(&mut self, edit: HookPoint) -> Gate {
        let modes = [GateMode::While, GateMode::Once, GateMode::ForTokens(3)];
        let mut hook = edit;
        hook.layer = self.rng.random_range(0..=edit.layer);
        Gate {
            condition: self.condition(hook),
            mode: *modes.choose(&mut self.rng).expect("not empty"),
        }
    }

    pub(crate) fn intervention(&mut self) -> Intervention {
        let hook = self.hook();
        let scopes = [Scope::All, Scope::Prompt, Scope::Generated];
        let scope = *scopes.choose(&mut self.rng).expect("not empty");
        let edit = match self.rng.random_range(0..3) {
            0 => Edit::Feature {
                feature: self.feature(hook),
                operation: FeatureOperation::Set(self.rng.random_range(0.0..8.0)),
            },
            1 => Edit::Add {
                vector: self.shared_vector(),
                strength: self.rng.random_range(-4.0..4.0),
                unit: StrengthUnit::Raw,
            },
            _ => Edit::Ablate {
                vector: self.shared_vector(),
            },
        };
        let gate = self.rng.random_bool(0.3).then(|| self.gate(hook));
        Intervention {
            hook,
            edit,
            positions: Positions {
                scope,
                start: if self.rng.random_bool(0.3) { 4 } else { 0 },
                ..Positions::all()
            },
            gate,
        }
    }

    pub(crate) fn request(&mut self) -> Request {
        let mut prompt = self.beginnings.choose(&mut self.rng).expect("some").clone();
        let own = self.rng.random_range(0..12);
        prompt.extend(self.tokens(own));
        let task = self.task();
        let stops = matches!(task, Task::Generate { .. }) && self.rng.random_bool(0.3);
        let n_probes = self.rng.random_range(0..3);
        let probes: Vec<Probe> = (0..n_probes)
            .map(|i| {
                let hook = self.hook();
                Probe {
                    name: format!("probe {i}"),
                    readout: self.readout(hook),
                }
            })
            .collect();
        let telemetry = Telemetry {
            edit_norms: self.rng.random_bool(0.3),
            kl_divergence: false, // the task says so
            prompt_readings: self.rng.random_bool(0.2),
        };
        let n_variants = self.rng.random_range(1..5);
        let variants = (0..n_variants).map(|_| {
            let n = self.rng.random_range(0..4);
            let mut interventions: Vec<_> = (0..n).map(|_| self.intervention()).collect();
            if self.rng.random_bool(0.3) {
                let whole = self.intervention();
                interventions.extend(in_pieces(&whole, self.rng.random_range(1..12)));
            }
            let stop_when: Vec<_> = (0..usize::from(stops))
                .map(|_| {
                    let hook = self.hook();
                    self.condition(hook)
                })
                .collect();
            let spec = ProgramSpec {
                interventions: &interventions,
                stop_when: &stop_when,
                probes: &probes,
                telemetry,
            };
            Arc::new(Program::compile(&spec).expect("compiles"))
        });
        Request {
            prompt: prompt.into(),
            variants: variants.collect(),
            task,
        }
    }

    fn task(&mut self) -> Task {
        if self.rng.random_bool(0.15) {
            let n = self.rng.random_range(1..9);
            return Task::Score {
                continuation: self.tokens(n).into(),
            };
        }
        Task::Generate {
            sampling: Arc::new(self.sampling()),
            kl_divergence: self.rng.random_bool(0.3),
        }
    }

    pub(crate) fn sampling(&mut self) -> SamplingPlan {
        let strategy = if self.rng.random_bool(0.5) {
            Strategy::Greedy
        } else {
            Strategy::Sample {
                temperature: 1.0,
                top_k: 0,
                top_p: 0.95,
                min_p: 0.0,
            }
        };
        SamplingPlan {
            max_new_tokens: self.rng.random_range(1..14),
            strategy,
            repetition_penalty: 1.0,
            seed: self.rng.random(),
            stop: Vec::new(),
            top_logprobs: 0,
            ignore_eos: true,
            eos_token_ids: Vec::new(),
        }
    }
}

/// Runs work against a fresh engine, and waits until the engine has ended.
pub(crate) fn with_engine<T>(
    model: &Arc<Model>,
    codec: &Arc<TextCodec>,
    config: EngineConfig,
    work: impl FnOnce(&EngineHandle) -> T,
) -> T {
    let (handle, thread) = engine::start(model.clone(), codec.clone(), config).expect("starts");
    let result = work(&handle);
    drop(handle);
    thread.join().expect("the engine ends in order");
    result
}

/// A variant that edits and reports nothing.
pub(crate) fn program(interventions: &[Intervention]) -> Arc<Program> {
    let spec = ProgramSpec {
        interventions,
        ..ProgramSpec::default()
    };
    Arc::new(Program::compile(&spec).expect("compiles"))
}

/// The same edit as two interventions: before a position and from it on.
pub(crate) fn in_pieces(whole: &Intervention, at: u32) -> [Intervention; 2] {
    let [mut before, mut behind] = [whole.clone(), whole.clone()];
    before.positions.end = Some(before.positions.start.max(at));
    behind.positions.start = behind.positions.start.max(at);
    [before, behind]
}
