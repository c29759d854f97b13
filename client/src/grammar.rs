//! The grammar of edits on a command line.
//!
//! ```text
//! feature edit = feature [":" op] "=" amount | feature ":ablate"
//! op           = "set" | "min" | "max" | "add" | "scale"      (default "set")
//! amount       = number | number "max"                        (not with "scale")
//! feature      = [[sae] "::"] ("#" index | label)
//! sae          = name ["@" digest]                            (8 to 64 hex digits)
//! CAV edit     = cav [":add"] "=" (number | number "norm")
//!              | cav ":ablate" | cav ":clamp=" [number] ".." [number]
//! readout      = feature | "cav:" cav
//! condition    = readout (">" | "<") amount                   ("max" for features only)
//! gate         = condition [":while" | ":once" | ":for=" tokens]   (default "while")
//! ```
//!
//! Labels may contain anything. The value is what follows the last `=`. A label
//! that ends in `:op` needs the operation spelled out (`label:max:set=3`); one
//! that contains `::` needs an empty SAE in front (`::std::vector=3`), because an
//! SAE's name in front of the first `::` is taken as one. The same goes for a label
//! that starts with `cav:` where a readout is expected. A threshold is what follows
//! the last `>` or `<`.

use std::str::FromStr;

use crate::edit::{
    Amount, CavEdit, CavOperation, FeatureEdit, FeatureKey, FeatureOperation, FeatureSelector,
};

/// Text that is not an edit, with what is expected instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(String);

const FEATURE_FORMS: &str = "write LABEL=VALUE, LABEL:min=VALUE, LABEL:max=VALUE, \
                             LABEL:add=VALUE, LABEL:scale=FACTOR or LABEL:ablate";
const CAV_FORMS: &str = "write NAME=STRENGTH, NAME=FRACTIONnorm, NAME:ablate or NAME:clamp=LO..HI";

impl FromStr for FeatureEdit {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        if let Some(feature) = strip_ablate(text) {
            return Ok(Self {
                feature: feature.parse()?,
                operation: FeatureOperation::Set(Amount::Raw(0.0)),
            });
        }
        let (name, value) = text
            .rsplit_once('=')
            .ok_or_else(|| error(format!("has no value; {FEATURE_FORMS}")))?;
        let (feature, op) = split_operation(name, &["set", "min", "max", "add", "scale", "ablate"]);
        let operation = match op {
            Some("min") => FeatureOperation::Min(amount(value)?),
            Some("max") => FeatureOperation::Max(amount(value)?),
            Some("add") => FeatureOperation::Add(amount(value)?),
            Some("scale") => FeatureOperation::Scale(number(value)?),
            Some("ablate") => return Err(error("\":ablate\" takes no value".to_owned())),
            _ => FeatureOperation::Set(amount(value)?),
        };
        Ok(Self {
            feature: feature.parse()?,
            operation,
        })
    }
}

impl FromStr for FeatureSelector {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        let (sae, name) = match text.split_once("::") {
            Some((sae, name)) if is_sae(sae) => (sae, name),
            _ => ("", text),
        };
        if name.is_empty() {
            return Err(error(format!("names no feature; {FEATURE_FORMS}")));
        }
        Ok(Self {
            sae: (!sae.is_empty()).then(|| sae.to_owned()),
            key: feature_key(name)?,
        })
    }
}

impl FromStr for CavEdit {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        let (cav, operation) = match strip_ablate(text) {
            Some(cav) => (cav, CavOperation::Ablate),
            None => {
                let (name, value) = text
                    .rsplit_once('=')
                    .ok_or_else(|| error(format!("has no value; {CAV_FORMS}")))?;
                let (cav, op) = split_operation(name, &["add", "clamp", "ablate"]);
                let operation = match op {
                    Some("clamp") => bounds(value)?,
                    Some("ablate") => return Err(error("\":ablate\" takes no value".to_owned())),
                    _ => strength(value)?,
                };
                (cav, operation)
            }
        };
        if cav.is_empty() {
            return Err(error(format!("names no CAV; {CAV_FORMS}")));
        }
        Ok(Self {
            cav: cav.to_owned(),
            operation,
        })
    }
}

/// What comes before a final `:ablate`. After `::` it is a label, not an operation.
fn strip_ablate(text: &str) -> Option<&str> {
    text.strip_suffix(":ablate")
        .filter(|rest| !rest.ends_with(':'))
}

/// Splits a known operation off the end of a name.
fn split_operation<'a>(name: &'a str, known: &[&str]) -> (&'a str, Option<&'a str>) {
    match name.rsplit_once(':') {
        Some((rest, op)) if known.contains(&op) && !rest.ends_with(':') => (rest, Some(op)),
        _ => (name, None),
    }
}

fn feature_key(name: &str) -> Result<FeatureKey, GrammarError> {
    match name.strip_prefix('#') {
        Some(index) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => index
            .parse()
            .map(FeatureKey::Index)
            .map_err(|_| error(format!("{name} is not a feature index: it is too large"))),
        _ => Ok(FeatureKey::Label(name.to_owned())),
    }
}

/// Whether a text can stand for an SAE: its name, one of its versions, or nothing.
fn is_sae(text: &str) -> bool {
    let is_name = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
    };
    let is_digest = |digest: &str| {
        (8..=64).contains(&digest.len()) && digest.bytes().all(|b| b.is_ascii_hexdigit())
    };
    match text.split_once('@') {
        Some((name, digest)) => !name.is_empty() && is_name(name) && is_digest(digest),
        None => is_name(text),
    }
}

fn amount(text: &str) -> Result<Amount, GrammarError> {
    match text.strip_suffix("max") {
        Some(fraction) => number(fraction).map(Amount::OfMax),
        None => number(text).map(Amount::Raw),
    }
}

fn strength(text: &str) -> Result<CavOperation, GrammarError> {
    match text.strip_suffix("norm") {
        Some(fraction) => number(fraction).map(CavOperation::AddOfNorm),
        None => number(text).map(CavOperation::Add),
    }
}

fn bounds(text: &str) -> Result<CavOperation, GrammarError> {
    let (lower, upper) = text
        .split_once("..")
        .ok_or_else(|| error(format!("{text:?} is not a range; write LO..HI")))?;
    let bound = |text: &str| match text {
        "" => Ok(None),
        text => number(text).map(Some),
    };
    let (lower, upper) = (bound(lower)?, bound(upper)?);
    match (lower, upper) {
        (None, None) => Err(error("has no bound; write LO..HI, LO.. or ..HI".to_owned())),
        (Some(lo), Some(hi)) if lo > hi => Err(error(format!(
            "the lower bound {lo} is above the upper {hi}"
        ))),
        _ => Ok(CavOperation::Clamp { lower, upper }),
    }
}

fn number(text: &str) -> Result<f32, GrammarError> {
    text.trim()
        .parse()
        .ok()
        .filter(|value: &f32| value.is_finite())
        .ok_or_else(|| error(format!("{text:?} is not a finite number")))
}

fn error(text: String) -> GrammarError {
    GrammarError(text)
}

mod conditions;
#[cfg(test)]
mod tests;
