//! Reading all features of an SAE once, in parallel: what they find in activations,
//! once or over a whole corpus, and which of them write alike. Numbers and one file; no wire, no store.
//!
//! The file is read in blocks into buffers that stay in a core's cache, so that a scan
//! takes little more than the memory needs to deliver it.

mod encode;
mod gather;
mod similar;
mod top;

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rayon::prelude::*;

use crate::canonical::{Architecture, Layout};

pub use encode::{Encoded, Input, encode};
pub use gather::{Gathered, Rows};
pub use similar::{Neighbour, Query, similar};

/// An SAE's canonical file, open.
#[derive(Debug)]
pub struct SaeFile {
    /// The file.
    pub file: File,
    /// Where things are in it.
    pub layout: Layout,
}

/// Reusable room for a block of rows.
#[derive(Debug, Default)]
struct Buffer {
    values: Vec<f32>,
}

impl Buffer {
    /// Reads little-endian floats.
    fn read(&mut self, file: &File, bytes: &Range<u64>) -> io::Result<&[f32]> {
        let len = usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)?;
        self.values.resize(len / size_of::<f32>(), 0.0);
        file.read_exact_at(bytemuck::cast_slice_mut(&mut self.values), bytes.start)?;
        for value in &mut self.values {
            *value = f32::from_bits(u32::from_le(value.to_bits()));
        }
        Ok(&self.values)
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
