//! Which chunks of a batch are computed, layer by layer.

use std::ops::Range;

use candle_core::{Result, bail};

use super::{Batch, Chunk};

/// A batch on its way through the layers.
///
/// Chunks that share an earlier chunk's work are *followers*: they have no rows
/// until they [join](Self::join).
#[derive(Debug)]
pub(super) struct Step<'a> {
    batch: &'a Batch,
    /// Chunks that have rows, ascending.
    active: Vec<usize>,
}

/// A chunk and the flat rows with its activations: for a follower, its leader's.
#[derive(Debug)]
pub(super) struct Span<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) rows: Range<usize>,
}

impl<'a> Step<'a> {
    /// The first layer's step. Refuses a batch that contradicts itself.
    pub(super) fn new(batch: &'a Batch, n_layers: usize) -> Result<Self> {
        for (index, chunk) in batch.chunks.iter().enumerate() {
            if chunk.tokens.is_empty() {
                bail!("chunk {index} has no tokens");
            }
            let Some(shared) = chunk.shared else {
                continue;
            };
            if shared.leader >= index {
                bail!("chunk {index} follows chunk {}", shared.leader);
            }
            let leader = &batch.chunks[shared.leader];
            if leader.shared.is_some() {
                bail!("chunk {index} follows a follower");
            }
            if (leader.start, &leader.tokens) != (chunk.start, &chunk.tokens) {
                bail!("chunk {index} differs from chunk {}", shared.leader);
            }
            if !(1..=n_layers).contains(&shared.layers) {
                bail!(
                    "chunk {index} shares {} of {n_layers} layers",
                    shared.layers
                );
            }
        }
        let active = (0..batch.chunks.len())
            .filter(|&index| batch.chunks[index].shared.is_none())
            .collect();
        Ok(Self { batch, active })
    }

    /// Indices of the chunks that have rows, in the rows' order.
    pub(super) fn active(&self) -> &[usize] {
        &self.active
    }

    /// The chunks that have rows, in order.
    pub(super) fn spans(&self) -> Vec<Span<'a>> {
        let mut first = 0;
        self.active
            .iter()
            .map(|&index| {
                let chunk = &self.batch.chunks[index];
                let rows = first..first + chunk.tokens.len();
                first = rows.end;
                Span { chunk, rows }
            })
            .collect()
    }

    /// The chunks that have no rows yet.
    pub(super) fn followers(&self) -> Vec<Span<'a>> {
        if self.active.len() == self.batch.chunks.len() {
            return Vec::new();
        }
        let spans = self.spans();
        let waiting = |index: &usize| self.active.binary_search(index).is_err();
        (0..self.batch.chunks.len())
            .filter(waiting)
            .filter_map(|index| {
                let chunk = &self.batch.chunks[index];
                let leader = self.active.binary_search(&chunk.shared?.leader).ok()?;
                let rows = spans[leader].rows.clone();
                Some(Span { chunk, rows })
            })
            .collect()
    }

    /// Lets the followers in that share exactly `layers` layers. Returns, if
    /// there are any, the row that each row of the new order is copied from.
    pub(super) fn join(&mut self, layers: usize) -> Option<Vec<u32>> {
        let joins = |chunk: &Chunk| chunk.shared.is_some_and(|shared| shared.layers == layers);
        if !self.batch.chunks.iter().any(joins) {
            return None;
        }
        let spans = self.spans();
        let (mut active, mut rows) = (Vec::new(), Vec::new());
        for (index, chunk) in self.batch.chunks.iter().enumerate() {
            let from = match chunk.shared {
                Some(shared) if shared.layers == layers => shared.leader,
                _ => index,
            };
            if let Ok(from) = self.active.binary_search(&from) {
                active.push(index);
                rows.extend(spans[from].rows.clone().map(|row| row as u32));
            }
        }
        self.active = active;
        Some(rows)
    }
}
