//! What an SAE finds in many activations, gathered by feature.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use steering_proto::payload::InputNormalization;

use super::{
    SaeFile,
    encode::{BLOCK_BYTES, encode_blocks},
};
use crate::statistics::{Accumulator, Place};

/// Activations to count.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Row-major, as wide as the SAE's rows.
    pub activations: &'a [f32],
    /// In front of the encoder.
    pub normalization: InputNormalization,
    /// Number of the text and of the token of each row, in order.
    pub places: &'a [(u32, u32)],
}

/// What was gathered of all features of an SAE.
#[derive(Debug)]
pub struct Gathered {
    /// By blocks of features: one thread is in a block at a time.
    blocks: Vec<Mutex<Vec<Accumulator>>>,
    /// Features of all blocks but the last.
    block_len: usize,
}

impl Gathered {
    /// Nothing yet.
    pub fn new(sae: &SaeFile) -> Self {
        let blocks = sae.blocks(BLOCK_BYTES);
        let block = |len| Mutex::new(vec![Accumulator::default(); len]);
        Self {
            block_len: blocks.first().map_or(1, ExactSizeIterator::len),
            blocks: blocks
                .into_iter()
                .map(|features| block(features.len()))
                .collect(),
        }
    }

    /// Encodes rows with the whole SAE and counts what fires.
    pub fn add(&self, sae: &SaeFile, rows: Rows<'_>) -> io::Result<()> {
        let Rows {
            activations,
            normalization,
            places,
        } = rows;
        encode_blocks(sae, activations, normalization, |(): &mut (), block| {
            let Some(features) = self.blocks.get(block.first as usize / self.block_len) else {
                return;
            };
            let mut features = features.lock().unwrap_or_else(PoisonError::into_inner);
            for (row, &(text, token)) in block.rows().zip(places) {
                for (place, activation) in row {
                    features[place].add(Place {
                        activation,
                        text,
                        token,
                    });
                }
            }
        })?;
        Ok(())
    }

    /// Calls `visit` with every feature's index and what was gathered of it, by index.
    pub fn each<E>(
        &self,
        mut visit: impl FnMut(u32, &Accumulator) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut index = 0;
        for block in &self.blocks {
            for feature in block.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                visit(index, feature)?;
                index += 1;
            }
        }
        Ok(())
    }
}
