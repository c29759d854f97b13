//! What the kernels need to know of a step, beside activations: which tokens, where
//! their keys and values are, and the edits of their rows.

use std::{collections::HashMap, sync::Arc};

use candle_core::Result;
use steering_proto::{HookPoint, Site};

use super::launch::{Address, Buffer, Gpu, address};
use crate::model::{Batch, DeviceEdit, EditRule, Hook, KvCache, step::Step};

/// A token of a chunk and the row that holds its activations.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Place {
    pub(super) row: u32,
    span: u32,
    pub(super) position: u32,
    unused: u32,
}

/// Keys and values of a chunk's sequence at one layer.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Span {
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) first: u32,
    pub(super) capacity: u32,
}

/// An edit of one row.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Edit {
    read: Address,
    write: Address,
    rule: EditRule,
}

/// What is to be done at a hook point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    Nothing,
    /// The edits of each row, from this offset on.
    Edits(usize),
    /// Whatever the hook does with the activations.
    Hook,
}

/// The tables of some consecutive hook points, between which no chunk joins.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Indices of the chunks that have rows.
    pub(super) active: Vec<usize>,
    pub(super) n_rows: usize,
    pub(super) places: Vec<Place>,
    work: HashMap<HookPoint, Work>,
    edits: Vec<Edit>,
    /// Edits at each point that has some, in order.
    edited: Vec<(HookPoint, usize)>,
    /// Keeps the edits' vectors alive.
    held: Vec<Arc<DeviceEdit>>,
    bytes: Vec<u8>,
    places_at: usize,
    edits_at: usize,
    base: Address,
}

impl Tables {
    /// For the chunks that have rows in this part of a step.
    pub(super) fn new(batch: &Batch, step: &Step<'_>) -> Self {
        let index: HashMap<usize, u32> = (0u32..)
            .zip(&batch.chunks)
            .map(|(i, chunk)| (chunk.slot, i))
            .collect();
        let mut places = Vec::new();
        let spans = step.spans();
        for span in spans.iter().chain(&step.followers()) {
            let chunk = span.chunk;
            places.extend((0..chunk.tokens.len()).map(|i| Place {
                row: (span.rows.start + i) as u32,
                span: index[&chunk.slot],
                position: (chunk.start + i) as u32,
                unused: 0,
            }));
        }
        let mut tables = Self {
            active: step.active().to_vec(),
            n_rows: spans.last().map_or(0, |span| span.rows.end),
            ..Self::default()
        };
        tables.places_at = tables.push(&places);
        tables.places = places;
        tables
    }

    /// Asks what is to be done at a hook point, which then is one of this part.
    pub(super) fn ask(
        &mut self,
        hook: &dyn Hook,
        point: HookPoint,
        width: usize,
        gpu: &Gpu,
    ) -> Result<()> {
        if !hook.wants(point) {
            return Ok(());
        }
        let Some(edits) = hook.edits(point, &self.active, &gpu.device())? else {
            self.work.insert(point, Work::Hook);
            return Ok(());
        };
        if edits.is_empty() {
            return Ok(());
        }
        if !edits.is_sorted_by_key(|edit| edit.row) || edits[edits.len() - 1].row >= self.n_rows {
            candle_core::bail!("edits at {point} are not of rows in order");
        }
        let mut ranges = vec![0u32; self.n_rows + 1];
        for edit in &edits {
            ranges[edit.row + 1] += 1;
        }
        ranges[0] = self.edits.len() as u32;
        for row in 0..self.n_rows {
            ranges[row + 1] += ranges[row];
        }
        self.edited.push((point, edits.len()));
        for edit in edits {
            let read = address(&edit.edit.vectors);
            if read == 0 || edit.edit.vectors.dims() != [2, width] {
                candle_core::bail!("an edit at {point} is not of {width} numbers on the GPU");
            }
            self.edits.push(Edit {
                read,
                write: read + (width * size_of::<f32>()) as u64,
                rule: edit.edit.rule,
            });
            self.held.push(edit.edit);
        }
        let at = self.push(&ranges);
        self.work.insert(point, Work::Edits(at));
        Ok(())
    }

    /// Adds a table, at an offset that suits every type of them.
    pub(super) fn push<T: bytemuck::Pod>(&mut self, table: &[T]) -> usize {
        let at = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytemuck::cast_slice(table));
        at
    }

    /// Copies the tables to the device.
    pub(super) fn upload(&mut self, gpu: &Gpu, buffer: &mut Buffer) -> Result<()> {
        let edits = std::mem::take(&mut self.edits);
        self.edits_at = self.push(&edits);
        self.edits = edits;
        self.base = buffer.room(gpu, self.bytes.len())?;
        gpu.write(&self.bytes, self.base)
    }

    pub(super) fn at(&self, offset: usize) -> Address {
        self.base + offset as u64
    }

    pub(super) fn places(&self) -> Address {
        self.at(self.places_at)
    }

    pub(super) fn edits(&self) -> Address {
        self.at(self.edits_at)
    }

    pub(super) fn n_edits(&self) -> usize {
        self.edits.len()
    }

    pub(super) fn work(&self, point: HookPoint) -> Work {
        self.work.get(&point).copied().unwrap_or(Work::Nothing)
    }

    /// Tells the hook what came of the edits.
    pub(super) fn report(&self, hook: &mut dyn Hook, edited: &[crate::model::Edited]) {
        let mut rest = edited;
        for &(point, n) in &self.edited {
            let (here, behind) = rest.split_at(n.min(rest.len()));
            hook.edited(point, &self.active, here);
            rest = behind;
        }
    }
}

/// Makes room for a step's keys and values; where they are, layer after layer, for
/// each chunk.
pub(super) fn spans(batch: &Batch, cache: &mut KvCache, n_layers: usize) -> Result<Vec<Span>> {
    let n_chunks = batch.chunks.len();
    let mut spans = vec![Span::default(); n_layers * n_chunks];
    for (index, chunk) in batch.chunks.iter().enumerate() {
        for layer in 0..n_layers {
            cache.make_room(chunk.slot, layer, chunk.start, chunk.tokens.len())?;
            let ([keys, values], first, capacity) = cache.place(chunk.slot, layer);
            spans[layer * n_chunks + index] = Span {
                keys,
                values,
                first: first as u32,
                capacity: capacity as u32,
            };
        }
    }
    Ok(spans)
}

/// The hook points of a model in the order in which a token passes them.
pub(super) fn points(n_layers: usize) -> impl Iterator<Item = HookPoint> {
    const SITES: [Site; 5] = [
        Site::ResidPre,
        Site::Z,
        Site::AttnOut,
        Site::MlpOut,
        Site::ResidPost,
    ];
    (0..n_layers).flat_map(|layer| SITES.map(|site| HookPoint { layer, site }))
}
