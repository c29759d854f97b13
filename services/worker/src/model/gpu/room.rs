//! Memory of a step.

use candle_core::Result;
use half::bf16;

use super::{
    FEW_ROWS, GpuDecoder, MOST_SPLITS, SPLIT_ROWS,
    launch::{Address, Buffer},
    scores::{self, Found},
};
use crate::model::{Batch, ModelConfig};

/// Memory of a step, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    ids: Buffer,
    x: Buffer,
    joined: Buffer,
    normed: Buffer,
    added: Buffer,
    qkv: Buffer,
    z: Buffer,
    gate_up: Buffer,
    mlp: Buffer,
    partial: Buffer,
    arrived: Buffer,
    head_in: Buffer,
    logits: Buffer,
    parts: Buffer,
    best: Buffer,
    candidates: Buffer,
    pub(super) touches: Buffer,
    pub(super) tables: Buffer,
}

/// Addresses of the step's memory.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Of tokens or rows.
    pub(super) ids: Address,
    pub(super) x: Address,
    pub(super) joined: Address,
    pub(super) normed: Address,
    pub(super) added: Address,
    pub(super) qkv: Address,
    pub(super) z: Address,
    pub(super) gate_up: Address,
    pub(super) mlp: Address,
    pub(super) partial: Address,
    pub(super) arrived: Address,
    pub(super) head_in: Address,
    pub(super) logits: Address,
    pub(super) parts: Address,
    pub(super) best: Address,
    pub(super) candidates: Address,
    pub(super) touches: Address,
}

impl Room {
    pub(super) fn new(decoder: &mut GpuDecoder, c: &ModelConfig, batch: &Batch) -> Result<Self> {
        let (gpu, b) = (&decoder.gpu, &mut decoder.buffers);
        let n = batch.n_tokens();
        let counts = batch.top_counts();
        let (top, scored) = (counts.len(), batch.logit_rows().len() + counts.len());
        let several = if counts.iter().any(|&n| n > 1) {
            top
        } else {
            0
        };
        let qkv = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
        let split_rows = n.min(SPLIT_ROWS);
        let partial = split_rows * c.n_heads * MOST_SPLITS * (c.head_dim + 2) * size_of::<f32>();
        let row = size_of::<bf16>();
        let gate_up = if n > FEW_ROWS {
            2 * n * c.d_mlp * row
        } else {
            0
        };
        Ok(Self {
            ids: b.ids.room(gpu, n * size_of::<u32>())?,
            x: b.x.room(gpu, n * c.d_model * row)?,
            joined: b.joined.room(gpu, n * c.d_model * row)?,
            normed: b.normed.room(gpu, n * c.d_model * row)?,
            added: b.added.room(gpu, n * c.d_model * row)?,
            qkv: b.qkv.room(gpu, n * qkv * row)?,
            z: b.z.room(gpu, n * c.z_width() * row)?,
            gate_up: b.gate_up.room(gpu, gate_up)?,
            mlp: b.mlp.room(gpu, n * c.d_mlp * row)?,
            partial: b.partial.room(gpu, partial)?,
            arrived: b
                .arrived
                .cleared(gpu, SPLIT_ROWS * attention_blocks(c) * size_of::<u32>())?,
            head_in: b.head_in.room(gpu, scored * c.d_model * row)?,
            logits: b
                .logits
                .room(gpu, scored * c.vocab_size * size_of::<f32>())?,
            parts: b
                .parts
                .room(gpu, top * scores::PARTS * size_of::<Found>())?,
            best: b.best.room(gpu, top * size_of::<Found>())?,
            candidates: b.candidates.room(gpu, scores::candidate_bytes(several))?,
            touches: 0,
        })
    }
}

/// Blocks of attention for a row: two query heads each.
pub(super) fn attention_blocks(c: &ModelConfig) -> usize {
    c.n_kv_heads * (c.n_heads / c.n_kv_heads).div_ceil(2)
}
