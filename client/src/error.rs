//! What can go wrong, with enough context to say what to do about it.

use std::{error::Error as _, fmt, io, path::PathBuf};

use tonic::{Code, Status};

/// One of the two services a client talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The model worker, `steer-worker`.
    Worker,
    /// The feature registry, `steer-registry`.
    Registry,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Registry => "registry",
        })
    }
}

/// An error of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL that cannot be connected to.
    #[error("{url:?} is not a service URL: {reason}")]
    InvalidUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A text that cannot be an API key.
    #[error("the API key is malformed: it must be one word of printable ASCII characters")]
    InvalidApiKey,
    /// Certificates that cannot be used.
    #[error("TLS cannot be set up: {reason}")]
    Tls {
        /// What is wrong with them.
        reason: String,
    },
    /// A call that a service refused, or that did not reach it.
    #[error("the {service} at {url} answered {}: {}", .status.code(), .status.message())]
    Rpc {
        /// Whom we called.
        service: Service,
        /// Where.
        url: String,
        /// What came back.
        status: Box<Status>,
    },
    /// An answer that breaks the contract.
    #[error("the {service} broke the contract: {what}")]
    Contract {
        /// Who did.
        service: Service,
        /// How.
        what: String,
    },
    /// A local file that cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A strength relative to a maximum that the registry does not know.
    #[error("the registry knows no maximum activation of {feature}")]
    NoMaxActivation {
        /// The feature, as in `sae#12 ("label")`.
        feature: String,
    },
    /// A CAV without a usable direction at the hook point asked for.
    #[error("CAV {cav:?} has directions at {}; {hook:?} is none of them", .available.join(", "))]
    NoDirectionAtHook {
        /// The CAV.
        cav: String,
        /// The hook point asked for.
        hook: String,
        /// Hook points the CAV has directions at.
        available: Vec<String>,
    },
    /// A CAV with several directions where one is needed.
    #[error("CAV {cav:?} has directions at {}; reading needs one of them", .available.join(", "))]
    SeveralDirections {
        /// The CAV.
        cav: String,
        /// Hook points the CAV has directions at.
        available: Vec<String>,
    },
}

impl Error {
    /// The status, if a service or the way to it failed.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Rpc { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether a service could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        self.status()
            .is_some_and(|status| status.code() == Code::Unavailable && status.source().is_some())
    }

    /// Whether the connection broke while a service was answering.
    pub fn is_cut_off(&self) -> bool {
        self.status().is_some_and(|status| {
            matches!(status.code(), Code::Unknown | Code::Internal) && status.source().is_some()
        })
    }

    pub(crate) fn contract(service: Service, what: impl Into<String>) -> Self {
        Self::Contract {
            service,
            what: what.into(),
        }
    }
}
