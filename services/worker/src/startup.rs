//! From a command line to a loaded worker.

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use candle_core::Device;
use steering_proto::v1;

use crate::{
    config::Config,
    engine::{self, EngineConfig, GenerationDefaults},
    error::WorkerError,
    limits::Bounds,
    model::{LoadOptions, Model, Precision, cuda_device, read_gguf_header},
    source::{self, ModelFiles, Progress},
    text::TextCodec,
    worker::Worker,
};

/// Longest context served unless asked for: what bounds the cache's memory.
const DEFAULT_CONTEXT_LENGTH: usize = 8192;

/// Loads the model and starts the engine.
pub(crate) fn load(
    config: &Config,
    progress: &dyn Progress,
) -> Result<(Worker, JoinHandle<()>), WorkerError> {
    let began = Instant::now();
    let (device, device_name) = select_device(&config.device)?;
    let precision = config.dtype.unwrap_or(if device.is_cpu() {
        Precision::F32
    } else {
        Precision::Bf16
    });
    let options = LoadOptions {
        precision,
        quantize: config.quantize,
        dequantize: config.dequantize,
        map: !config.no_mmap,
        device,
    };
    let resolved = source::resolve(&config.model, progress)?;
    let (model, codec, defaults) = open(&resolved.files, &options)?;
    let context_length = context_length(config, &model)?;
    let engine_config = EngineConfig {
        max_parked: Duration::from_secs(config.max_parked.into()),
        max_sequences: config.max_sequences as usize,
        max_queued: config.max_queued as usize,
        prompt_tokens_per_step: config.prompt_chunk as usize,
        max_stall: config.max_stall,
        context_length,
        kv_cache_bytes: (config.kv_cache_mib as usize) << 20,
        prefix_cache_bytes: (config.prefix_cache_mib as usize) << 20,
    };
    let eos_token_ids = eos_token_ids(&defaults, &model, &codec);
    let limits = limits(config, context_length, &model);
    let (model, codec) = (Arc::new(model), Arc::new(codec));
    let (engine, thread) = engine::start(model.clone(), codec.clone(), engine_config)?;
    tracing::info!(
        model = resolved.model_id,
        family = model.config().family,
        device = device_name,
        dtype = precision.name(),
        quantization = model.quantization(),
        seconds = began.elapsed().as_secs_f32(),
        "model loaded"
    );
    let worker = Worker {
        model_id: resolved.model_id,
        model,
        codec,
        defaults,
        eos_token_ids,
        context_length,
        device_name,
        limits,
        engine,
    };
    Ok((worker, thread))
}

fn open(
    files: &ModelFiles,
    options: &LoadOptions,
) -> Result<(Model, TextCodec, GenerationDefaults), WorkerError> {
    match files {
        ModelFiles::HfFolder {
            dir,
            weights,
            config,
            generation_config,
        } => {
            let model = Model::load_hf(config, weights, options)?;
            let codec = TextCodec::from_hf_folder(dir)?;
            let defaults = match generation_config {
                None => GenerationDefaults::default(),
                Some(path) => read_defaults(path)?,
            };
            Ok((model, codec, defaults))
        }
        ModelFiles::Gguf { path } => {
            if options.quantize.is_some() {
                let text = "--quantize: a GGUF file is quantised already; leave the flag out";
                return Err(WorkerError::Config(text.to_owned()));
            }
            source::check_gguf(path)?;
            let content = read_gguf_header(path)?;
            let codec = TextCodec::from_gguf(&content.metadata)?;
            let model = Model::load_gguf(path, content, options)?;
            Ok((model, codec, GenerationDefaults::default()))
        }
    }
}

fn read_defaults(path: &Path) -> Result<GenerationDefaults, WorkerError> {
    let json = fs::read_to_string(path)?;
    GenerationDefaults::parse(&json)
        .map_err(|e| WorkerError::Config(format!("{}: {e}", path.display())))
}

/// As transformers: generation_config.json, else config.json. A GGUF file has
/// neither; there the tokenizer names the ends of turns.
fn eos_token_ids(defaults: &GenerationDefaults, model: &Model, codec: &TextCodec) -> Vec<u32> {
    let mut ids = defaults.eos_token_ids();
    if ids.is_empty() {
        ids.clone_from(&model.config().eos_token_ids);
    }
    if ids.is_empty() {
        ids.extend_from_slice(codec.end_token_ids());
    }
    ids
}

fn context_length(config: &Config, model: &Model) -> Result<usize, WorkerError> {
    let own = model.config().context_length;
    match config.context_length {
        None => Ok(own.min(DEFAULT_CONTEXT_LENGTH)),
        Some(wanted) if (2..=own).contains(&wanted) => Ok(wanted),
        Some(wanted) => Err(WorkerError::Config(format!(
            "--context-length: is {wanted}; this model allows 2 to {own}"
        ))),
    }
}

fn limits(config: &Config, context_length: usize, model: &Model) -> v1::Limits {
    config.limits.in_effect(&Bounds {
        operation: &config.operation,
        context_length: context_length as u32,
        max_sequences: config.max_sequences,
        max_queued: config.max_queued,
        max_parked: config.max_parked,
        kv_cache_bytes: u64::from(config.kv_cache_mib) << 20,
        kv_bytes_per_token: model.kv_bytes(context_length).div_ceil(context_length) as u64,
    })
}

fn select_device(name: &str) -> Result<(Device, String), WorkerError> {
    let invalid = || {
        let text = format!("--device: {name:?} is not known; use auto, cpu, cuda, cuda:N or metal");
        WorkerError::Config(text)
    };
    let (kind, ordinal) = match name.split_once(':') {
        None => (name, 0),
        Some((kind, ordinal)) => (kind, ordinal.parse().map_err(|_| invalid())?),
    };
    match kind {
        "cpu" => Ok((Device::Cpu, "cpu".to_owned())),
        "cuda" => Ok((cuda_device(ordinal)?, format!("cuda:{ordinal}"))),
        "metal" => Ok((Device::new_metal(ordinal)?, format!("metal:{ordinal}"))),
        // A CUDA build says so whether or not there is a GPU.
        "auto" if candle_core::utils::cuda_is_available() => select_device("cuda").or_else(|e| {
            tracing::warn!("no GPU can be used, running on the CPU: {e}");
            select_device("cpu")
        }),
        "auto" if candle_core::utils::metal_is_available() => select_device("metal"),
        "auto" => select_device("cpu"),
        _ => Err(invalid()),
    }
}
