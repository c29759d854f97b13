//! Reading all features of an SAE once, in parallel: what they find in activations,
//! once or over a whole corpus, and which of them write alike. Numbers and one file; no wire, no store.
//!
//! The numbers are taken where the system keeps the file, after a check of each block now and
//! then (`Object::view`), so that a scan takes little more than the memory needs to deliver it.

mod encode;
mod gather;
mod similar;
mod top;

use std::{io, ops::Range};

use rayon::prelude::*;

use crate::{
    canonical::{Architecture, Layout},
    vectors::Shared,
};

pub use encode::{Encoded, Input, encode};
pub use gather::{Gathered, Rows};
pub use similar::{Neighbour, Query, similar};

// Objects are used in place.
const _: () = assert!(cfg!(target_endian = "little"));

/// An SAE's canonical file, open.
#[derive(Debug, Clone)]
pub struct SaeFile {
    /// The file, all of it on this machine.
    pub object: Shared,
    /// Where things are in it.
    pub layout: Layout,
}

impl SaeFile {
    fn width(&self) -> usize {
        self.layout.d_in as usize
    }

    fn scalar_count(&self) -> usize {
        self.layout.architecture.scalar_count()
    }

    /// Floats of the file. `room` is for checking them.
    fn floats(&self, bytes: &Range<u64>, room: &mut Vec<u8>) -> io::Result<&[f32]> {
        let bytes = self.object.view(bytes, room)?;
        bytemuck::try_cast_slice(bytes).map_err(|error| io::Error::other(error.to_string()))
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
