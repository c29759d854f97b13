//! A variant's interventions, readouts and conditions, compiled.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use steering_proto::{
    HookPoint, Invalid,
    capture::Pooling,
    generate::Telemetry,
    intervention::{Edit, Intervention, Positions, Token},
    readout::{Condition, Gate, Probe, Readout},
};

use super::apply::Row;

/// What is done to one variant's activations and read from them, by hook
/// point. Immutable; what has happened is in a [`SteeringState`](super::SteeringState).
#[derive(Debug, Default)]
pub struct Program {
    edits: BTreeMap<HookPoint, Vec<Entry>>,
    reads: BTreeMap<HookPoint, Vec<Read>>,
    pub(super) gates: Vec<CompiledGate>,
    pub(super) stops: Vec<Condition>,
    pub(super) n_probes: usize,
    pub(super) telemetry: Telemetry,
    pub(super) capture: Option<(HookPoint, Pooling)>,
    /// For each intervention, the earlier identical one it was merged into.
    merged_into: Vec<Option<usize>>,
    /// For each intervention, its gate and what identifies it.
    pub(super) interventions: Vec<Compiled>,
}

/// What to compile.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProgramSpec<'a> {
    /// Edits.
    pub interventions: &'a [Intervention],
    /// What ends the variant.
    pub stop_when: &'a [Condition],
    /// What is reported.
    pub probes: &'a [Probe],
    /// What else is reported.
    pub telemetry: Telemetry,
}

/// One table row and where it applies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) intervention: usize,
    pub(super) positions: Positions,
    pub(super) gate: Option<usize>,
    pub(super) row: Row,
}

/// One readout and what it is for.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) readout: Readout,
    pub(super) purpose: Purpose,
}

/// What a readout is for, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Gate(usize),
    Stop(usize),
    Probe(usize),
}

/// A gate and what identifies it.
#[derive(Debug)]
pub(super) struct CompiledGate {
    pub(super) gate: Gate,
    pub(super) digest: ProgramDigest,
}

/// What identifies an intervention, and its gate.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) digest: ProgramDigest,
    pub(super) gate: Option<usize>,
}

/// SHA-256 of everything that decides what a part of a program does.
pub(super) type ProgramDigest = [u8; 32];

impl Program {
    /// Compiles a variant. The same edit of the same feature counts once, as in
    /// the notebook, whose mask of features is a set; a different edit of it at
    /// the same tokens is an error.
    pub fn compile(spec: &ProgramSpec<'_>) -> Result<Self, Invalid> {
        let mut program = Self {
            stops: spec.stop_when.to_vec(),
            n_probes: spec.probes.len(),
            telemetry: spec.telemetry,
            ..Self::default()
        };
        for (index, intervention) in spec.interventions.iter().enumerate() {
            let merged = earlier_same(&spec.interventions[..index], intervention)
                .map_err(|e| e.within(&format!("interventions[{index}]")))?;
            program.merged_into.push(merged);
            program.add_intervention(index, intervention, merged.is_some());
        }
        for (index, condition) in spec.stop_when.iter().enumerate() {
            program.add_read(&condition.readout, Purpose::Stop(index));
        }
        for (index, probe) in spec.probes.iter().enumerate() {
            program.add_read(&probe.readout, Purpose::Probe(index));
        }
        Ok(program)
    }

    /// A program that collects activations and edits nothing.
    pub fn capture(hook: HookPoint, pooling: Pooling) -> Self {
        Self {
            capture: Some((hook, pooling)),
            ..Self::default()
        }
    }

    fn add_intervention(&mut self, index: usize, intervention: &Intervention, merged: bool) {
        let Intervention {
            hook,
            edit,
            positions,
            gate,
        } = intervention;
        let gate = gate.as_ref().filter(|_| !merged).map(|gate| {
            let index = self.gates.len();
            self.add_read(&gate.condition.readout, Purpose::Gate(index));
            self.gates.push(CompiledGate {
                digest: digest(&[&gate_identity(gate)]),
                gate: gate.clone(),
            });
            index
        });
        self.interventions.push(Compiled {
            digest: intervention_digest(intervention),
            gate,
        });
        if !merged {
            self.edits.entry(*hook).or_default().push(Entry {
                intervention: index,
                positions: positions.clone(),
                gate,
                row: Row::new(edit),
            });
        }
    }

    fn add_read(&mut self, readout: &Readout, purpose: Purpose) {
        self.reads.entry(readout.hook).or_default().push(Read {
            readout: readout.clone(),
            purpose,
        });
    }

    /// Whether there is anything to do at a hook point.
    pub fn touches(&self, point: HookPoint) -> bool {
        self.edits.contains_key(&point)
            || self.reads.contains_key(&point)
            || self.capture.is_some_and(|(hook, _)| hook == point)
    }

    /// The hook points at which it reads or edits.
    pub(super) fn points(&self) -> impl Iterator<Item = HookPoint> {
        let captured = self.capture.iter().map(|(hook, _)| hook);
        self.edits
            .keys()
            .chain(self.reads.keys())
            .chain(captured)
            .copied()
    }

    /// Whether all that it does at a hook point is to edit, and nothing that is read
    /// decides about it.
    pub(super) fn only_edits(&self, point: HookPoint) -> bool {
        self.reads(point).is_empty()
            && self.capture.is_none_or(|(hook, _)| hook != point)
            && !self.telemetry.edit_norms
            && self.entries(point).iter().all(|entry| entry.gate.is_none())
    }

