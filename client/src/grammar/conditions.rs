//! Readouts, conditions and gates.

use std::str::FromStr;

use super::{GrammarError, amount, error};
use crate::edit::{Amount, Comparison, Condition, Gate, GateMode, Readout};

const READOUT_FORMS: &str = "write LABEL, #INDEX, SAE::LABEL or cav:NAME";
const CONDITION_FORMS: &str = "write READOUT>VALUE or READOUT<VALUE";
const MODES: &str = ":while, :once or :for=TOKENS";

impl FromStr for Readout {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        match text.strip_prefix("cav:") {
            Some("") => Err(error(format!("names no CAV; {READOUT_FORMS}"))),
            // A label "cav::x" of an SAE named "cav" is a feature.
            Some(cav) if !cav.starts_with(':') => Ok(Self::Cav(cav.to_owned())),
            _ if text.is_empty() => Err(error(format!("reads nothing; {READOUT_FORMS}"))),
            _ => text.parse().map(Self::Feature),
        }
    }
}

impl FromStr for Condition {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        let (condition, rest) = condition(text)?;
        match rest {
            None => Ok(condition),
            Some(rest) => Err(error(format!(
                "goes on with {:?}; {CONDITION_FORMS}",
                format!(":{rest}")
            ))),
        }
    }
}

impl FromStr for Gate {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        let (condition, mode) = condition(text)?;
        let mode = match mode {
            None | Some("while") => GateMode::While,
            Some("once") => GateMode::Once,
            Some(other) => match other.strip_prefix("for=") {
                Some(tokens) => GateMode::For(token_count(tokens)?),
                None => return Err(error(format!("\":{other}\" is no mode; write {MODES}"))),
            },
        };
        Ok(Self { condition, mode })
    }
}

/// A condition, and what follows a `:` behind its threshold.
fn condition(text: &str) -> Result<(Condition, Option<&str>), GrammarError> {
    let at = text
        .rfind(['>', '<'])
        .ok_or_else(|| error(format!("compares nothing; {CONDITION_FORMS}")))?;
    // Both signs are one byte long.
    let (readout, sign, threshold) = (&text[..at], &text[at..=at], &text[at + 1..]);
    let (threshold, rest) = match threshold.split_once(':') {
        Some((threshold, rest)) => (threshold, Some(rest)),
        None => (threshold, None),
    };
    if threshold.starts_with('=') {
        let strict = format!("comparisons are strict; {CONDITION_FORMS}");
        return Err(error(strict));
    }
    let readout: Readout = readout.trim().parse()?;
    let amount = amount(threshold.trim())?;
    if let (Readout::Cav(_), Amount::OfMax(_)) = (&readout, amount) {
        let what = "a CAV has no maximum activation; give the threshold as a plain number";
        return Err(error(what.to_owned()));
    }
    let comparison = match sign {
        ">" => Comparison::Above(amount),
        _ => Comparison::Below(amount),
    };
    let condition = Condition {
        readout,
        comparison,
    };
    Ok((condition, rest))
}

fn token_count(text: &str) -> Result<u32, GrammarError> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| error(format!("{text:?} is not a number of tokens, 1 or more")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Amount::{OfMax, Raw};
    use Comparison::{Above, Below};

    fn feature(text: &str) -> Readout {
        Readout::Feature(text.parse().expect("a feature"))
    }

    fn cav(name: &str) -> Readout {
        Readout::Cav(name.to_owned())
    }

    #[test]
    fn readouts() {
        for text in [
            "hockey", "#7", "l21::#7", "::cav:x", "cav::x", "cave", "a > b",
        ] {
            assert_eq!(text.parse(), Ok(feature(text)), "{text}");
        }
        assert_eq!("cav:rec.autos@01ab".parse(), Ok(cav("rec.autos@01ab")));
        for text in ["hockey", "#7", "l21::#7", "cav:rec.autos"] {
            assert_eq!(text.parse::<Readout>().expect(text).to_string(), text);
        }
        assert!("".parse::<Readout>().is_err());
        assert!("cav:".parse::<Readout>().is_err());
    }

    #[test]
    fn conditions() {
        let table = [
            ("hockey>5", feature("hockey"), Above(Raw(5.0))),
            ("ice hockey < -0.5", feature("ice hockey"), Below(Raw(-0.5))),
            ("a<b>5", feature("a<b"), Above(Raw(5.0))),
            ("hockey>0.5max", feature("hockey"), Above(OfMax(0.5))),
            ("cav:rec.autos>1e2", cav("rec.autos"), Above(Raw(100.0))),
        ];
        for (text, readout, comparison) in table {
            let expected = Condition {
                readout,
                comparison,
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn gates() {
        let table = [
            ("hockey>5", GateMode::While),
            ("hockey>5:while", GateMode::While),
            ("hockey>5:once", GateMode::Once),
            ("hockey>5:for=8", GateMode::For(8)),
        ];
        for (text, mode) in table {
            let condition = "hockey>5".parse().expect("a condition");
            assert_eq!(text.parse(), Ok(Gate { condition, mode }), "{text}");
        }
        // The mode is what follows the threshold, not a colon in a label.
        let gate: Gate = "topic:once>5".parse().expect("a gate");
        assert_eq!(gate.mode, GateMode::While);
        assert_eq!(gate.condition.readout, feature("topic:once"));
    }

    #[test]
    fn errors_say_what_is_expected() {
        let table = [
            ("hockey", "compares nothing"),
            (">5", "reads nothing"),
            ("cav:>5", "names no CAV"),
            ("hockey>", "not a finite number"),
            ("hockey>lots", "not a finite number"),
            ("hockey>=5", "strict"),
            ("cav:a>0.5max", "plain number"),
            ("hockey>5:twice", ":while, :once or :for=TOKENS"),
            ("hockey>5:for=0", "1 or more"),
            ("hockey>5:for=", "1 or more"),
        ];
        for (text, expected) in table {
            let err = text.parse::<Gate>().expect_err(text).to_string();
            assert!(err.contains(expected), "{text}: {err}");
        }
        let err = "hockey>5:once".parse::<Condition>().expect_err("a mode");
        assert!(err.to_string().contains("\":once\""), "{err}");
    }
}
