//! What one request cannot do to others, and what ends a request for its own good.

mod support;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use steering_proto::{
    HookPoint, Site,
    generate::Priority,
    intervention::{Edit, Intervention, Positions, StrengthUnit},
    payload::Vector,
};
use steering_worker::{
    engine::{
        EngineConfig, EngineHandle, Event, Failure, FinishReason, Outcome, SamplingPlan,
        SubmitError, Task,
    },
    model::Model,
    text::TextCodec,
};
use support::{
    Fixture, f32_on_cpu,
    requests::{Random, Reader, Request, config, program, with_engine},
};

const PROMPT: usize = 10;
const NEW: usize = 50;

fn load() -> (Arc<Model>, Arc<TextCodec>) {
    let fixture = Fixture::load("gemma2");
    let model = fixture.model("model/config.json", &f32_on_cpu());
    let codec = TextCodec::from_hf_folder(&fixture.dir.join("model")).expect("tokenizer");
    (Arc::new(model), Arc::new(codec))
}

/// Writes until it has as many tokens as it may.
fn request(model: &Model, variants: usize, max_new_tokens: usize) -> Request {
    let mut random = Random::new(1, model);
    let sampling = SamplingPlan {
        max_new_tokens,
        ..random.sampling()
    };
    Request {
        prompt: random.tokens(PROMPT).into(),
        variants: vec![program(&[]); variants],
        task: Task::Generate {
            sampling: Arc::new(sampling),
            kl_divergence: false,
        },
    }
}

fn last_event(mut outcome: Outcome) -> (Option<Event>, Option<Failure>) {
    let mut last = None;
    while let Some(event) = outcome.events.blocking_recv() {
        last = Some(event);
    }
    (last, outcome.failure().cloned())
}

fn wait_for_running(engine: &EngineHandle, sequences: usize) {
    let began = Instant::now();
    while engine.load().running_sequences != sequences {
        assert!(began.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_does_not_read_gives_slots_back_in_the_end() {
    let (model, codec) = load();
    let max_parked = Duration::from_millis(200);
    let config = EngineConfig {
        max_parked,
        ..config(1, 512, 0)
    };
    with_engine(&model, &codec, config, |engine| {
        let unread = request(&model, 1, NEW).submit(engine);
        // Waits for the only slot.
        let answer = request(&model, 1, 2).ask(engine, Reader::Eager);
        assert!(answer.is_some());
        let (_, failure) = last_event(unread);
        assert_eq!(failure, Some(Failure::SlowReader(max_parked)));
    });
}

#[test]
fn many_variants_leave_memory_to_others() {
    let (model, codec) = load();
    let config = EngineConfig {
        kv_cache_bytes: 4 * model.kv_bytes(PROMPT + NEW),
        ..config(16, 512, 0)
    };
    with_engine(&model, &codec, config, |engine| {
        // Nobody reads it: whatever it was given, it keeps.
        let unread = request(&model, 8, NEW).submit(engine);
        wait_for_running(engine, 3);
        let answer = request(&model, 1, NEW).ask(engine, Reader::Eager);
        assert!(answer.is_some());
        wait_for_running(engine, 3);
        drop(unread);
    });
}

#[test]
fn bulk_work_does_not_fill_the_queue() {
    let (model, codec) = load();
    let config = EngineConfig {
        max_queued: 8,
        ..config(1, 512, 0)
    };
    with_engine(&model, &codec, config, |engine| {
        let request = request(&model, 1, NEW);
        let mut unread = Vec::new();
        let full = loop {
            match request.submit_as(engine, Priority::Batch) {
                Ok(outcome) => unread.push(outcome),
                // The first may have been on its way to its slot still.
                Err(_) if engine.load().running_sequences == 0 => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(full) => break full,
            }
        };
        assert_eq!(full, SubmitError::Full { waiting: 6 });
        for _ in 0..2 {
            let outcome = request.submit_as(engine, Priority::Interactive);
            unread.push(outcome.expect("room is left"));
        }
        let refused = request.submit_as(engine, Priority::Interactive);
        assert_eq!(refused.err(), Some(SubmitError::Full { waiting: 8 }));
    });
}

#[test]
fn texts_to_capture_leave_room_to_other_bulk_work() {
    let (model, codec) = load();
    let config = EngineConfig {
        max_queued: 8,
        ..config(1, 512, 0)
    };
    with_engine(&model, &codec, config, |engine| {
        let request = request(&model, 1, NEW);
        // Keeps the only slot.
        let unread = request.submit(engine);
        wait_for_running(engine, 1);
        let capture = Request {
            task: Task::Capture,
            ..request.clone()
        };
        let offer = || capture.submit_as(engine, Priority::Batch);
        let waiting: Vec<_> = std::iter::from_fn(|| offer().ok()).collect();
        assert_eq!(waiting.len(), 4);
        let bulk = request.submit_as(engine, Priority::Batch);
        assert!(bulk.is_ok(), "{bulk:?}");
        drop(unread);
    });
}

/// An edit that leaves no finite number.
fn overwhelming(model: &Model) -> Intervention {
    Intervention {
        hook: HookPoint {
            layer: 1,
            site: Site::ResidPost,
        },
        edit: Edit::Add {
            vector: Arc::new(Vector {
                name: "v".to_owned(),
                values: vec![10.0; model.config().d_model],
            }),
            strength: 3e38,
            unit: StrengthUnit::Raw,
        },
        positions: Positions::all(),
        gate: None,
    }
}

#[test]
fn what_is_not_finite_ends_its_variant_and_no_other() {
    let (model, codec) = load();
    let mut request = request(&model, 2, 5);
    request.variants[0] = program(&[overwhelming(&model)]);
    with_engine(&model, &codec, config(4, 512, 0), |engine| {
        let mut outcome = request.submit(engine);
        let mut reasons = [None; 2];
        while let Some(event) = outcome.events.blocking_recv() {
            match event {
                Event::Finished(finish) => reasons[finish.variant] = Some(finish.reason),
                Event::Token(token) => assert_eq!(token.variant, 1),
                other => panic!("{other:?}"),
            }
        }
        let expected = [FinishReason::NotFinite, FinishReason::MaxNewTokens];
        assert_eq!(reasons, expected.map(Some));
        request.task = Task::Score {
            continuation: Arc::new([1, 2, 3]),
        };
        let (_, failure) = last_event(request.submit(engine));
        assert_eq!(failure, Some(Failure::NotFinite(0)));
    });
}
