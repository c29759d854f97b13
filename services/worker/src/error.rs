//! What can go wrong, and what a client is told about it.

use std::time::Duration;

use steering_proto::Invalid;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    engine::SubmitError,
    model::LoadError,
    source::{GgufCheckError, SourceError},
    text::TextError,
};

/// The worker cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The model's files cannot be found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model's GGUF file is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufCheckError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer cannot be loaded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The command line asks for something impossible.
    #[error("{0}")]
    Config(String),
    /// The server does not start, or failed.
    #[error(transparent)]
    Front(#[from] steering_service::FrontError),
    /// Metrics of the same name.
    #[error("metrics: {0}")]
    Metrics(#[from] steering_service::prometheus::Error),
    /// From the operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// From the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The engine's thread ended by itself.
    #[error("the engine stopped unexpectedly")]
    EngineStopped,
}

/// A request that is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The request asks for something this model does not have.
    #[error("{message}")]
    Precondition {
        reason: &'static str,
        message: String,
    },
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the deadline passed before the request was done; its work has been dropped")]
    Deadline,
    #[error(
        "nothing was read of the answer for {} s; its work has been dropped (--max-parked)",
        .0.as_secs()
    )]
    SlowReader(Duration),
    #[error("internal error: {0}")]
    Internal(String),
}

impl RequestError {
    /// The same, one level further down: `prefix.field`.
    pub(crate) fn within(self, prefix: &str) -> Self {
        match self {
            Self::Invalid(invalid) => invalid.within(prefix).into(),
            other => other,
        }
    }
}

/// Domain of `ErrorInfo` details.
const DOMAIN: &str = "worker.steering.v1";
/// Why most requests are refused under overload.
pub(crate) const QUEUE_FULL: &str = "QUEUE_FULL";
/// When a refused client may try again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        let mut details = ErrorDetails::new();
        match error {
            RequestError::Invalid(invalid) => invalid.into(),
            RequestError::Precondition { reason, .. } => {
                details.set_error_info(reason, DOMAIN, []);
                Self::with_error_details(Code::FailedPrecondition, message, details)
            }
            RequestError::Deadline => Self::deadline_exceeded(message),
            RequestError::SlowReader(_) => {
                details.set_error_info("SLOW_READER", DOMAIN, []);
                Self::with_error_details(Code::Aborted, message, details)
            }
            RequestError::Submit(SubmitError::Full { .. }) => {
                details.set_error_info(QUEUE_FULL, DOMAIN, []);
                details.set_retry_info(Some(RETRY_AFTER));
                Self::with_error_details(Code::ResourceExhausted, message, details)
            }
            RequestError::Submit(SubmitError::Stopped) => {
                details.set_error_info("STOPPING", DOMAIN, []);
                details.set_retry_info(Some(RETRY_AFTER));
                Self::with_error_details(Code::Unavailable, message, details)
            }
            RequestError::Internal(_) => Self::internal(message),
        }
    }
}

/// What a text failure means to a client.
impl From<TextError> for RequestError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::NoChatTemplate => Self::Precondition {
                reason: "NO_CHAT_TEMPLATE",
                message: "this model has no chat template; send raw text instead of a chat prompt"
                    .to_owned(),
            },
            TextError::TemplateRaised(_) | TextError::TemplateTooCostly => {
                Self::Invalid(Invalid::field("prompt.chat.messages", error.to_string()))
            }
            other => Self::Internal(other.to_string()),
        }
    }
}
