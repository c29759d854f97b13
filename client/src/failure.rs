//! Errors for people: what went wrong, where, and what to do about it.

use std::{io, path::Path, process::ExitCode};

use console::style;
use steering_client::{Error, Service};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::output;

/// An error that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// What went wrong.
    pub(crate) message: String,
    /// More lines about it.
    pub(crate) details: Vec<String>,
    /// What to do.
    pub(crate) hints: Vec<String>,
}

/// An error with one hint.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Failure {
        message: message.into(),
        details: Vec::new(),
        hints: vec![hint.into()],
    }
    .into()
}

/// Writes an error to standard error and says how to exit.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(io) = error.downcast_ref::<io::Error>()
        && io.kind() == io::ErrorKind::BrokenPipe
    {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    let failure = explain(error);
    let label = style("error:").for_stderr().red().bold();
    output::note(format_args!("{label} {}", failure.message));
    for detail in &failure.details {
        output::note(format_args!("  {detail}"));
    }
    for hint in &failure.hints {
        let label = style("hint:").for_stderr().cyan().bold();
        output::note(format_args!("{label} {hint}"));
    }
    ExitCode::FAILURE
}

fn explain(error: &anyhow::Error) -> Failure {
    if let Some(Failure {
        message,
        details,
        hints,
    }) = error.downcast_ref()
    {
        return Failure {
            message: message.clone(),
            details: details.clone(),
            hints: hints.clone(),
        };
    }
    match error.downcast_ref::<Error>() {
        Some(error) => from_client(error),
        None => Failure {
            message: format!("{error:#}"),
            details: Vec::new(),
            hints: Vec::new(),
        },
    }
}

/// Explains an error of the client library.
pub(crate) fn from_client(error: &Error) -> Failure {
    match error {
        Error::Rpc {
            service,
            url,
            status,
        } if error.is_unreachable() => unreachable(*service, url, status),
        Error::Rpc {
            service,
            url,
            status,
        } if error.is_cut_off() => Failure {
            message: format!("the connection to the {service} at {url} broke in the middle"),
            details: vec![root_cause(status)],
            hints: vec!["`steer status` shows whether it runs; then ask again".to_owned()],
        },
        Error::Rpc {
            service, status, ..
        } => refused(*service, status),
        Error::NoMaxActivation { .. } => with_hint(
            error,
            "give the strength as a plain number, e.g. LABEL=500, or find the maximum with \
             `steer features stats`; `steer features show` tells whether one is known",
        ),
        Error::NoDirectionAtHook { .. } => with_hint(
            error,
            "leave --hook out to use every direction, or name one of these hook points",
        ),
        Error::SeveralDirections { .. } => with_hint(error, "pick one with --hook"),
        Error::Contract { .. } => with_hint(
            error,
            "the service may be of another version: `steer status` shows both",
        ),
        Error::Tls { .. } => with_hint(
            error,
            "see --ca-cert, --client-cert and --client-key, which name PEM files",
        ),
        Error::InvalidUrl { .. } | Error::InvalidApiKey | Error::File { .. } => Failure {
            message: error.to_string(),
            details: Vec::new(),
            hints: Vec::new(),
        },
    }
}

/// Explains why a file from here was refused. The service knows it as bytes of a
/// stream only, so its name is put in front.
pub(crate) fn of_file(error: &Error, file: &Path) -> anyhow::Error {
    let mut failure = from_client(error);
    let name = file.display().to_string();
    if let Error::Rpc { status, .. } = error
        && matches!(
            status.code(),
            Code::InvalidArgument | Code::FailedPrecondition
        )
        && !failure.message.contains(&name)
    {
        failure.message = format!("{name}: {}", failure.message);
    }
    failure.into()
}

fn with_hint(error: &Error, hint: &str) -> Failure {
    Failure {
        message: error.to_string(),
        details: Vec::new(),
        hints: vec![hint.to_owned()],
    }
}

