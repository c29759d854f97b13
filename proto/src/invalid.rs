//! Rejected input: which field, what was wrong, what is allowed.

use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path to the field, e.g. `variants[0].interventions[2].feature.set`.
    pub field: String,
    /// What was wrong and what is allowed.
    pub description: String,
}

/// Input that cannot be honoured. Becomes `INVALID_ARGUMENT` with a
/// `google.rpc.BadRequest` detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// At least one violation.
    pub violations: Vec<Violation>,
}

impl Invalid {
    /// A single violation.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            violations: vec![Violation {
                field: field.into(),
                description: description.into(),
            }],
        }
    }

    /// The same violations, one level further down: `prefix.field`.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        for violation in &mut self.violations {
            violation.field = match violation.field.as_str() {
                "" => prefix.to_owned(),
                inner if inner.starts_with('[') => format!("{prefix}{inner}"),
                inner => format!("{prefix}.{inner}"),
            };
        }
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.violations.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}{}: {}",
                violation.field, violation.description
            )?;
        }
        Ok(())
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        let mut details = ErrorDetails::new();
        for violation in &invalid.violations {
            details.add_bad_request_violation(&violation.field, &violation.description);
        }
        Self::with_error_details(Code::InvalidArgument, invalid.to_string(), details)
    }
}

/// Requires a message field or oneof that proto3 makes optional.
pub fn required<T>(value: Option<T>, field: &str) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::field(field, "is required"))
}

/// Requires a finite number.
pub fn finite(value: f32, field: &str) -> Result<f32, Invalid> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Invalid::field(
            field,
            format!("is {value}; must be a finite number"),
        ))
    }
}

/// Requires a non-empty vector of finite numbers.
pub fn finite_vector(values: Vec<f32>, field: &str) -> Result<Vec<f32>, Invalid> {
    if values.is_empty() {
        return Err(Invalid::field(
            field,
            "is empty; must have one component per dimension",
        ));
    }
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => Err(Invalid::field(
            format!("{field}[{i}]"),
            format!("is {}; every component must be a finite number", values[i]),
        )),
    }
}

/// Requires a text of at most `len_max` bytes.
pub fn short(text: &str, field: &str, len_max: usize) -> Result<(), Invalid> {
    if text.len() <= len_max {
        return Ok(());
    }
    Err(Invalid::field(
        field,
        format!("has {} bytes; at most {len_max}", text.len()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_nest_with_indices() {
        let invalid = Invalid::field("[3]", "is NaN")
            .within("encoder")
            .within("features[1]");
        assert_eq!(invalid.to_string(), "features[1].encoder[3]: is NaN");
    }

    #[test]
    fn status_carries_the_violations() {
        let status = Status::from(Invalid::field("prompt", "is required"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status
            .get_details_bad_request()
            .expect("bad request details");
        assert_eq!(details.field_violations[0].field, "prompt");
    }

    #[test]
    fn vectors_must_be_finite_and_present() {
        assert!(finite_vector(vec![], "v").is_err());
        let err = finite_vector(vec![0.0, f32::NAN], "v").expect_err("NaN");
        assert_eq!(err.violations[0].field, "v[1]");
    }
}
