//! Command line and environment.

use std::net::SocketAddr;

use clap::Parser;
use steering_service::{Operation, Security};

use crate::{
    limits::RequestLimits,
    model::{Precision, Quantization},
};

/// Serves one language model with per-request steering over gRPC.
#[derive(Debug, Clone, Parser)]
#[command(name = "steer-worker", version, after_help = EXAMPLES)]
pub struct Config {
    /// Model: a folder in Hugging Face layout, a .gguf file, or a hub id (owner/name or
    /// owner/name@revision).
    #[arg(long, env = "STEER_WORKER_MODEL", value_name = "PATH|HUB_ID")]
    pub model: String,

    /// Address to listen on.
    #[arg(long, env = "STEER_WORKER_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,

    /// Type of activations and unquantised weights [default: f32 on CPUs, bf16 on GPUs].
    #[arg(long, env = "STEER_WORKER_DTYPE", value_name = "f32|bf16|f16")]
    pub dtype: Option<Precision>,

    /// Quantise weights on load: q8_0, q6k, q5k, q5_1, q5_0, q4k, q4_1 or q4_0.
    /// Embeddings and the output head become q8_0.
    #[arg(long, env = "STEER_WORKER_QUANTIZE", value_name = "FORMAT")]
    pub quantize: Option<Quantization>,

    /// Expand quantised weights to --dtype: products without rounding of
    /// activations, for more memory.
    #[arg(long, env = "STEER_WORKER_DEQUANTIZE")]
    pub dequantize: bool,

    /// Copy weights to memory rather than map their files: for files that may
    /// change while they are used, or lie on a slow network disk.
    #[arg(long, env = "STEER_WORKER_NO_MMAP")]
    pub no_mmap: bool,

    /// Where to run: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, env = "STEER_WORKER_DEVICE", default_value = "auto")]
    pub device: String,

    /// Longest prompt + generation, in tokens [default: the model's, at most 8192].
    #[arg(long, env = "STEER_WORKER_CONTEXT_LENGTH", value_name = "TOKENS")]
    pub context_length: Option<usize>,

    /// Sequences decoded at the same time.
    #[arg(long, env = "STEER_WORKER_MAX_SEQUENCES", default_value_t = 64, value_parser = positive())]
    pub max_sequences: u32,

    /// Requests that may wait before more are refused.
    #[arg(long, env = "STEER_WORKER_MAX_QUEUED", default_value_t = 256, value_parser = positive())]
    pub max_queued: u32,

    /// Seconds for which a request keeps its slots while nothing is read of its answer.
    #[arg(long, env = "STEER_WORKER_MAX_PARKED", value_name = "SECONDS", default_value_t = 60,
        value_parser = positive())]
    pub max_parked: u32,

    /// Prompt tokens read in one step, over all sequences.
    #[arg(long, env = "STEER_WORKER_PROMPT_CHUNK", default_value_t = 512, value_parser = positive())]
    pub prompt_chunk: u32,

    /// Share by which a prompt may lengthen the steps of those who are writing:
    /// a long prompt is read in smaller pieces instead.
    #[arg(long, env = "STEER_WORKER_MAX_STALL", default_value_t = 0.2, value_name = "SHARE",
        value_parser = share)]
    pub max_stall: f64,

    /// Memory for keys and values of running sequences, in MiB. A variant's share
    /// is reserved before it starts; until then it waits.
    #[arg(long, env = "STEER_WORKER_KV_CACHE_MIB", default_value_t = 4096, value_parser = mebibytes())]
    pub kv_cache_mib: u32,

    /// Memory for keys and values of prompts that may be read again, in MiB; 0 = none.
    #[arg(long, env = "STEER_WORKER_PREFIX_CACHE_MIB", default_value_t = 256)]
    pub prefix_cache_mib: u32,

    /// Log filter, e.g. info, steering_worker=debug, or info,steer::request=off.
    #[arg(long, env = "STEER_LOG", default_value = "info")]
    pub log: String,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would take it for the program's description
    pub limits: RequestLimits,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub security: Security,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub operation: Operation,
}

const EXAMPLES: &str =
    "Every flag can also be set in a TOML file (--config), as `quantize = \"q4k\"`.

Examples:
  steer-worker --model google/gemma-2-2b-it
  steer-worker --model ./gemma-2-2b-it --quantize q4k --listen 127.0.0.1:50051
  steer-worker --model ./gemma-2-2b-it --listen 0.0.0.0:50051 --api-keys keys.jsonl \\
      --tls-cert tls.crt --tls-key tls.key --health-listen 0.0.0.0:8081
  steer-worker --model ./gemma-3-270m-Q4_K_M.gguf";

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.01..=100.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0.01 to 100".to_owned()),
    }
}

fn mebibytes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 24)
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=65_536)
}
