//! Where, and from when, edits apply.

use clap::{Args, ValueEnum};
use steering_client::{Gate, Readout, v1};

use crate::failure::hinted;

/// Where edits apply. The command that takes these has a group "edits" of what
/// edits, and a group "named" of what names CAVs or features.
#[derive(Debug, Args)]
#[command(next_help_heading = "Steering")]
pub(crate) struct PlaceOptions {
    /// Hook point for the CAVs instead of their own; picks one of a CAV with several.
    #[arg(long, value_name = "NAME", requires = "named")]
    pub(crate) hook: Option<String>,
    /// Edit only while READOUT is above (or below) VALUE; `:once` = from then on,
    /// `:for=N` = for N tokens.
    #[arg(
        long,
        value_name = "READOUT>VALUE[:MODE]",
        requires = "edits",
        group = "named"
    )]
    pub(crate) when: Option<Gate>,
    /// Tokens that are edited [default: all].
    #[arg(long, value_enum, requires = "edits")]
    positions: Option<Scope>,
    /// Edit only positions START to END - 1, counted from BOS = 0; either may be left out.
    #[arg(long, value_name = "START:END", requires = "edits", value_parser = parse_window)]
    window: Option<v1::PositionWindow>,
    /// Leave BOS, EOS, turn markers and other special tokens as they are.
    #[arg(long, requires = "edits")]
    skip_special_tokens: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// Prompt and generated tokens.
    All,
    /// Prompt tokens only.
    Prompt,
    /// Generated tokens only.
    Generated,
}

impl PlaceOptions {
    /// Refuses a hook point for CAVs where none is added or read.
    pub(crate) fn check_hook<'a>(
        &'a self,
        adds_cavs: bool,
        observed: impl IntoIterator<Item = &'a Readout>,
    ) -> anyhow::Result<()> {
        let gate = self.when.iter().map(|gate| &gate.condition.readout);
        let mut readouts = gate.chain(observed);
        let reads_cavs = readouts.any(|readout| matches!(readout, Readout::Cav(_)));
        check_hook(self.hook.as_deref(), adds_cavs || reads_cavs)
    }

    pub(crate) fn positions(&self) -> Option<v1::Positions> {
        let scope = match self.positions {
            None if self.window.is_none() && !self.skip_special_tokens => return None,
            None | Some(Scope::All) => v1::PositionScope::All,
            Some(Scope::Prompt) => v1::PositionScope::Prompt,
            Some(Scope::Generated) => v1::PositionScope::Generated,
        };
        Some(v1::Positions {
            scope: scope.into(),
            window: self.window,
            skip_special_tokens: self.skip_special_tokens,
            token_ids: Vec::new(),
        })
    }
}

/// Refuses a hook point for CAVs where none is named.
pub(crate) fn check_hook(hook: Option<&str>, names_cavs: bool) -> anyhow::Result<()> {
    if hook.is_none() || names_cavs {
        return Ok(());
    }
    Err(hinted(
        "--hook is for CAVs, and none is named",
        "a feature acts, and is read, at its SAE's own hook point",
    ))
}

fn parse_window(text: &str) -> Result<v1::PositionWindow, String> {
    let parse = |bound: &str| match bound {
        "" => Ok(None),
        bound => bound
            .parse()
            .map(Some)
            .map_err(|_| format!("{bound:?} is not a position")),
    };
    let (start, end) = text
        .split_once(':')
        .ok_or("write START:END, START: or :END")?;
    let (start, end) = (parse(start)?.unwrap_or(0), parse(end)?);
    if end.is_some_and(|end: u32| end <= start) {
        return Err("END must be above START: the window is half-open and not empty".to_owned());
    }
    Ok(v1::PositionWindow { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_half_open() {
        let window = |start, end| Ok(v1::PositionWindow { start, end });
        assert_eq!(parse_window("2:5"), window(2, Some(5)));
        assert_eq!(parse_window(":5"), window(0, Some(5)));
        assert_eq!(parse_window("2:"), window(2, None));
        for text in ["5", "5:5", "5:2", "a:b", "-1:2"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }
}
