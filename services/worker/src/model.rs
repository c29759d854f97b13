//! The language model: one config-driven decoder for all families.
//!
//! Synchronous and single-threaded from the outside: whoever calls
//! [`Model::forward`] owns the device. The key-value cache is passed in, not
//! owned, and the [`Hook`] is called at every hook point it asks for.

mod attention;
pub mod config;
mod decoder;
mod edit;
#[cfg_attr(not(feature = "cuda"), path = "model/gpu/none.rs")]
mod gpu;
mod kernels;
pub(crate) mod kv_cache;
mod layers;
mod load;
mod matrix;
mod rope;
mod step;
mod weights;

use candle_core::{Device, Tensor};
use steering_proto::HookPoint;

pub use config::{ConfigError, ModelConfig};
pub use decoder::Model;
pub use edit::{DeviceEdit, EditRule, Edited, RowEdit};
pub use gpu::device as cuda_device;
pub use kernels::argmax;
pub use kernels::compute_on_this_thread;
pub(crate) use kernels::{at_least_kth, log_sum_exp};
pub use kv_cache::{KvCache, KvSnapshot};
pub(crate) use load::read_gguf_header;
pub use load::{LoadError, LoadOptions, Precision};
pub use weights::Quantization;

/// Bytes of a model's matrices up to which every core of many machines finds them in a
/// cache. What bounds larger ones, to bring the weights from memory, doesn't bound these.
const SMALL: usize = 32 << 20;

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
    /// Of the last token's, so many of the greatest, and whatever is as great; not 0. Of
    /// one, the first will do.
    Top(u32),
}

/// What a step makes of its tokens.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// `[rows, vocab_size]`: a row for each token whose logits the batch asks for.
    pub logits: Vec<f32>,
    /// For each chunk that asks for [`Logits::Top`], in order.
    pub top: Vec<Top>,
}

/// The greatest of a token's logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Top {
    /// Token ids and logits: those asked for, in no order, and maybe others.
    pub candidates: Vec<(u32, f32)>,
    /// ln Σ exp over all logits.
    pub log_sum_exp: f32,
}

impl Batch {
    /// Tokens in all chunks.
    pub fn n_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }

    /// Flat rows whose logits are needed, in order.
    pub(crate) fn logit_rows(&self) -> Vec<u32> {
        self.rows(|logits, n| match logits {
            Logits::None | Logits::Top(_) => n..n,
            Logits::Last => n - 1..n,
            Logits::From(token) => (token as u32).min(n)..n,
        })
    }

    /// Flat rows whose greatest logits are needed, in order.
    pub(crate) fn top_rows(&self) -> Vec<u32> {
        self.rows(|logits, n| match logits {
            Logits::Top(_) => n - 1..n,
            Logits::None | Logits::Last | Logits::From(_) => n..n,
        })
    }

    /// How many of the greatest logits are needed of each of [`Self::top_rows`].
    pub(crate) fn top_counts(&self) -> Vec<u32> {
        let count = |chunk: &Chunk| match chunk.logits {
            Logits::Top(n) => Some(n),
            Logits::None | Logits::Last | Logits::From(_) => None,
        };
        self.chunks.iter().filter_map(count).collect()
    }

    /// Flat rows of the tokens that are picked of each chunk, by what it asks for and
    /// how many tokens it has.
    fn rows(&self, pick: impl Fn(Logits, u32) -> std::ops::Range<u32>) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut first = 0u32;
        for chunk in &self.chunks {
            let n = chunk.tokens.len() as u32;
            rows.extend(pick(chunk.logits, n).map(|row| first + row));
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

    /// The edits of the chunks' rows, row after row, if [`Hook::apply`] would do no
    /// more than those: the device then makes them where the activations are.
    fn edits(
        &self,
        point: HookPoint,
        chunks: &[usize],
        device: &Device,
    ) -> candle_core::Result<Option<Vec<RowEdit>>> {
        let _ = (point, chunks, device);
        Ok(None)
    }

    /// Learns what came of [`Hook::edits`], one by one: at the end of the step, or
    /// earlier, but maybe after later hook points were seen.
    fn edited(&mut self, point: HookPoint, chunks: &[usize], edited: &[Edited]) {
        let _ = (point, chunks, edited);
    }
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
