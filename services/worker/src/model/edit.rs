//! Edits of activation vectors as a device makes them by itself, and what came of them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

/// What an edit does, as numbers that kernels read. Which fields count depends
/// on `kind` and its parts; the others are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct EditRule {
    /// 0: an SAE feature's; 1: `value` times the written vector; 2: the same times
    /// ‖x‖; 3: the projection on the written vector, a unit vector, is kept
    /// between `value` and `upper`.
    pub kind: u32,
    /// Of a feature's activation: 0 set, 1 at least, 2 at most, 3 times, 4 plus `value`.
    pub operation: u32,
    /// 0: ReLU; 1: JumpReLU with `threshold`; 2: gated, with the gate's bias in `threshold`.
    pub activation: u32,
    /// In front of the encoder: 0 none, 1 constant norm, 2 layer norm.
    pub normalization: u32,
    /// Depends on `kind`.
    pub value: f32,
    /// Upper bound of a projection.
    pub upper: f32,
    /// Of the encoder.
    pub bias: f32,
    /// Of the activation.
    pub threshold: f32,
    /// Of a gated activation.
    pub magnitude_scale: f32,
    /// Of a gated activation.
    pub magnitude_bias: f32,
    /// ‖written vector‖.
    pub write_norm: f32,
    /// Sum of the vector that is read.
    pub read_sum: f32,
}

/// An edit on a device.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "what GPUs read"))]
pub struct DeviceEdit {
    pub(super) rule: EditRule,
    /// `[2, width]` in f32: what is read, what is written.
    pub(super) vectors: Tensor,
}

impl DeviceEdit {
    /// Copies an edit's vectors, of one length, to a device.
    pub fn new(rule: EditRule, read: &[f32], write: &[f32], device: &Device) -> Result<Self> {
        let vectors = [read, write].concat();
        let vectors = Tensor::from_vec(vectors, (2, write.len()), device)?;
        Ok(Self { rule, vectors })
    }
}

/// An edit of one row of a step's activations.
#[derive(Debug, Clone)]
pub struct RowEdit {
    /// The row.
    pub row: usize,
    /// The edit.
    pub edit: Arc<DeviceEdit>,
}

/// What came of an edit.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Edited {
    /// ‖Δ‖.
    pub delta_norm: f32,
    /// ‖x‖ before all edits of the hook point.
    pub norm: f32,
}
