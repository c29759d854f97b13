//! The programs of all sequences of one step, as one hook.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Result, Tensor};
use steering_proto::{
    HookPoint,
    intervention::Token,
    readout::{Readout, Source},
};

use super::{
    Program, SteeringState,
    feature::activate,
    math::{dot, norm},
    program::{Entry, Purpose},
    state::Touch,
};
use crate::model::{Edited, Hook, RowEdit};

/// A sequence's part in one step.
#[derive(Debug)]
pub struct Participant<'a> {
    program: &'a Program,
    state: &'a mut SteeringState,
    tokens: Vec<Token>,
}

impl<'a> Participant<'a> {
    /// A sequence that reads `tokens` in this step.
    pub fn new(program: &'a Program, state: &'a mut SteeringState, tokens: Vec<Token>) -> Self {
        state.begin_step(program, &tokens);
        Self {
            program,
            state,
            tokens,
        }
    }
}

/// Applies every participant's program to its own tokens, and to no others.
#[derive(Debug)]
pub struct StepHook<'a> {
    participants: Vec<Participant<'a>>,
    /// Where any of them reads or edits.
    points: BTreeSet<HookPoint>,
}

impl<'a> StepHook<'a> {
    /// One participant per chunk of the batch, in the same order.
    pub fn new(participants: Vec<Participant<'a>>) -> Self {
        let points = participants.iter().flat_map(|p| p.program.points());
        Self {
            points: points.collect(),
            participants,
        }
    }
}

impl Hook for StepHook<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.points.contains(&point)
    }

    /// Rows without an edit come back bit for bit: every dtype of the model
    /// converts to f32 and back without loss.
    fn apply(&mut self, point: HookPoint, x: &Tensor, chunks: &[usize]) -> Result<Option<Tensor>> {
        let touched = |&chunk: &usize| self.participants[chunk].program.touches(point);
        if !chunks.iter().any(touched) {
            return Ok(None);
        }
        let (n, width) = x.dims2()?;
        let mut values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut delta = vec![0.0f32; width];
        let mut first = 0;
        let mut changed = false;
        for &chunk in chunks {
            let participant = &mut self.participants[chunk];
            let len = participant.tokens.len();
            if participant.program.touches(point) {
                let rows = &mut values[first * width..(first + len) * width];
                changed |= participant.apply(point, rows, &mut delta);
            }
            first += len;
        }
        if !changed {
            return Ok(None);
        }
        Tensor::from_vec(values, (n, width), x.device())?
            .to_dtype(x.dtype())
            .map(Some)
    }

    fn edits(
        &self,
        point: HookPoint,
        chunks: &[usize],
        device: &Device,
    ) -> Result<Option<Vec<RowEdit>>> {
        let mut edits = Vec::new();
        let mut first = 0;
        for &chunk in chunks {
            let participant = &self.participants[chunk];
            let program = participant.program;
            if program.touches(point) && !program.only_edits(point) {
                return Ok(None);
            }
            for (index, entry) in entries(program, &participant.tokens, point) {
                edits.push(RowEdit {
                    row: first + index,
                    edit: entry.row.on_device(device)?,
                });
            }
            first += participant.tokens.len();
        }
        Ok(Some(edits))
    }

    fn edited(&mut self, point: HookPoint, chunks: &[usize], edited: &[Edited]) {
        let mut edited = edited.iter();
        for &chunk in chunks {
            let Participant {
                program,
                state,
                tokens,
            } = &mut self.participants[chunk];
            for (index, entry) in entries(program, tokens, point) {
                let Some(Edited { delta_norm, norm }) = edited.next() else {
                    return;
                };
                state.touches[entry.intervention].push(Touch {
                    position: tokens[index].position,
                    changed: *delta_norm > 0.0,
                    relative_delta: delta_norm / norm.max(f32::MIN_POSITIVE),
                });
            }
        }
    }
}

