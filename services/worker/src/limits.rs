//! What one request may ask for.

use steering_proto::v1;
use steering_service::Operation;

/// Bounds of one request; `GetModel` reports them.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits of one request")]
pub struct RequestLimits {
    /// Tokens of a prompt [default: the context length].
    #[arg(long, env = "STEER_WORKER_MAX_PROMPT_TOKENS", value_name = "N", value_parser = positive())]
    pub max_prompt_tokens: Option<u32>,

    /// Tokens generated per variant [default: the context length].
    #[arg(long, env = "STEER_WORKER_MAX_NEW_TOKENS", value_name = "N", value_parser = positive())]
    pub max_new_tokens: Option<u32>,

    /// Variants [default: --max-sequences].
    #[arg(long, env = "STEER_WORKER_MAX_VARIANTS", value_name = "N", value_parser = positive())]
    pub max_variants: Option<u32>,

    /// Interventions per variant.
    #[arg(long, env = "STEER_WORKER_MAX_INTERVENTIONS", value_name = "N", default_value_t = 64,
        value_parser = positive())]
    pub max_interventions: u32,

    /// Rows of the payload tables: features and vectors together.
    #[arg(long, env = "STEER_WORKER_MAX_PAYLOADS", value_name = "N", default_value_t = 256,
        value_parser = positive())]
    pub max_payloads: u32,

    /// Probes.
    #[arg(long, env = "STEER_WORKER_MAX_PROBES", value_name = "N", default_value_t = 64,
        value_parser = positive())]
    pub max_probes: u32,

    /// Stop conditions per variant.
    #[arg(long, env = "STEER_WORKER_MAX_STOP_CONDITIONS", value_name = "N", default_value_t = 16,
        value_parser = positive())]
    pub max_stop_conditions: u32,

    /// Size of a request's message: 32 MiB are 256 payloads of 16,384 components.
    #[arg(long, env = "STEER_WORKER_MAX_REQUEST_MIB", value_name = "MIB", default_value_t = 32,
        value_parser = mebibytes())]
    pub max_request_mib: u32,

    /// Size of a response's message.
    #[arg(long, env = "STEER_WORKER_MAX_RESPONSE_MIB", value_name = "MIB", default_value_t = 32,
        value_parser = mebibytes())]
    pub max_response_mib: u32,
}

/// What else bounds a request.
#[derive(Debug)]
pub(crate) struct Bounds<'a> {
    pub(crate) operation: &'a Operation,
    pub(crate) context_length: u32,
    pub(crate) max_sequences: u32,
    pub(crate) max_queued: u32,
    pub(crate) max_parked: u32,
    pub(crate) kv_cache_bytes: u64,
    pub(crate) kv_bytes_per_token: u64,
}

impl RequestLimits {
    pub(crate) fn request_bytes(&self) -> usize {
        (self.max_request_mib as usize) << 20
    }

    pub(crate) fn response_bytes(&self) -> usize {
        (self.max_response_mib as usize) << 20
    }

    /// All limits in effect. None is larger than what bounds it anyway.
    pub(crate) fn in_effect(&self, bounds: &Bounds<'_>) -> v1::Limits {
        let within = |wanted: Option<u32>, most: u32| wanted.unwrap_or(most).min(most);
        let context = bounds.context_length;
        v1::Limits {
            max_variants: within(self.max_variants, bounds.max_sequences),
            max_interventions: self.max_interventions,
            max_payloads: self.max_payloads,
            max_new_tokens: within(self.max_new_tokens, context),
            max_request_bytes: self.request_bytes() as u64,
            max_sequences: bounds.max_sequences,
            max_queued_requests: bounds.max_queued,
            max_probes: self.max_probes,
            max_stop_conditions: self.max_stop_conditions,
            kv_cache_bytes: bounds.kv_cache_bytes,
            kv_bytes_per_token: bounds.kv_bytes_per_token,
            // One token of the context is left to be generated.
            max_prompt_tokens: within(self.max_prompt_tokens, context - 1),
            max_response_bytes: self.response_bytes() as u64,
            max_streams_per_connection: bounds.operation.max_streams,
            max_parked_seconds: bounds.max_parked,
            max_request_seconds: bounds.operation.max_request_time.unwrap_or(0),
        }
    }
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 20)
}

fn mebibytes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1024)
}
