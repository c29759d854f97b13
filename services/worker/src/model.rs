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
mod rope;
mod weights;

use candle_core::Tensor;
use steering_proto::HookPoint;

pub use config::{ConfigError, ModelConfig};
pub use decoder::Model;
pub use kv_cache::{KvCache, KvSnapshot};
pub(crate) use load::read_gguf_header;
pub use load::{LoadError, LoadOptions, Precision};
pub use weights::Quantization;

/// Tokens to read in one step: a chunk of each sequence that takes part.
///
/// Activations are laid out flat, `[n_tokens, width]`, chunk after chunk.
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
    /// shared
    pub shared: Option<Shared>,
}
/// stub
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// stub
    pub leader: usize,
    /// stub
    pub layers: usize,
}

/// Which logits of a chunk are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last token's.
    Last,
    /// stub
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
                Logits::From(i) => rows.extend(first + i as u32..first + n),
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

    /// Sees the activations `x`, shape `[n_tokens, width]`, and returns what is
    /// to take their place, if anything.
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
