//! What the kernels take: the structs of `kernels/`.

use super::launch::{Address, Parameters};

/// Of the simple passes over rows.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Simple {
    pub(super) from: Address,
    pub(super) with: Address,
    pub(super) out: Address,
    pub(super) width: u32,
    pub(super) kind: u32,
    pub(super) factor: f32,
    pub(super) n: u32,
}

/// Residual sums, edits and norms.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Boundary {
    pub(super) x: Address,
    pub(super) added: Address,
    pub(super) normed: Address,
    pub(super) post_norm: Address,
    pub(super) norm: Address,
    pub(super) edits_of_added: Address,
    pub(super) edits_of_sum: Address,
    pub(super) edits_of_next: Address,
    pub(super) edits: Address,
    pub(super) touches: Address,
    pub(super) width: u32,
    pub(super) eps: f32,
    pub(super) scale_in_float: u32,
    pub(super) only_added: u32,
}

/// Products with few rows.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Product {
    pub(super) weights: Address,
    pub(super) bias: Address,
    pub(super) x: Address,
    pub(super) out: Address,
    pub(super) rows: u32,
    pub(super) inner: u32,
    pub(super) m: u32,
    pub(super) activation: u32,
    pub(super) cap: f32,
    pub(super) unused: u32,
}

/// Rotary embeddings, and keys and values into the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Rotate {
    pub(super) qkv: Address,
    pub(super) places: Address,
    pub(super) spans: Address,
    pub(super) frequencies: Address,
    pub(super) q_norm: Address,
    pub(super) k_norm: Address,
    pub(super) n_rows: u32,
    pub(super) n_heads: u32,
    pub(super) n_kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) eps: f32,
    pub(super) scale_in_float: u32,
    pub(super) interleaved: u32,
    pub(super) unused: u32,
}

/// Attention.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Attention {
    pub(super) qkv: Address,
    pub(super) out: Address,
    pub(super) places: Address,
    pub(super) spans: Address,
    pub(super) partial: Address,
    pub(super) arrived: Address,
    pub(super) n_heads: u32,
    pub(super) n_kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) scale: f32,
    pub(super) cap: f32,
    pub(super) window: u32,
    pub(super) split: u32,
    pub(super) unused: u32,
}

/// The greatest logits of rows.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Candidates {
    pub(super) logits: Address,
    pub(super) best: Address,
    pub(super) wanted: Address,
    pub(super) out: Address,
    pub(super) found: Address,
    pub(super) width: u32,
    pub(super) room: u32,
}

impl Parameters for Candidates {}
impl Parameters for Simple {}
impl Parameters for Boundary {}
impl Parameters for Product {}
impl Parameters for Rotate {}
impl Parameters for Attention {}
