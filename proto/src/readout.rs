//! Validated readouts, conditions, gates and probes: what is read from the
//! activations, and what depends on it.

use std::sync::Arc;

use crate::{
    HookPoint, Invalid,
    intervention::Payloads,
    invalid::{finite, required},
    payload::{SaeFeature, Vector},
    v1,
};

/// A scalar read from the activation `x` at one hook point.
#[derive(Debug, Clone, PartialEq)]
pub struct Readout {
    /// Where.
    pub hook: HookPoint,
    /// What.
    pub source: Source,
}

/// What a readout computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The activation of an SAE feature.
    Feature(Arc<SaeFeature>),
    /// `x · v + bias`.
    Direction {
        /// The direction `v`.
        vector: Arc<Vector>,
        /// Added to the product.
        bias: f32,
    },
}

/// Fires where a readout passes a threshold, strictly.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// What is compared.
    pub readout: Readout,
    /// With what.
    pub comparison: Comparison,
}

/// A strict comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Comparison {
    /// The value is larger.
    Above(f32),
    /// The value is smaller.
    Below(f32),
}

/// Opens an edit where, or from where, a condition fires.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// What opens it.
    pub condition: Condition,
    /// For how long.
    pub mode: GateMode,
}

/// How long a gate stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// At the tokens where the condition fires.
    While,
    /// From the first token where it fires on.
    Once,
    /// For this many tokens, the one that fires included; at least 1.
    ForTokens(u32),
}

/// A readout that is reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Unique within the request.
    pub name: String,
    /// What is read.
    pub readout: Readout,
}

impl Readout {
    /// Parses a readout against the request's payload tables.
    pub fn parse(wire: v1::Readout, payloads: &Payloads) -> Result<Self, Invalid> {
        use v1::readout::Source as Wire;
        let v1::Readout { source } = wire;
        match required(source, "source")? {
            Wire::Feature(row) => {
                let feature = payloads.feature(row)?;
                Ok(Self {
                    hook: feature.hook,
                    source: Source::Feature(feature),
                })
            }
            Wire::Direction(wire) => {
                parse_direction(wire, payloads).map_err(|e| e.within("direction"))
            }
        }
    }

    /// Number of components of the payload.
    pub fn width(&self) -> usize {
        match &self.source {
            Source::Feature(feature) => feature.encoder.len(),
            Source::Direction { vector, .. } => vector.values.len(),
        }
    }

    /// What a report calls the payload.
    pub fn payload_name(&self) -> String {
        match &self.source {
            Source::Feature(feature) => feature.display_name(),
            Source::Direction { vector, .. } => vector.name.clone(),
        }
    }

    /// Identifies what is read: hook point and numbers.
    pub fn digest(&self) -> String {
        match &self.source {
            Source::Feature(feature) => feature.digest(),
            Source::Direction { vector, bias } => {
                format!("{} {} {:08x}", self.hook, vector.digest(), bias.to_bits())
            }
        }
    }
}

fn parse_direction(wire: v1::DirectionReadout, payloads: &Payloads) -> Result<Readout, Invalid> {
    let v1::DirectionReadout {
        vector,
        hook_name,
        bias,
    } = wire;
    Ok(Readout {
        hook: hook_name.parse()?,
        source: Source::Direction {
            vector: payloads.direction(vector)?,
            bias: finite(bias, "bias")?,
        },
    })
}

impl Condition {
    /// Parses a condition against the request's payload tables.
    pub fn parse(wire: v1::Condition, payloads: &Payloads) -> Result<Self, Invalid> {
        use v1::condition::Comparison as Wire;
        let v1::Condition {
            readout,
            comparison,
        } = wire;
        let readout = Readout::parse(required(readout, "readout")?, payloads)
            .map_err(|e| e.within("readout"))?;
        let comparison = match required(comparison, "comparison")? {
            Wire::Above(v) => Comparison::Above(finite(v, "above")?),
            Wire::Below(v) => Comparison::Below(finite(v, "below")?),
        };
        Ok(Self {
            readout,
            comparison,
        })
    }

    /// Whether it fires for a value of its readout.
    pub fn fires(&self, value: f32) -> bool {
        match self.comparison {
            Comparison::Above(threshold) => value > threshold,
            Comparison::Below(threshold) => value < threshold,
        }
    }

    /// Identifies what makes it fire.
    pub fn digest(&self) -> String {
        format!("{} {:?}", self.readout.digest(), self.comparison)
    }
}

