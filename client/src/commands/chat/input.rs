//! Lines of a conversation: messages and commands.

use std::{io, thread};

use steering_client::{CavEdit, FeatureEdit};
use tokio::sync::mpsc;

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    Empty,
    Say(&'a str),
    Feature(FeatureEdit),
    Cav(CavEdit),
    Clear,
    Steer,
    Baseline,
    Seed(Option<u64>),
    Reset,
    Help,
    Quit,
}

pub(super) const HELP: &str = "\
/feature LABEL=VALUE  edit a feature from now on (also LABEL:min=, :max=, :add=, :scale=, :ablate)
/cav NAME=STRENGTH    edit with a CAV from now on (also FRACTIONnorm, :ablate, :clamp=LO..HI)
/clear                take all edits back
/steer                show the edits
/baseline             answer the last message again unsteered
/seed [N]             use this seed; without N, a new one every time
/reset                forget the conversation, keep the edits
/quit                 end; Ctrl-D too
//text                say \"/text\"";

/// Reads a line, or says what is wrong with it.
pub(super) fn parse(line: &str) -> Result<Line<'_>, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::Empty);
    }
    let Some(command) = line.strip_prefix('/') else {
        return Ok(Line::Say(line));
    };
    if command.starts_with('/') {
        return Ok(Line::Say(command));
    }
    let (name, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    let rest = rest.trim();
    let edit = |error: &dyn std::fmt::Display| format!("/{name} {rest:?}: {error}");
    let parsed = match name {
        "feature" => return rest.parse().map(Line::Feature).map_err(|e| edit(&e)),
        "cav" => return rest.parse().map(Line::Cav).map_err(|e| edit(&e)),
        "seed" if rest.is_empty() => return Ok(Line::Seed(None)),
        "seed" => {
            let seed = rest.parse().map(|seed| Line::Seed(Some(seed)));
            return seed.map_err(|_| format!("{rest:?} is not a seed: write /seed N"));
        }
        "clear" => Line::Clear,
        "steer" => Line::Steer,
        "baseline" => Line::Baseline,
        "reset" => Line::Reset,
        "help" => Line::Help,
        "quit" | "exit" => Line::Quit,
        _ => return Err(format!("there is no command /{name}")),
    };
    if rest.is_empty() {
        Ok(parsed)
    } else {
        Err(format!("/{name} takes nothing behind it"))
    }
}

/// Lines of standard input, to its end. A thread reads them: nothing can interrupt
/// a read, and the end of the program must not wait for one.
pub(super) fn lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lines() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let feature = "ice hockey:min=3".parse().expect("an edit");
        let cav = "rec.autos=0.1norm".parse().expect("an edit");
        let table = [
            ("  ", Line::Empty),
            (" hello / there ", Line::Say("hello / there")),
            ("//help me", Line::Say("/help me")),
            ("/feature  ice hockey:min=3", Line::Feature(feature)),
            ("/cav rec.autos=0.1norm", Line::Cav(cav)),
            ("/seed 7", Line::Seed(Some(7))),
            ("/seed", Line::Seed(None)),
            ("/clear ", Line::Clear),
            ("/quit", Line::Quit),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        let table = [
            ("/feature baseball", "has no value"),
            ("/cav", "has no value"),
            ("/seed x", "not a seed"),
            ("/clear baseball", "takes nothing"),
            ("/shout", "no command /shout"),
        ];
        for (text, expected) in table {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
