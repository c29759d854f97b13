//! Reading all features of an SAE once, in parallel: what they find in activations, and
//! which of them write alike. Numbers and one file; no wire, no store.
//!
//! The file is read, and checked, in blocks into buffers that stay in a core's cache, so that
//! a scan takes little more than the memory needs to deliver it.

mod encode;
mod similar;
mod top;

use std::{io, ops::Range};

use rayon::prelude::*;

use crate::{
    canonical::{Architecture, Layout},
    vectors::{Object, Shared},
};

pub use encode::{Encoded, Input, encode};
pub use similar::{Neighbour, Query, similar};

const F32: u64 = size_of::<f32>() as u64;

/// An SAE's canonical file, open.
#[derive(Debug, Clone)]
pub struct SaeFile {
    /// The file, all of it on this machine.
    pub object: Shared,
    /// Where things are in it.
    pub layout: Layout,
}

/// Reusable room for rows that follow each other, and the blocks around them.
#[derive(Debug, Default)]
struct Buffer {
    values: Vec<f32>,
    /// Bytes of the object that `values` are.
    held: Range<u64>,
}

impl Buffer {
    /// Reads little-endian floats. A block that two calls in a row want a part of is read once.
    fn read(&mut self, object: &Object, bytes: &Range<u64>) -> io::Result<&[f32]> {
        let index = |len: u64| usize::try_from(len / F32).map_err(io::Error::other);
        let blocks = object.blocks(bytes);
        let held = std::mem::take(&mut self.held);
        let kept = if held.contains(&blocks.start) {
            let kept = index(held.start.abs_diff(blocks.start))?..self.values.len();
            self.values.copy_within(kept.clone(), 0);
            kept.len()
        } else {
            0
        };
        self.values.resize(
            index(blocks.end.saturating_sub(blocks.start))?.max(kept),
            0.0,
        );
        let read = &mut self.values[kept..];
        let start = blocks.start + kept as u64 * F32;
        object.read_blocks(start, bytemuck::cast_slice_mut(read))?;
        for value in read {
            *value = f32::from_bits(u32::from_le(value.to_bits()));
        }
        self.held = blocks.start..blocks.start + self.values.len() as u64 * F32;
        let start = index(bytes.start - blocks.start)?;
        let end = start + index(bytes.end - bytes.start)?;
        let values = self.values.get(start..end);
        values.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl SaeFile {
    fn width(&self) -> usize {
        self.layout.d_in as usize
    }

    fn scalar_count(&self) -> usize {
        self.layout.architecture.scalar_count()
    }

    fn architecture(&self) -> Architecture {
        self.layout.architecture
    }

    /// Consecutive features whose rows make about `bytes` bytes.
    fn blocks(&self, bytes: usize) -> Vec<Range<u32>> {
        let rows = bytes / (self.width() * size_of::<f32>());
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).max(1);
        let starts = (0..self.layout.d_sae).step_by(rows as usize);
        starts
            .map(|start| start..start.saturating_add(rows).min(self.layout.d_sae))
            .collect()
    }

    /// Calls `visit` for every block on some thread, with that thread's state, and returns
    /// the states.
    fn visit<S: Default + Send>(
        &self,
        block_bytes: usize,
        visit: impl Fn(&mut S, Range<u32>) -> io::Result<()> + Sync,
    ) -> io::Result<Vec<S>> {
        let blocks = self.blocks(block_bytes);
        // A few runs of neighbouring blocks for each thread: reads stay sequential, and a
        // thread that is late has little left to do alone.
        let run = blocks
            .len()
            .div_ceil(8 * rayon::current_num_threads())
            .max(1);
        blocks
            .par_chunks(run)
            .map(|run| {
                let mut state = S::default();
                run.iter()
                    .try_for_each(|block| visit(&mut state, block.clone()))?;
                Ok(state)
            })
            .collect()
    }
}
