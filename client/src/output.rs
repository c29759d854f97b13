//! Writing to standard output and standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use console::{Term, style};
use serde::Serialize;

/// Writes text to standard output at once.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes text of a model: as it is for a pipe, made safe for a terminal.
pub(crate) fn text(text: &str) -> io::Result<()> {
    if is_terminal() {
        write(&printable(text))
    } else {
        write(text)
    }
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    write(&format!("{text}\n"))
}

/// Writes the one JSON document of a command: indented for people, else one line.
pub(crate) fn json(document: &impl Serialize) -> anyhow::Result<()> {
    let text = if is_terminal() {
        serde_json::to_string_pretty(document)?
    } else {
        serde_json::to_string(document)?
    };
    Ok(line(text)?)
}

/// Writes a line to standard error. Nothing can be done if that fails.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A warning on standard error.
pub(crate) fn warning(text: impl Display) {
    note(format_args!(
        "{} {text}",
        style("warning:").for_stderr().yellow().bold()
    ));
}

/// A remark of lesser weight on standard error.
pub(crate) fn dim(text: impl Display) {
    note(style(text).for_stderr().dim());
}

/// Says that a list goes on.
pub(crate) fn note_truncated(truncated: bool, shown: usize) {
    if truncated {
        dim(format_args!(
            "the first {shown}; more with --limit N (0 = all)"
        ));
    }
}

/// Whether a person reads standard output.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Width of the terminal, if standard output is one.
pub(crate) fn terminal_width() -> Option<usize> {
    is_terminal()
        .then(|| Term::stdout().size_checked())
        .flatten()
        .map(|(_, columns)| usize::from(columns).max(20))
}

/// Text of a model or a file, made safe for a terminal: control characters other
/// than line breaks and tabs become visible.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// A vocabulary's piece as it reads in a text: spaces and line breaks that it makes visible
/// are spaces and line breaks.
pub(crate) fn piece_text(piece: &str) -> String {
    piece.replace(['▁', 'Ġ'], " ").replace('Ċ', "\n")
}

/// Text for HTML: nothing in it is markup or a control character.
pub(crate) fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[2J\tb\r\n"), "a\u{fffd}[2J\tb\u{fffd}\n");
    }
}
