//! Chat templates, rendered as `transformers` renders them.
//!
//! Templates come with the model, so they are data of unknown intent. They run
//! in a sandbox that reaches nothing but the conversation, on a budget that
//! bounds the time and the memory of a render. (The one thing minijinja does
//! not charge for is a list joined with itself more than thirty times over.)

use std::error::Error as _;

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value, escape_formatter,
    syntax::SyntaxConfig, value::ValueKind,
};
use steering_proto::generate::Message;

use crate::text::TextError;

mod functions;

/// What one render may spend: about this many instructions, and 64 bytes of
/// created text for each unit. Real templates use a few hundred a message.
const FUEL: u64 = 4_000_000;

const NAME: &str = "chat_template";

/// A model's chat template, compiled.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like: names a template may use.
    special_tokens: Vec<(String, String)>,
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a template; `special_tokens` are the variables it sees besides
    /// the conversation.
    pub(super) fn compile(
        source: &str,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, TextError> {
        let broken = |error: Error| TextError::Template(describe(&error));
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(broken)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(python_formatter);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", functions::strftime_now);
        environment.add_filter("tojson", functions::tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(broken)?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// Renders a conversation.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|Message { role, content }| {
                Value::from_pairs([("role", role.as_str()), ("content", content.as_str())])
            })
            .collect();
        let special = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let context = Value::from_pairs(special.chain([
            ("messages", Value::from(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| as_text_error(&error))
    }
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Prints `None`, `True` and `False` as Python does.
fn python_formatter(
    out: &mut minijinja::Output,
    state: &mut minijinja::State,
    value: &Value,
) -> Result<(), Error> {
    let name = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(name).map_err(Error::from)
}

fn as_text_error(error: &Error) -> TextError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TextError::TemplateRaised(message.clone());
        }
        source = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::TemplateTooCostly,
        _ => TextError::Template(describe(error)),
    }
}

fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// `{% generation %}` marks the assistant's part for training masks and prints
/// its body unchanged: an `if` that always holds, here.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|i| start + i) else {
            break;
        };
        let inner = &rest[start + 2..end];
        let (open, tag) = split_marker(inner, true);
        let (close, tag) = split_marker(tag, false);
        let replacement = match tag.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..start]);
        match replacement {
            Some(tag) => out.push_str(&format!("{{%{open} {tag} {close}%}}")),
            None => out.push_str(&rest[start..end + 2]),
        }
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Splits a whitespace-control marker off the start or the end of a tag.
fn split_marker(tag: &str, at_start: bool) -> (&str, &str) {
    let is_marker = |c: char| c == '-' || c == '+';
    if at_start && tag.starts_with(is_marker) {
        tag.split_at(1)
    } else if !at_start && tag.ends_with(is_marker) {
        let (tag, marker) = tag.split_at(tag.len() - 1);
        (marker, tag)
    } else {
        ("", tag)
    }
}

#[cfg(test)]
mod tests;
