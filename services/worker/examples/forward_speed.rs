//! Tokens per second of a model's forward pass, greedy, without the services around
//! it; one JSON object a line. [`benches/compare.py`] sets it beside llama.cpp.
//!
//! `cargo run --release --example forward_speed -- MODEL.gguf [REPETITIONS [ONLY]]`, where ONLY
//! is the start of a line's name.
//!
//! [`benches/compare.py`]: ../benches/compare.py

use std::{fs::File, io::BufReader, path::Path, sync::Arc, time::Instant};

use candle_core::{Device, Error, Result, quantized::gguf_file::Content};
use steering_proto::{
    HookPoint, Site,
    intervention::{Edit, FeatureOperation, Intervention, Positions, Token},
    payload::{Activation, InputNormalization, SaeFeature},
};
use steering_worker::{
    model::{
        Batch, Chunk, KvCache, LoadOptions, Logits, Model, Precision, argmax,
        compute_on_this_thread,
    },
    steering::{Participant, Program, ProgramSpec, SteeringState, StepHook},
};

/// The worker's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    compute_on_this_thread();
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or_else(|| Error::Msg("give a GGUF file".to_owned()))?;
    let repetitions = arguments
        .next()
        .map_or(Ok(5), |n| n.parse().map_err(Error::wrap))?;
    let only = arguments.next().unwrap_or_default();
    let began = Instant::now();
    let content = Content::read(&mut BufReader::new(File::open(&path)?))?;
    let options = LoadOptions {
        precision: Precision::F32,
        quantize: None,
        dequantize: false,
        map: true,
        device: Device::Cpu,
    };
    let model = Model::load_gguf(Path::new(&path), content, &options).map_err(Error::wrap)?;
    print("load_s", vec![began.elapsed().as_secs_f64()]);
    for work in [
        Work::prompt("prompt_128", 128),
        Work::prompt("prompt_512", 512),
        Work::decode("decode_1", 1, false),
        Work::decode("decode_1_clamp", 1, true),
        Work::decode("decode_4_clamps", 4, true),
        Work::decode("decode_16_clamps", 16, true),
    ] {
        if !work.name.starts_with(&only) {
            continue;
        }
        work.rate(&model)?;
        let rates = (0..repetitions)
            .map(|_| work.rate(&model))
            .collect::<Result<_>>()?;
        print(work.name, rates);
    }
    Ok(())
}

fn print(name: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let (median, min, max) = (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    );
    let n = values.len();
    println!(
        r#"{{"name": "{name}", "median": {median:.2}, "min": {min:.2}, "max": {max:.2}, "n": {n}}}"#
    );
}

/// What is timed: a prompt, or decoding after one.
struct Work {
    name: &'static str,
    prompt: usize,
    sequences: usize,
    steps: usize,
    /// Whether every sequence has a feature of its own clamped.
    clamped: bool,
}

impl Work {
    fn prompt(name: &'static str, prompt: usize) -> Self {
        Self {
            name,
            prompt,
            sequences: 1,
            steps: 0,
            clamped: false,
        }
    }

    fn decode(name: &'static str, sequences: usize, clamped: bool) -> Self {
        Self {
            name,
            prompt: 32,
            sequences,
            steps: 48,
            clamped,
        }
    }

    /// Tokens per second.
    fn rate(&self, model: &Model) -> Result<f64> {
        let mut room = (model.new_cache(self.sequences), Vec::new());
        let programs = (0..self.sequences)
            .map(|seed| self.program(model, seed))
            .collect::<Result<Vec<_>>>()?;
        let first: Vec<u32> = (0..self.prompt as u32).map(|i| 1000 + 7 * i).collect();
        let began = Instant::now();
        let mut next = step(model, &mut room, &programs, 0, &vec![first; self.sequences])?;
        if self.steps == 0 {
            return Ok(self.prompt as f64 / began.elapsed().as_secs_f64());
        }
        let began = Instant::now();
        for i in 0..self.steps {
            let tokens: Vec<_> = next.iter().map(|&token| vec![token]).collect();
            next = step(model, &mut room, &programs, self.prompt + i, &tokens)?;
        }
        Ok((self.sequences * self.steps) as f64 / began.elapsed().as_secs_f64())
    }

    fn program(&self, model: &Model, seed: usize) -> Result<Program> {
        let config = model.config();
        let hook = HookPoint {
            layer: config.layers.len() / 2,
            site: Site::ResidPost,
        };
        let direction = |seed: usize| -> Vec<f32> {
            (0..config.d_model)
                .map(|i| ((i * 31 + seed * 17) % 64) as f32 / 64.0 - 0.5)
                .collect()
        };
        let feature = SaeFeature {
            sae_id: String::new(),
            feature_index: seed as u32,
            label: String::new(),
            model_id: String::new(),
            hook,
            encoder: direction(2 * seed),
            encoder_bias: 0.0,
            decoder: direction(2 * seed + 1),
            activation: Activation::JumpRelu { threshold: 1.0 },
            input_normalization: InputNormalization::None,
        };
        let clamp = Intervention {
            hook,
            edit: Edit::Feature {
                feature: Arc::new(feature),
                operation: FeatureOperation::Set(50.0),
            },
            positions: Positions::all(),
            gate: None,
        };
        let interventions = if self.clamped {
            vec![clamp]
        } else {
            Vec::new()
        };
        let spec = ProgramSpec {
            interventions: &interventions,
            ..ProgramSpec::default()
        };
        Program::compile(&spec).map_err(|e| Error::Msg(e.to_string()))
    }
}

/// Reads every sequence's tokens and returns its most likely next token.
fn step(
    model: &Model,
    (cache, logits): &mut (KvCache, Vec<f32>),
    programs: &[Program],
    start: usize,
    tokens: &[Vec<u32>],
) -> Result<Vec<u32>> {
    let chunk = |(slot, tokens): (usize, &Vec<u32>)| Chunk {
        slot,
        start,
        tokens: tokens.clone(),
        logits: Logits::Last,
        shared: None,
    };
    let batch = Batch {
        chunks: tokens.iter().enumerate().map(chunk).collect(),
    };
    let mut states: Vec<_> = programs
        .iter()
        .map(|program| SteeringState::new(program, start))
        .collect();
    let participants = programs.iter().zip(&mut states).zip(tokens);
    let participants = participants.map(|((program, state), tokens)| {
        let token = |(position, &id): (u32, &u32)| Token {
            id,
            position,
            generated: tokens.len() == 1,
            special: false,
        };
        let tokens = (start as u32..).zip(tokens).map(token).collect();
        Participant::new(program, state, tokens)
    });
    let mut hook = StepHook::new(participants.collect());
    model.forward(&batch, cache, &mut hook, logits)?;
    let rows = logits.chunks_exact(model.config().vocab_size);
    Ok(rows.map(argmax).collect())
}
