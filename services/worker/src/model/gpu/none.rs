//! A build without CUDA: there is no GPU path.

use candle_core::{Device, Result, Tensor};

use super::{Batch, Hook, KvCache, Model, Scores};

/// There is none.
#[derive(Debug)]
pub(super) enum GpuDecoder {}

impl GpuDecoder {
    pub(super) fn of(_: &mut Model) -> Result<Option<Self>> {
        Ok(None)
    }

    pub(super) fn forward(
        &mut self,
        _: &Model,
        _: &Batch,
        _: &mut KvCache,
        _: &mut dyn Hook,
        _: &mut Scores,
    ) -> Result<()> {
        match *self {}
    }
}

/// Where a tensor's elements are on a GPU.
pub(super) fn address(_: &Tensor) -> u64 {
    0
}

/// A CUDA device; the tensor library says that it has none.
pub fn device(ordinal: usize) -> Result<Device> {
    Device::new_cuda(ordinal)
}