fn unreachable(service: Service, url: &str, status: &Status) -> Failure {
    let hint = match service {
        Service::Worker => {
            "is steer-worker running? try `steer up --model ID|PATH`, or pass --worker URL"
        }
        Service::Registry => {
            "is steer-registry running? try `steer up --model ID|PATH`, or pass --registry URL"
        }
    };
    let cause = root_cause(status);
    let hint = if cause.contains("certificate") {
        "name the authority behind its certificate with --ca-cert FILE; if the service asks for \
         a certificate, see --client-cert and --client-key"
    } else if url.starts_with("https") && cause.contains("corrupt message") {
        "no TLS is spoken there: write http://"
    } else {
        hint
    };
    Failure {
        message: format!("cannot reach the {service} at {url}"),
        details: vec![cause],
        hints: vec![hint.to_owned()],
    }
}

/// The innermost error, which names the reason.
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn refused(service: Service, status: &Status) -> Failure {
    let violations: Vec<_> = status
        .get_details_bad_request()
        .map(|details| details.field_violations)
        .unwrap_or_default();
    let details: Vec<String> = violations
        .iter()
        .filter(|violation| !status.message().contains(&violation.description))
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .collect();
    let mut hints = Vec::new();
    for violation in &violations {
        hints.extend(field_hint(&violation.field, &violation.description));
    }
    if hints.is_empty() {
        hints.extend(reason_hint(status));
    }
    if status.code() == Code::NotFound && violations.iter().any(|v| v.field == "path") {
        let hint = "the registry reads the path itself; --upload sends the files from here";
        hints.push(hint.to_owned());
    }
    hints.extend(code_hint(status));
    hints.dedup();
    let message = match status.message() {
        "" => format!("the {service} answered {:?}", status.code()),
        message => format!("{message} ({service}: {:?})", status.code()),
    };
    Failure {
        message,
        details,
        hints,
    }
}

/// The option behind a field of a request.
fn field_hint(field: &str, description: &str) -> Option<String> {
    if let Some(name) = field.strip_prefix("sampling.") {
        let name = name.split(['[', '.']).next().unwrap_or(name);
        return Some(format!("see --{}", name.replace('_', "-")));
    }
    if field.starts_with("prompt") && description.contains("template") {
        return Some(RAW_HINT.to_owned());
    }
    if field == "prompt" && description.contains("tokens; at most") {
        return Some("give a shorter text; in `steer chat`, /reset begins anew".to_owned());
    }
    let last = field.rsplit('.').next().unwrap_or(field);
    let option = match last.split('[').next().unwrap_or(last) {
        "hook_name" => "--hook (`steer status` lists the model's hook points)",
        "model_id" => "--model",
        "sae_id" => "--sae, or --name at an import",
        "activation_scale" => "--scale",
        _ => return None,
    };
    Some(format!("see {option}"))
}

const RAW_HINT: &str = "use --raw to send the text without a chat template";

/// What to do about a reason that a service gave.
fn reason_hint(status: &Status) -> Option<String> {
    let Some(info) = status.get_details_error_info() else {
        let about_template = status.message().to_lowercase().contains("chat template");
        return about_template.then(|| RAW_HINT.to_owned());
    };
    let hint = match info.reason.as_str() {
        "NO_CHAT_TEMPLATE" => RAW_HINT,
        "LABEL_NOT_FOUND" => "look for labels with `steer features search TEXT`",
        "CAV_NOT_FOUND" => "`steer cavs list` shows what there is",
        "SAE_NOT_FOUND" => "`steer saes list` shows what there is",
        "SAE_EXISTS" => "store a new version with --new-version, or choose another --name",
        "SAE_VERSION_EXISTS" => "`steer saes rm NAME@DIGEST --purge` removes it for good",
        "SAE_DELETED" => "`steer saes undelete NAME` brings it back",
        "CAV_DELETED" => "`steer cavs undelete NAME` brings it back",
        "IMPORT_NOT_ALLOWED" => "send the files from here with --upload",
        _ => return None,
    };
    let suggested = info.metadata.get("suggestions");
    let suggested: Vec<String> = suggested
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    // A message that has them already does not need them again.
    let said = suggested.iter().any(|name| status.message().contains(name));
    if suggested.is_empty() || said {
        return Some(hint.to_owned());
    }
    let quoted: Vec<String> = suggested.iter().map(|name| format!("{name:?}")).collect();
    Some(format!("did you mean {}? Else {hint}", quoted.join(", ")))
}

