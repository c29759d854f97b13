//! Why a request is turned away at the door, in gRPC's words.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use steering_proto::access::Scope;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `domain` of every `google.rpc.ErrorInfo`.
const DOMAIN: &str = "access.steering.v1";

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("an API key is needed: send the header \"authorization: Bearer KEY\"")]
    NoKey,
    #[error("the header \"authorization\" is malformed: {0}")]
    MalformedKey(&'static str),
    #[error("the API key is not known here, or not any more")]
    UnknownKey,
    #[error("the API key has expired")]
    ExpiredKey,
    #[error("the API key lacks the scope {}, which this call takes", .0.name())]
    MissingScope(Scope),
    #[error("the API key has had its {most} requests per minute")]
    Rate { most: u32, retry: Duration },
    #[error("the API key has {most} requests running, as many as it may")]
    Concurrency { most: u32, retry: Duration },
    #[error("the request took longer than {} s, the most that this service allows", .most.as_secs())]
    TooLong { most: Duration },
    #[error("the service is loading")]
    Loading,
    #[error("the service is stopping")]
    Stopping,
}

/// When a client may come back to a service that starts or is replaced.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

impl Refusal {
    /// As in `ErrorInfo.reason`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoKey => "NO_API_KEY",
            Self::MalformedKey(_) => "MALFORMED_API_KEY",
            Self::UnknownKey => "UNKNOWN_API_KEY",
            Self::ExpiredKey => "EXPIRED_API_KEY",
            Self::MissingScope(_) => "MISSING_SCOPE",
            Self::Rate { .. } => "RATE_QUOTA",
            Self::Concurrency { .. } => "CONCURRENCY_QUOTA",
            Self::TooLong { .. } => "REQUEST_TIME",
            Self::Loading => "LOADING",
            Self::Stopping => "STOPPING",
        }
    }

    /// As the end of a response that has begun.
    pub(crate) fn trailers(self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        if Status::from(self).add_header(&mut trailers).is_err() {
            let code = HeaderValue::from(self.code() as i32);
            trailers.insert(Status::GRPC_STATUS, code);
        }
        trailers
    }

    fn code(self) -> Code {
        match self {
            Self::NoKey | Self::MalformedKey(_) | Self::UnknownKey | Self::ExpiredKey => {
                Code::Unauthenticated
            }
            Self::MissingScope(_) => Code::PermissionDenied,
            Self::Rate { .. } | Self::Concurrency { .. } => Code::ResourceExhausted,
            Self::TooLong { .. } => Code::DeadlineExceeded,
            Self::Loading | Self::Stopping => Code::Unavailable,
        }
    }

    fn retry(self) -> Option<Duration> {
        match self {
            Self::Rate { retry, .. } | Self::Concurrency { retry, .. } => Some(retry),
            Self::Loading | Self::Stopping => Some(UNAVAILABLE_RETRY),
            _ => None,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let metadata = match refusal {
            Refusal::MissingScope(scope) => vec![("scope".to_owned(), scope.name().to_owned())],
            Refusal::Rate { most, .. } | Refusal::Concurrency { most, .. } => {
                vec![("limit".to_owned(), most.to_string())]
            }
            _ => Vec::new(),
        };
        let metadata: std::collections::HashMap<_, _> = metadata.into_iter().collect();
        let mut details = ErrorDetails::with_error_info(refusal.reason(), DOMAIN, metadata);
        if let Some(retry) = refusal.retry() {
            details.set_retry_info(Some(retry));
        }
        Self::with_error_details(refusal.code(), refusal.to_string(), details)
    }
}