    /// Whether it leaves the model as it is.
    pub fn is_unsteered(&self) -> bool {
        self.edits.is_empty()
    }

    /// Hook points that are edited, in the order in which the model reaches them.
    pub fn edited(&self) -> impl Iterator<Item = HookPoint> {
        self.edits.keys().copied()
    }

    /// The first hook point at which one of these tokens may be edited.
    pub fn first_edit(&self, tokens: &[Token]) -> Option<HookPoint> {
        let edited = |entry: &Entry| tokens.iter().any(|&t| entry.positions.contains(t));
        let mut points = self.edits.iter();
        points
            .find(|(_, entries)| entries.iter().any(edited))
            .map(|(point, _)| *point)
    }

    /// The first hook point at which something is read at one of these tokens,
    /// of a sequence with this many prompt tokens.
    pub fn first_read(&self, tokens: &[Token], prompt_len: usize) -> Option<HookPoint> {
        let is_read = |read: &Read| match read.purpose {
            Purpose::Gate(_) => true,
            Purpose::Stop(_) => tokens.iter().any(|token| token.generated),
            Purpose::Probe(_) => tokens
                .iter()
                .any(|token| self.is_reported(token, prompt_len)),
        };
        let mut points = self.reads.iter();
        let read = points
            .find(|(_, reads)| reads.iter().any(is_read))
            .map(|(point, _)| *point);
        let captured = self.capture.map(|(hook, _)| hook);
        read.into_iter().chain(captured).min()
    }

    /// Whether a token gets a reading: generated tokens, the last prompt token,
    /// and the whole prompt if asked for.
    pub(super) fn is_reported(&self, token: &Token, prompt_len: usize) -> bool {
        let wanted = self.n_probes > 0 || self.telemetry.edit_norms;
        let last_of_prompt = token.position as usize + 1 == prompt_len;
        wanted && (token.generated || last_of_prompt || self.telemetry.prompt_readings)
    }

    /// Whether every prompt token has to be read for this variant alone.
    pub fn reports_prompt(&self) -> bool {
        let wanted = self.n_probes > 0 || self.telemetry.edit_norms;
        self.capture.is_some() || (wanted && self.telemetry.prompt_readings)
    }

    /// Adds what is done at a token to a hash over everything that decides a
    /// sequence's keys and values: order of interventions does not count.
    pub fn hash_token(&self, token: Token, hasher: &mut Sha256) {
        let mut applied: Vec<(&ProgramDigest, bool)> = self
            .all_entries()
            .map(|entry| {
                let digest = &self.interventions[entry.intervention].digest;
                (
                    digest,
                    entry.gate.is_some(),
                    entry.positions.contains(token),
                )
            })
            // A gate judges every token, also where its edit does not apply.
            .filter(|(_, gated, applies)| *gated || *applies)
            .map(|(digest, _, applies)| (digest, applies))
            .collect();
        applied.sort_unstable();
        for (digest, applies) in applied {
            hasher.update(digest);
            hasher.update([u8::from(applies)]);
        }
    }

    /// The earlier, identical intervention that one was merged into.
    pub fn merged_into(&self, intervention: usize) -> Option<usize> {
        self.merged_into[intervention]
    }

    /// All edits but those that were merged into others.
    pub(super) fn all_entries(&self) -> impl Iterator<Item = &Entry> {
        self.edits.values().flatten()
    }

    pub(super) fn entries(&self, point: HookPoint) -> &[Entry] {
        self.edits.get(&point).map_or(&[], Vec::as_slice)
    }

    pub(super) fn reads(&self, point: HookPoint) -> &[Read] {
        self.reads.get(&point).map_or(&[], Vec::as_slice)
    }
}

/// Everything that decides what an intervention does, except its positions.
fn intervention_digest(intervention: &Intervention) -> ProgramDigest {
    let edit = format!(
        "{} {} {}",
        intervention.hook,
        intervention.payload_digest(),
        intervention.describe()
    );
    let gate = intervention.gate.as_ref().map(gate_identity);
    digest(&[&edit, &gate.unwrap_or_default()])
}

fn gate_identity(gate: &Gate) -> String {
    format!("{} {:?}", gate.condition.digest(), gate.mode)
}

fn digest(parts: &[&str]) -> ProgramDigest {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// Finds an earlier, identical edit of the same feature.
fn earlier_same(
    earlier: &[Intervention],
    intervention: &Intervention,
) -> Result<Option<usize>, Invalid> {
    let Edit::Feature { feature, operation } = &intervention.edit else {
        return Ok(None);
    };
    let digest = feature.digest();
    for (index, other) in earlier.iter().enumerate() {
        let Edit::Feature {
            feature: other_feature,
            operation: other_operation,
        } = &other.edit
        else {
            continue;
        };
        if other_feature.digest() != digest {
            continue;
        }
        let same = operation == other_operation
            && intervention.positions == other.positions
            && intervention.gate == other.gate;
        if same {
            return Ok(Some(index));
        }
        if !intervention.positions.disjoint(&other.positions) {
            let text = format!(
                "{} ({}) is the feature of interventions[{index}], {} ({}), at the same tokens; \
                 one feature takes one edit per token",
                feature.display_name(),
                intervention.describe(),
                other_feature.display_name(),
                other.describe(),
            );
            return Err(Invalid::field("feature", text));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