fn code_hint(status: &Status) -> Option<String> {
    let retry = status.get_details_retry_info().and_then(|r| r.retry_delay);
    if let Some(delay) = retry {
        return Some(format!("try again in {:.1} s", delay.as_secs_f32()));
    }
    match status.code() {
        Code::Unavailable => Some("try again later".to_owned()),
        Code::Unauthenticated => {
            Some("give an API key in STEER_API_KEY or with --api-key-file FILE".to_owned())
        }
        Code::Unimplemented => Some(
            "is that the address of the other service, or one of another version? \
             `steer status` shows both"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tonic_types::ErrorDetails;

    fn rpc(status: Status) -> Failure {
        from_client(&Error::Rpc {
            service: Service::Worker,
            url: "http://127.0.0.1:1".to_owned(),
            status: Box::new(status),
        })
    }

    #[test]
    fn violations_name_the_option() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("sampling.top_p", "is 3; must be in (0, 1]");
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        let failure = rpc(status);
        assert_eq!(failure.message, "bad request (worker: InvalidArgument)");
        assert_eq!(failure.details, ["sampling.top_p: is 3; must be in (0, 1]"]);
        assert_eq!(failure.hints, ["see --top-p"]);
    }

    #[test]
    fn violations_that_the_message_has_are_not_said_twice() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("sampling.stop[3]", "is empty");
        let message = "sampling.stop[3]: is empty";
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        let failure = rpc(status);
        assert!(failure.details.is_empty());
        assert_eq!(failure.hints, ["see --stop"]);
    }

    #[test]
    fn a_refused_file_is_named() {
        let explained = |status: Status| {
            let error = Error::Rpc {
                service: Service::Registry,
                url: String::new(),
                status: Box::new(status),
            };
            of_file(&error, Path::new("d/cavs.pt")).to_string()
        };
        let refused = explained(Status::invalid_argument("is not a dict"));
        assert!(refused.starts_with("d/cavs.pt: is not a dict"), "{refused}");
        let lost = explained(Status::internal("storage failed"));
        assert!(lost.starts_with("storage failed"), "{lost}");
    }

    #[test]
    fn a_missing_chat_template_leads_to_raw() {
        let failure = rpc(Status::failed_precondition(
            "the model has no chat template",
        ));
        assert!(failure.hints[0].contains("--raw"));
    }

    #[test]
    fn a_long_conversation_leads_to_a_new_one() {
        let details = ErrorDetails::with_bad_request_violation("prompt", "has 9 tokens; at most 8");
        let message = "prompt: has 9 tokens; at most 8";
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        assert!(rpc(status).hints[0].contains("/reset"));
    }

    #[test]
    fn reasons_lead_to_commands() {
        let suggestions = [("suggestions".to_owned(), r#"["baseball"]"#.to_owned())];
        let details = ErrorDetails::with_error_info("LABEL_NOT_FOUND", "test", suggestions);
        let hint = |message: &str| {
            let status = Status::with_error_details(Code::NotFound, message, details.clone());
            rpc(status).hints.join("\n")
        };
        assert!(hint("unknown").starts_with("did you mean \"baseball\"?"));
        assert!(hint("unknown; nearest is \"baseball\"").starts_with("look for labels"));
    }

    #[test]
    fn retry_info_says_when() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        let status = Status::with_error_details(Code::ResourceExhausted, "queue full", details);
        assert_eq!(rpc(status).hints, ["try again in 1.5 s"]);
    }
}
