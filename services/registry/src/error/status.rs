//! The one place that says errors in gRPC's words.

use std::{collections::HashMap, io, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::Error;
use crate::format::FormatError;

/// `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "registry.steering.v1";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let (code, details) = match &error {
            Error::Invalid(invalid) => return invalid.clone().into(),
            Error::File { field, error } => file_details(field, error, &message),
            Error::SaeNotFound { .. } | Error::LabelNotFound { .. } | Error::CavNotFound { .. } => {
                (Code::NotFound, not_found_details(&error))
            }
            Error::SaeDeleted { sae_id } => {
                (Code::NotFound, info("SAE_DELETED", &[("sae_id", sae_id)]))
            }
            Error::CavDeleted { name } => (Code::NotFound, info("CAV_DELETED", &[("name", name)])),
            Error::StatisticsNotFound { sae_id, .. } => (
                Code::NotFound,
                info("STATISTICS_NOT_FOUND", &[("sae_id", sae_id)]),
            ),
            Error::SaeExists { sae_id } => (
                Code::AlreadyExists,
                info("SAE_EXISTS", &[("sae_id", sae_id)]),
            ),
            Error::SaeVersionExists { sae_id, digest, .. } => (
                Code::AlreadyExists,
                info(
                    "SAE_VERSION_EXISTS",
                    &[("sae_id", sae_id), ("digest", digest)],
                ),
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
    use crate::{
        error::{postgres_error, sqlite_error},
        format::{malformed, unservable},
    };

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
        let other = sqlx::Error::RowNotFound;
        let busy = sqlite_error("261", &other);
        assert!(matches!(busy, Some(Error::Busy(_))));
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