/// The ungated edits of tokens at a hook point, token after token.
fn entries<'a>(
    program: &'a Program,
    tokens: &'a [Token],
    point: HookPoint,
) -> impl Iterator<Item = (usize, &'a Entry)> {
    let entries = program.entries(point);
    tokens.iter().enumerate().flat_map(move |(index, token)| {
        let applies = move |entry: &&Entry| entry.positions.contains(*token);
        entries.iter().filter(applies).map(move |e| (index, e))
    })
}

impl Participant<'_> {
    /// Reads and edits the activations of this sequence's tokens, `[n, width]`;
    /// `delta` is room for one row. Returns whether anything changed.
    fn apply(&mut self, point: HookPoint, rows: &mut [f32], delta: &mut [f32]) -> bool {
        let mut any = false;
        let width = delta.len();
        for (index, x) in rows.chunks_exact_mut(width).enumerate() {
            self.read(point, index, x);
            if let Some(relative_norm) = self.edit(point, index, x, delta) {
                any = true;
                if self.program.telemetry.edit_norms
                    && let Some(reading) = self.state.reading(index)
                {
                    reading.edit_norms.push((point, relative_norm));
                }
            }
            self.read_again(point, index, x);
        }
        any
    }

    /// Everything that is read before the edits.
    fn read(&mut self, point: HookPoint, index: usize, x: &[f32]) {
        let token = self.tokens[index];
        if let Some((hook, pooling)) = self.program.capture
            && hook == point
        {
            self.state.collect(pooling, token, x);
        }
        for read in self.program.reads(point) {
            match read.purpose {
                Purpose::Gate(gate) => {
                    let spec = &self.program.gates[gate].gate;
                    let fired = spec.condition.fires(value(&read.readout, x));
                    self.state.gates[gate].judge(token.position, fired, spec.mode);
                }
                Purpose::Stop(stop) if token.generated => {
                    if self.program.stops[stop].fires(value(&read.readout, x)) {
                        self.state.stop(stop);
                    }
                }
                Purpose::Stop(_) => {}
                Purpose::Probe(probe) => {
                    if let Some(reading) = self.state.reading(index) {
                        reading.before[probe] = value(&read.readout, x);
                    }
                }
            }
        }
    }

    /// Probes after the edits.
    fn read_again(&mut self, point: HookPoint, index: usize, x: &[f32]) {
        let Some(reading) = self.state.reading(index) else {
            return;
        };
        for read in self.program.reads(point) {
            if let Purpose::Probe(probe) = read.purpose {
                reading.after[probe] = value(&read.readout, x);
            }
        }
    }

    /// Applies the edits of a hook point to one token. All read `x` as it was
    /// before any of them. Returns ‖Δ‖ / ‖x‖ if anything changed.
    fn edit(
        &mut self,
        point: HookPoint,
        index: usize,
        x: &mut [f32],
        delta: &mut [f32],
    ) -> Option<f32> {
        let token = self.tokens[index];
        let (gates, touches) = (&self.state.gates, &mut self.state.touches);
        let applies = |entry: &&Entry| {
            entry.positions.contains(token)
                && entry.gate.is_none_or(|gate| gates[gate].is_open(index))
        };
        let mut x_norm = None;
        let mut changed = false;
        for entry in self.program.entries(point).iter().filter(applies) {
            let x_norm = *x_norm.get_or_insert_with(|| {
                delta.fill(0.0);
                norm(x).max(f32::MIN_POSITIVE)
            });
            let delta_norm = entry.row.add_delta(x, delta);
            changed |= delta_norm.is_some();
            touches[entry.intervention].push(Touch {
                position: token.position,
                changed: delta_norm.is_some(),
                relative_delta: (delta_norm.unwrap_or(0.0) / f64::from(x_norm)) as f32,
            });
        }
        let x_norm = x_norm.filter(|_| changed)?;
        for (x, d) in x.iter_mut().zip(&*delta) {
            *x += d;
        }
        Some(norm(delta) / x_norm)
    }
}

/// A readout's value for one activation vector.
fn value(readout: &Readout, x: &[f32]) -> f32 {
    match &readout.source {
        Source::Feature(feature) => activate(feature, x).f,
        Source::Direction { vector, bias } => dot(x, &vector.values) + bias,
    }
}
