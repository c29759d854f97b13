//! What can go wrong, and the one place that says it in gRPC's words.

use std::{collections::HashMap, error::Error as StdError, io, time::Duration};

use sqlx::postgres::PgDatabaseError;
use steering_proto::Invalid;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{format::FormatError, vectors::is_damage};

/// `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "registry.steering.v1";

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
    /// The name is taken.
    #[error("SAE {sae_id:?} exists already; delete it first, or import under another name")]
    SaeExists {
        /// The name.
        sae_id: String,
    },
    /// The same numbers are stored under that name for another model.
    #[error(
        "CAV {name:?} with these numbers is already stored for model {stored_model_id:?}; versions are \
         immutable: delete {name:?} first, or use another name"
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
        let code = error.as_database_error().and_then(|error| error.code());
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

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let (code, details) = match &error {
            Error::Invalid(invalid) => return invalid.clone().into(),
            Error::File { field, error } => file_details(field, error, &message),
            Error::SaeNotFound { .. } | Error::LabelNotFound { .. } | Error::CavNotFound { .. } => {
                (Code::NotFound, not_found_details(&error))
            }
            Error::SaeExists { sae_id } => (
                Code::AlreadyExists,
                info("SAE_EXISTS", &[("sae_id", sae_id)]),
            ),
            Error::CavExists { name, .. } => {
                (Code::AlreadyExists, info("CAV_EXISTS", &[("name", name)]))
            }
            Error::NotAllowed(_) => (Code::PermissionDenied, info("IMPORT_NOT_ALLOWED", &[])),
            Error::Busy(_) => (
                Code::ResourceExhausted,
                retriable("BUSY", Duration::from_secs(2)),
            ),
            Error::Unavailable(_) => (
                Code::Unavailable,
                retriable("DATABASE", Duration::from_secs(1)),
            ),
            Error::Hub {
                code: Code::Unavailable,
                ..
            } => (Code::Unavailable, retriable("HUB", Duration::from_secs(10))),
            Error::Hub { code, .. } => (*code, info("HUB", &[])),
            Error::DiskFull => (Code::ResourceExhausted, info("DISK_FULL", &[])),
            Error::ReadOnly => (Code::FailedPrecondition, info("READ_ONLY", &[])),
            Error::ObjectStore(_) => (
                Code::Unavailable,
                retriable("OBJECT_STORE", Duration::from_secs(5)),
            ),
            Error::CacheTooSmall { .. } => (
                Code::FailedPrecondition,
                info("OBJECT_CACHE_TOO_SMALL", &[]),
            ),
            Error::DataLoss(_) => (Code::DataLoss, info("DATA_LOSS", &[])),
            Error::Storage(source) => {
                tracing::error!(error = %source, "storage failed");
                (Code::Internal, info("STORAGE", &[]))
            }
            Error::Cancelled => (Code::Cancelled, ErrorDetails::new()),
        };
        Self::with_error_details(code, message, details)
    }
}

fn info(reason: &str, metadata: &[(&str, &str)]) -> ErrorDetails {
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata)
}

fn retriable(reason: &str, delay: Duration) -> ErrorDetails {
    let mut details = info(reason, &[]);
    details.set_retry_info(Some(delay));
    details
}

/// What was looked for, and a JSON list of what comes near it.
fn not_found_details(error: &Error) -> ErrorDetails {
    let json = |names: &[String]| serde_json::to_string(names).unwrap_or_default();
    match error {
        Error::SaeNotFound { sae_id, known } => info(
            "SAE_NOT_FOUND",
            &[("sae_id", sae_id), ("known", &json(known))],
        ),
        Error::LabelNotFound {
            sae_id,
            label,
            nearest,
        } => info(
            "LABEL_NOT_FOUND",
            &[
                ("sae_id", sae_id),
                ("label", label),
                ("suggestions", &json(nearest)),
            ],
        ),
        Error::CavNotFound { name, nearest } => info(
            "CAV_NOT_FOUND",
            &[("name", name), ("suggestions", &json(nearest))],
        ),
        _ => ErrorDetails::new(),
    }
}

fn file_details(field: &str, error: &FormatError, message: &str) -> (Code, ErrorDetails) {
    match error {
        FormatError::Malformed(_) => (
            Code::InvalidArgument,
            ErrorDetails::with_bad_request_violation(field, message),
        ),
        FormatError::Unservable(_) => (Code::FailedPrecondition, info("NOT_SERVABLE", &[])),
        FormatError::Io(error) if error.kind() == io::ErrorKind::NotFound => (
            Code::NotFound,
            ErrorDetails::with_bad_request_violation(field, message),
        ),
        FormatError::Io(_) => (Code::FailedPrecondition, info("FILE_UNREADABLE", &[])),
        FormatError::Cancelled => (Code::Cancelled, ErrorDetails::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{malformed, unservable};

    #[test]
    fn every_status_has_the_code_and_details_a_client_needs() {
        let label = Error::LabelNotFound {
            sae_id: "s".to_owned(),
            label: "basebal".to_owned(),
            nearest: vec!["baseball".to_owned()],
        };
        let status = Status::from(label);
        assert_eq!(status.code(), Code::NotFound);
        assert!(
            status.message().contains("\"baseball\""),
            "{}",
            status.message()
        );
        let info = status.get_details_error_info().expect("error info");
        assert_eq!(info.reason, "LABEL_NOT_FOUND");
        assert_eq!(info.metadata["suggestions"], r#"["baseball"]"#);

        let status = Status::from(Error::file("path", malformed("W_enc: bad")));
        assert_eq!(status.code(), Code::InvalidArgument);
        let bad = status.get_details_bad_request().expect("bad request");
        assert_eq!(bad.field_violations[0].field, "path");

        let status = Status::from(Error::file("path", unservable("TopK")));
        assert_eq!(status.code(), Code::FailedPrecondition);

        let status = Status::from(Error::Busy("busy".to_owned()));
        assert!(status.get_details_retry_info().is_some());
    }

    #[test]
    fn a_database_that_gives_way_is_worth_another_try() {
        for code in ["40001", "40P01", "55P03", "57P01", "08006", "53300"] {
            let status = Status::from(postgres_error(code).expect(code));
            assert_eq!(status.code(), Code::Unavailable, "{code}");
            assert!(status.get_details_retry_info().is_some(), "{code}");
        }
        let lost = sqlx::Error::Io(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(Status::from(Error::from(lost)).code(), Code::Unavailable);
        assert!(matches!(postgres_error("53100"), Some(Error::DiskFull)));
        // unique_violation; its number's low byte is none of SQLite's codes.
        assert!(postgres_error("23505").is_none());
        assert!(matches!(sqlite_error("261"), Some(Error::Busy(_))));
    }

    #[test]
    fn a_full_disk_is_told_apart_however_deep_it_hides() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for error in [
            Error::from(full()),
            Error::file("path", FormatError::Io(full())),
        ] {
            assert!(matches!(error, Error::DiskFull), "{error:?}");
        }
    }
}
