//! How a text becomes a prompt.

use std::io::{self, Read};

use clap::Args;
use steering_client::{prompt, v1};

use crate::failure::hinted;

/// How a text becomes a prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub(crate) struct PromptOptions {
    /// Send the text without the chat template (the tokenizer still adds BOS).
    #[arg(long, conflicts_with_all = ["system", "add_generation_prompt"])]
    raw: bool,
    /// Append the template's opening of the assistant's turn.
    #[arg(long)]
    add_generation_prompt: bool,
    /// A system message in front, where the template has one.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

impl PromptOptions {
    /// The prompt; `-` is read from standard input, its final line break left out.
    pub(crate) fn prompt(&self, text: &str) -> anyhow::Result<v1::Prompt> {
        let text = text_or_stdin(text)?;
        if self.raw {
            return Ok(prompt::text(text));
        }
        let system = self.system.as_deref();
        let system = system.map(|content| prompt::message("system", content));
        let messages = system.into_iter().chain([prompt::message("user", text)]);
        Ok(prompt::chat(messages.collect(), self.add_generation_prompt))
    }
}
/// A text as it is, or for `-` standard input, its final line break left out.
pub(crate) fn text_or_stdin(text: &str) -> anyhow::Result<String> {
    let text = if text == "-" {
        let text = io::read_to_string(io::stdin().lock().by_ref());
        let mut text = text.map_err(stdin_failure)?;
        text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
        text
    } else {
        text.to_owned()
    };
    if text.is_empty() {
        return Err(hinted(
            "the prompt is empty",
            "give the model a text to go on from",
        ));
    }
    Ok(text)
}

/// Says that it is standard input that cannot be read.
pub(crate) fn stdin_failure(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::InvalidData => hinted(
            "standard input is not UTF-8 text",
            "`iconv -f ENCODING -t UTF-8` makes it so",
        ),
        _ => anyhow::Error::new(error).context("cannot read standard input"),
    }
}
