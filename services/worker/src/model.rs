//! The language model: one config-driven decoder for all families.
//!
//! Synchronous and single-threaded from the outside: whoever calls
//! [`Model::forward`] owns the device. The key-value cache is passed in, not
//! owned, and the [`Hook`] is called at every hook point it asks for.

mod attention;
pub mod config;
mod decoder;
mod kernels;
pub(crate) mod kv_cache;
mod layers;
mod load;
mod matrix;
mod rope;
mod step;
mod weights;

use candle_core::Tensor;
use steering_proto::HookPoint;

pub use config::{ConfigError, ModelConfig};
pub use decoder::Model;
pub use kernels::argmax;
pub use kernels::compute_on_this_thread;
pub(crate) use kernels::{at_least_kth, log_sum_exp};
pub use kv_cache::{KvCache, KvSnapshot};
pub(crate) use load::read_gguf_header;
pub use load::{LoadError, LoadOptions, Precision};
pub use weights::Quantization;

/// Tokens to read in one step: a chunk of each sequence that takes part.
///
/// Activations are laid out flat, `[n_tokens, width]`, chunk after chunk. On the
/// CPU, what a token gets is the same bit for bit whatever else is in the batch
/// and however its sequence is cut into chunks.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// At most one chunk per slot.
    pub chunks: Vec<Chunk>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The sequence's place in the cache.
    pub slot: usize,
    /// Position of the first token; all earlier ones are in the cache.
    pub start: usize,
    /// The tokens, at least one.
    pub tokens: Vec<u32>,
    /// Which tokens' logits are needed.
    pub logits: Logits,
    /// What an earlier chunk computes for this one too.
    pub shared: Option<Shared>,
}

/// Work that a chunk leaves to an earlier one, which has the same tokens at the
/// same positions after the same past, and the same activations so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Index of an earlier chunk of the batch that shares nothing itself.
    pub leader: usize,
    /// Leading layers whose activations equal the leader's, `1..=n_layers`. The
    /// chunk's rows join right before `blocks.{layers - 1}.hook_resid_post`.
    pub layers: usize,
}

/// Which logits of a chunk are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last token's.
    Last,
    /// Those of this token of the chunk, counted from 0, and of all behind it.
    From(usize),
}

impl Batch {
    /// Tokens in all chunks.
    pub fn n_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Flat rows whose logits are needed, in order.
    pub(crate) fn logit_rows(&self) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut first = 0u32;
        for chunk in &self.chunks {
            let n = chunk.tokens.len() as u32;
            match chunk.logits {
                Logits::None => {}
                Logits::Last => rows.push(first + n - 1),
                Logits::From(token) => rows.extend(first + (token as u32).min(n)..first + n),
            }
            first += n;
        }
        rows
    }
}

/// Reads and edits activations while the model runs.
pub trait Hook {
    /// Whether [`Hook::apply`] is to be called at a hook point in this step.
    fn wants(&self, point: HookPoint) -> bool;

    /// Sees activations `x`, shape `[n_rows, width]`, and returns what is to take
    /// their place, if anything. `chunks` are the indices of the batch's chunks
    /// whose tokens the rows are, in order: not all while some are
    /// [shared](Chunk::shared).
    fn apply(
        &mut self,
        point: HookPoint,
        x: &Tensor,
        chunks: &[usize],
    ) -> candle_core::Result<Option<Tensor>>;
}

/// A hook that leaves the model as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl Hook for NoHook {
    fn wants(&self, _: HookPoint) -> bool {
        false
    }

    fn apply(
        &mut self,
        _: HookPoint,
        _: &Tensor,
        _: &[usize],
    ) -> candle_core::Result<Option<Tensor>> {
        Ok(None)
    }
}
