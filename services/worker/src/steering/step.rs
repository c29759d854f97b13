//! The programs of all sequences of one step, as one hook.

use candle_core::{DType, Result, Tensor};
use steering_proto::{HookPoint, intervention::Token};

use super::{Program, Tally, apply::norm};
use crate::model::Hook;

/// A sequence's part in one step.
#[derive(Debug)]
pub struct Participant<'a> {
    /// Its interventions.
    pub program: &'a Program,
    /// One tally per intervention.
    pub tallies: &'a mut [Tally],
    /// Its tokens in this step; participants follow each other in the batch.
    pub tokens: Vec<Token>,
}

/// Applies every participant's program to its own tokens, and to no others.
#[derive(Debug)]
pub struct StepHook<'a> {
    participants: Vec<Participant<'a>>,
}

impl<'a> StepHook<'a> {
    /// One participant per chunk of the batch, in the same order.
    pub fn new(participants: Vec<Participant<'a>>) -> Self {
        Self { participants }
    }
}

impl Hook for StepHook<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.participants
            .iter()
            .any(|participant| participant.program.touches(point))
    }

    /// Rows without an edit come back bit for bit: every dtype of the model
    /// converts to f32 and back without loss.
    fn apply(&mut self, point: HookPoint, x: &Tensor, chunks: &[usize]) -> Result<Option<Tensor>> {
        let (n, width) = x.dims2()?;
        let mut values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut first = 0;
        let mut changed = false;
        for &chunk in chunks {
            let participant = &mut self.participants[chunk];
            let len = participant.tokens.len();
            let rows = &mut values[first * width..(first + len) * width];
            changed |= participant.apply(point, rows, width);
            first += len;
        }
        if !changed {
            return Ok(None);
        }
        Tensor::from_vec(values, (n, width), x.device())?
            .to_dtype(x.dtype())
            .map(Some)
    }
}

impl Participant<'_> {
    /// Edits the activations of this sequence's tokens, `[n, width]`. Returns
    /// whether anything changed.
    fn apply(&mut self, point: HookPoint, rows: &mut [f32], width: usize) -> bool {
        let entries = self.program.entries(point);
        if entries.is_empty() {
            return false;
        }
        let mut any = false;
        let mut delta = vec![0.0f32; width];
        for (x, &token) in rows.chunks_exact_mut(width).zip(&self.tokens) {
            delta.fill(0.0);
            let mut changed = false;
            let mut x_norm = None;
            for entry in entries.iter().filter(|e| e.positions.contains(token)) {
                let delta_norm = entry.row.add_delta(x, &mut delta);
                let x_norm = *x_norm.get_or_insert_with(|| norm(x));
                let tally = &mut self.tallies[entry.intervention];
                tally.positions_touched += 1;
                if delta_norm > 0.0 {
                    changed = true;
                    tally.positions_changed += 1;
                    tally.relative_delta_sum +=
                        f64::from(delta_norm / x_norm.max(f32::MIN_POSITIVE));
                }
            }
            if changed {
                any = true;
                for (x, d) in x.iter_mut().zip(&delta) {
                    *x += d;
                }
            }
        }
        any
    }
}
