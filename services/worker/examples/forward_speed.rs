//! Tokens per second of a model's forward pass, greedy, without the services around
//! it; one JSON object a line. [`benches/compare.py`] sets it beside llama.cpp.
//!
//! `cargo run --release --example forward_speed -- MODEL [REPETITIONS [ONLY [DEVICE]]]`, where MODEL
//! is a GGUF file or a folder of Hugging Face's, ONLY is the start of a line's name, and DEVICE is
//! `cpu` (then in f32) or `cuda` (in bf16).
//!
//! [`benches/compare.py`]: ../benches/compare.py

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use candle_core::{Device, Error, Result, quantized::gguf_file::Content};
use steering_proto::{
    HookPoint, Site,
    intervention::{Edit, FeatureOperation, Intervention, Positions, Token},
    payload::{Activation, InputNormalization, SaeFeature},
};
use steering_worker::{
    model::{
        Batch, Chunk, KvCache, LoadOptions, Logits, Model, Precision, Scores, argmax,
        compute_on_this_thread, cuda_device,
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
    let device = match arguments.next().as_deref() {
        None | Some("cpu") => Device::Cpu,
        Some("cuda") => cuda_device(0)?,
        Some(other) => candle_core::bail!("{other}: give cpu or cuda"),
    };
    let began = Instant::now();
    let model = load(Path::new(&path), &device)?;
    print("load_s", vec![began.elapsed().as_secs_f64()]);
    let works = [
        Work::prompt("prompt_128", 128),
        Work::prompt("prompt_512", 512),
        Work::decode("decode_1", 1, 0),
        Work::decode("decode_1_clamp", 1, 1),
        Work::decode("decode_4_clamps", 4, 4),
        Work::decode("decode_16_clamps", 16, 16),
    ];
    // More than a CPU is for.
    let many = [
        Work::decode("decode_8", 8, 0),
        Work::decode("decode_8_clamps", 8, 8),
        Work::decode("decode_64", 64, 0),
        Work::decode("decode_64_one_clamp", 64, 1),
        Work::decode("decode_64_clamps", 64, 64),
        Work::decode("decode_256", 256, 0),
        Work::decode("decode_256_one_clamp", 256, 1),
        Work::decode("decode_256_clamps", 256, 256),
    ];
    let more = if device.is_cpu() { &[] } else { &many[..] };
    for work in works.iter().chain(more) {
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

fn load(path: &Path, device: &Device) -> Result<Model> {
    let options = LoadOptions {
        precision: match device.is_cpu() {
            true => Precision::F32,
            false => Precision::Bf16,
        },
        quantize: None,
        dequantize: !device.is_cpu(),
        map: true,
        device: device.clone(),
    };
    if path.is_dir() {
        let files = path.read_dir()?.map(|entry| Ok(entry?.path()));
        let mut weights = files.collect::<Result<Vec<PathBuf>>>()?;
        weights.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        weights.sort();
        return Model::load_hf(&path.join("config.json"), &weights, &options).map_err(Error::wrap);
    }
    let content = Content::read(&mut BufReader::new(File::open(path)?))?;
    Model::load_gguf(path, content, &options).map_err(Error::wrap)
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
    /// Features that are clamped, each in as many sequences as any other.
    clamps: usize,
}

impl Work {
    fn prompt(name: &'static str, prompt: usize) -> Self {
        Self {
            name,
            prompt,
            sequences: 1,
            steps: 0,
            clamps: 0,
        }
    }

    fn decode(name: &'static str, sequences: usize, clamps: usize) -> Self {
        Self {
            name,
            prompt: 32,
            sequences,
            steps: 48,
            clamps,
        }
    }

    /// Tokens per second.
    fn rate(&self, model: &Model) -> Result<f64> {
        let mut room = (model.new_cache(self.sequences), Scores::default());
        let programs = (0..self.clamps.max(1))
            .map(|seed| self.program(model, seed))
            .collect::<Result<Vec<_>>>()?;
        let programs: Vec<_> = programs.iter().cycle().take(self.sequences).collect();
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
        let interventions = match self.clamps {
            0 => Vec::new(),
            _ => vec![clamp],
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
    (cache, scores): &mut (KvCache, Scores),
    programs: &[&Program],
    start: usize,
    tokens: &[Vec<u32>],
) -> Result<Vec<u32>> {
    let chunk = |(slot, tokens): (usize, &Vec<u32>)| Chunk {
        slot,
        start,
        tokens: tokens.clone(),
        logits: match model.prefers_top() {
            true => Logits::Top(1),
            false => Logits::Last,
        },
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
    model.forward(&batch, cache, &mut hook, scores)?;
    if model.prefers_top() {
        let best = scores.top.iter().map(|top| top.candidates[0].0);
        return Ok(best.collect());
    }
    let rows = scores.logits.chunks_exact(model.config().vocab_size);
    Ok(rows.map(argmax).collect())
}