impl Gate {
    /// Parses the gate of an edit at `edit_hook`.
    pub fn parse(
        wire: v1::Gate,
        payloads: &Payloads,
        edit_hook: HookPoint,
    ) -> Result<Self, Invalid> {
        let v1::Gate {
            condition,
            mode,
            tokens,
        } = wire;
        let condition = Condition::parse(required(condition, "condition")?, payloads)
            .map_err(|e| e.within("condition"))?;
        if condition.readout.hook > edit_hook {
            let text = format!(
                "is read at {}, which the model reaches after {edit_hook}, where the edit is; \
                 read it there or earlier",
                condition.readout.hook
            );
            return Err(Invalid::field("condition.readout", text));
        }
        let mode = match v1::GateMode::try_from(mode) {
            Ok(v1::GateMode::While) => GateMode::While,
            Ok(v1::GateMode::Once) => GateMode::Once,
            Ok(v1::GateMode::ForTokens) if tokens == 0 => {
                let text = "is 0; FOR_TOKENS needs at least 1";
                return Err(Invalid::field("tokens", text));
            }
            Ok(v1::GateMode::ForTokens) => GateMode::ForTokens(tokens),
            Ok(v1::GateMode::Unspecified) | Err(_) => {
                let text = format!("is {mode}; must be WHILE, ONCE or FOR_TOKENS");
                return Err(Invalid::field("mode", text));
            }
        };
        if tokens != 0 && !matches!(mode, GateMode::ForTokens(_)) {
            let text = format!("is {tokens}; only FOR_TOKENS takes a number of tokens");
            return Err(Invalid::field("tokens", text));
        }
        Ok(Self { condition, mode })
    }
}

/// Parses the probes of a request.
pub(crate) fn parse_probes(
    wire: Vec<v1::Probe>,
    payloads: &Payloads,
) -> Result<Vec<Probe>, Invalid> {
    let mut probes: Vec<Probe> = Vec::with_capacity(wire.len());
    for (i, v1::Probe { name, readout }) in wire.into_iter().enumerate() {
        let parse = || {
            let readout = Readout::parse(required(readout, "readout")?, payloads)
                .map_err(|e| e.within("readout"))?;
            let name = if name.is_empty() {
                format!("probe-{i}")
            } else {
                name
            };
            if probes.iter().any(|other| other.name == name) {
                let text = format!("{name:?} is used twice; names are unique within a request");
                return Err(Invalid::field("name", text));
            }
            Ok(Probe { name, readout })
        };
        probes.push(parse().map_err(|e| e.within(&format!("probes[{i}]")))?);
    }
    Ok(probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESID_POST_1: &str = "blocks.1.hook_resid_post";

    fn payloads() -> Payloads {
        let vector = v1::Vector {
            name: "up".to_owned(),
            values: vec![0.0, 2.0],
        };
        Payloads::parse(Vec::new(), vec![vector]).expect("valid")
    }

    fn wire(hook_name: &str, mode: v1::GateMode, tokens: u32) -> v1::Gate {
        let direction = v1::DirectionReadout {
            vector: 0,
            hook_name: hook_name.to_owned(),
            bias: 0.5,
        };
        v1::Gate {
            condition: Some(v1::Condition {
                readout: Some(v1::Readout {
                    source: Some(v1::readout::Source::Direction(direction)),
                }),
                comparison: Some(v1::condition::Comparison::Above(1.0)),
            }),
            mode: mode.into(),
            tokens,
        }
    }

    fn parse(wire: v1::Gate) -> Result<Gate, Invalid> {
        Gate::parse(wire, &payloads(), RESID_POST_1.parse().expect("a hook"))
    }

    #[test]
    fn comparisons_are_strict() {
        let gate = parse(wire(RESID_POST_1, v1::GateMode::Once, 0)).expect("valid");
        assert!(!gate.condition.fires(1.0));
        assert!(gate.condition.fires(1.001));
    }

    #[test]
    fn a_gate_cannot_look_ahead() {
        let at = |hook| parse(wire(hook, v1::GateMode::While, 0));
        assert!(at("blocks.1.hook_mlp_out").is_ok());
        let err = at("blocks.2.hook_resid_pre").expect_err("refused");
        assert_eq!(err.violations[0].field, "condition.readout");
    }

    #[test]
    fn modes_and_their_counts_belong_together() {
        let field = |mode, tokens| {
            let err = parse(wire(RESID_POST_1, mode, tokens)).expect_err("refused");
            err.violations[0].field.clone()
        };
        assert_eq!(field(v1::GateMode::ForTokens, 0), "tokens");
        assert_eq!(field(v1::GateMode::Once, 3), "tokens");
        assert_eq!(field(v1::GateMode::Unspecified, 0), "mode");
    }
}
