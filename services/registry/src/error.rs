//! What can go wrong.

mod status;

use std::{error::Error as StdError, io};

use sqlx::postgres::PgDatabaseError;
use steering_proto::Invalid;
use tonic::Code;

use crate::{format::FormatError, vectors::is_damage};

pub use status::ERROR_DOMAIN;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field that cannot be honoured.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A file that cannot be used. `field` is where the request named it.
    #[error("{error}")]
    File {
        /// Request field, e.g. `path`.
        field: &'static str,
        /// What is wrong with it.
        error: FormatError,
    },
    /// No SAE of that name.
    #[error("no SAE is named {sae_id:?}; {}", listing("held are", .known))]
    SaeNotFound {
        /// The name asked for.
        sae_id: String,
        /// Some names that exist.
        known: Vec<String>,
    },
    /// It was deleted.
    #[error("SAE {sae_id:?} was deleted; undelete it, or import it again")]
    SaeDeleted {
        /// The name asked for.
        sae_id: String,
    },
    /// No feature has that label.
    #[error("no feature of SAE {sae_id:?} is labelled {label:?}; {}", listing("nearest are", .nearest))]
    LabelNotFound {
        /// The SAE looked in.
        sae_id: String,
        /// The label asked for.
        label: String,
        /// Up to five labels that look alike, best first.
        nearest: Vec<String>,
    },
    /// No CAV of that name or version.
    #[error("no CAV is named {name:?}; {}", listing("nearest are", .nearest))]
    CavNotFound {
        /// The name asked for.
        name: String,
        /// Up to five names that look alike, best first.
        nearest: Vec<String>,
    },
    /// It was deleted.
    #[error("CAV {name:?} was deleted; undelete it, or store it again")]
    CavDeleted {
        /// The name asked for.
        name: String,
    },
    /// No such statistics.
    #[error("SAE {sae_id:?} has no statistics{which}")]
    StatisticsNotFound {
        /// The SAE.
        sae_id: String,
        /// Which; empty = any.
        which: String,
    },
    /// The name is taken.
    #[error(
        "SAE {sae_id:?} exists already; import a new version of it, or delete it first, or import \
         under another name"
    )]
    SaeExists {
        /// The name.
        sae_id: String,
    },
    /// The same content is stored under that name for another place.
    #[error(
        "SAE {sae_id:?} has this content as a version for {hook_name:?} of model {model_id:?}; \
         versions are immutable: purge {sae_id}@{digest} first, or use another name"
    )]
    SaeVersionExists {
        /// The name.
        sae_id: String,
        /// Digest of the content.
        digest: String,
        /// Hook point of the stored version.
        hook_name: String,
        /// Model of the stored version.
        model_id: String,
    },
    /// The same numbers are stored under that name for another model.
    #[error(
        "CAV {name:?} with these numbers is already stored for model {stored_model_id:?}; versions are \
         immutable: purge {name:?} first, or use another name"
    )]
    CavExists {
        /// The name.
        name: String,
        /// Model of the stored version.
        stored_model_id: String,
    },
    /// The server's settings forbid it.
    #[error("{0}")]
    NotAllowed(String),
    /// Too much at once; worth another try.
    #[error("{0}")]
    Busy(String),
    /// The database cannot be reached, or gave way to another transaction; worth another try.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The model hub refused, or could not be reached.
    #[error("{message}")]
    Hub {
        /// gRPC code that fits.
        code: Code,
        /// What happened and what to do.
        message: String,
    },
    /// The disk is full.
    #[error("the registry's disk is full; reads go on, nothing was stored")]
    DiskFull,
    /// The disk takes no writes.
    #[error("the registry's disk is read-only: nothing was stored")]
    ReadOnly,
    /// Stored data is missing or damaged.
    #[error("stored data is damaged: {0}; `steer-registry check` finds all that is")]
    DataLoss(String),
    /// The object store did not answer, or not in time; worth another try.
    #[error("the object store cannot be used at the moment: {0}")]
    ObjectStore(String),
    /// Something is to be read as a whole that the cache has no room for.
    #[error(
        "object {digest} of {len} bytes does not fit into the object cache of {limit} bytes; start \
         the registry with a larger --object-cache-bytes"
    )]
    CacheTooSmall {
        /// The object.
        digest: String,
        /// Its length.
        len: u64,
        /// Bytes that the cache may hold.
        limit: u64,
    },
    /// Storage failed otherwise.
    #[error("storage failed: {0}")]
    Storage(#[source] Box<dyn StdError + Send + Sync>),
    /// The client went away.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Says whose data are damaged, if they are.
    pub fn of_sae(self, name: &str) -> Self {
        match self {
            Self::DataLoss(text) => Self::DataLoss(format!("SAE {name:?}: {text}")),
            other => other,
        }
    }

    /// A file named by request field `field` that cannot be used.
    pub fn file(field: &'static str, error: FormatError) -> Self {
        match error {
            FormatError::Cancelled => Self::Cancelled,
            FormatError::Io(error) if is_disk_full(&error) => Self::DiskFull,
            error => Self::File { field, error },
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if is_disk_full(&error) {
            return Self::DiskFull;
        }
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        let postgres = error
            .as_database_error()
            .is_some_and(|error| error.try_downcast_ref::<PgDatabaseError>().is_some());
        let known = match (&error, code) {
            (_, Some(code)) if postgres => postgres_error(&code),
            (error, Some(code)) => sqlite_error(&code, error),
            (sqlx::Error::PoolTimedOut, _) => Some(Self::Unavailable(
                "the database cannot be reached, or has too much to do",
            )),
            (sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed, _) => {
                Some(Self::Unavailable("the connection to the database was lost"))
            }
            _ => None,
        };
        if matches!(known, Some(Self::Unavailable(_))) {
            tracing::warn!(%error, "the database is unavailable");
        }
        known.unwrap_or_else(|| Self::Storage(Box::new(error)))
    }
}

fn sqlite_error(code: &str, error: &sqlx::Error) -> Option<Error> {
    const BUSY: i64 = 5;
    const READ_ONLY: i64 = 8;
    const CORRUPT: i64 = 11;
    const FULL: i64 = 13;
    const NOT_A_DATABASE: i64 = 26;
    // Extended codes keep the primary code in the low byte.
    match code.parse::<i64>().ok()? & 0xff {
        FULL => Some(Error::DiskFull),
        READ_ONLY => Some(Error::ReadOnly),
        CORRUPT | NOT_A_DATABASE => Some(Error::DataLoss(format!("the database: {error}"))),
        BUSY => Some(Error::Busy(
            "the database is busy with another write".to_owned(),
        )),
        _ => None,
    }
}

/// By SQLSTATE.
fn postgres_error(code: &str) -> Option<Error> {
    match code {
        // disk_full
        "53100" => Some(Error::DiskFull),
        // character_not_in_repertoire, untranslatable_character
        "22021" | "22P05" => {
            Some(Invalid::field("request", "has a text with a NUL character").into())
        }
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => Some(Error::Unavailable(
            "the database is busy with another write",
        )),
        // too_many_connections, admin_shutdown, crash_shutdown, cannot_connect_now,
        // idle_in_transaction_session_timeout; read_only_sql_transaction: a stand-by
        "53300" | "57P01" | "57P02" | "57P03" | "25P03" | "25006" => Some(Error::Unavailable(
            "the database takes no requests at the moment",
        )),
        code if code.starts_with("08") => Some(Error::Unavailable(
            "the connection to the database was lost",
        )),
        _ => None,
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            error => Self::Storage(Box::new(error)),
        }
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => {
                Self::DataLoss(format!("object {path} is missing"))
            }
            // What is left after all retries.
            error @ object_store::Error::Generic { .. } => {
                tracing::warn!(%error, "the object store failed");
                Self::ObjectStore(root_cause(&error))
            }
            error => Self::Storage(Box::new(error)),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if is_disk_full(&error) {
            Self::DiskFull
        } else if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
            Self::ReadOnly
        } else if is_damage(&error) {
            Self::DataLoss(error.to_string())
        } else {
            Self::Storage(Box::new(error))
        }
    }
}

/// Whether an I/O error for want of space is somewhere in the chain.
fn is_disk_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

fn root_cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn listing(intro: &str, names: &[String]) -> String {
    if names.is_empty() {
        return "there are none".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("{intro} {}", quoted.join(", "))
}
