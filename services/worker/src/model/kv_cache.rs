//! Keys and values of every live sequence, by slot.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::ModelConfig;

/// Positions a slot's tensors grow by at least.
const GROWTH: usize = 64;

/// Slots, each with the keys and values of one sequence. A slot's memory grows
/// with its sequence and is freed with it.
#[derive(Debug)]
pub struct KvCache {
    slots: Vec<Slot>,
    shape: Shape,
}

#[derive(Debug, Clone)]
struct Shape {
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    device: Device,
}

#[derive(Debug, Default)]
struct Slot {
    /// One per layer; empty until first used.
    layers: Vec<LayerCache>,
}

/// Keys and values of one sequence at one layer, `[n_kv_heads, capacity, head_dim]`.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// stub
#[derive(Debug)]
pub struct KvSnapshot;
impl KvSnapshot {
    /// stub
    pub fn len(&self) -> usize {
        0
    }
    /// stub
    pub fn bytes(&self) -> usize {
        0
    }
    /// stub
    pub fn covers(&self, _: usize) -> bool {
        false
    }
}
impl KvCache {
    /// stub
    pub fn snapshot(&self, _: usize, _: usize) -> Result<KvSnapshot> {
        Ok(KvSnapshot)
    }
    /// stub
    pub fn take(&mut self, _: usize) -> KvSnapshot {
        KvSnapshot
    }
    /// stub
    pub fn restore(&mut self, _: usize, _: &KvSnapshot, _: usize) -> Result<()> {
        Ok(())
    }
    /// A cache with `n_slots` empty slots.
    pub fn new(config: &ModelConfig, n_slots: usize, dtype: DType, device: &Device) -> Self {
        Self {
            slots: (0..n_slots).map(|_| Slot::default()).collect(),
            shape: Shape {
                n_layers: config.layers.len(),
                n_kv_heads: config.n_kv_heads,
                head_dim: config.head_dim,
                dtype,
                device: device.clone(),
            },
        }
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// Empties a slot and frees its memory.
    pub fn clear(&mut self, slot: usize) {
        self.slots[slot] = Slot::default();
    }

    /// Stores keys and values, each `[n_kv_heads, n, head_dim]`, from position
    /// `start` on.
    pub(super) fn store(
        &mut self,
        slot: usize,
        layer: usize,
        start: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        let needed = start + keys.dim(1)?;
        let cache = self.slots[slot].reserve(layer, needed, &self.shape)?;
        cache.keys.slice_set(&keys.contiguous()?, 1, start)?;
        cache.values.slice_set(&values.contiguous()?, 1, start)
    }

    /// Keys and values at some positions, each `[n_kv_heads, n, head_dim]`.
    pub(super) fn view(
        &self,
        slot: usize,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<(Tensor, Tensor)> {
        let cache = &self.slots[slot].layers[layer];
        let view = |t: &Tensor| t.narrow(1, positions.start, positions.len());
        Ok((view(&cache.keys)?, view(&cache.values)?))
    }
}

impl Slot {
    /// The cache of a layer, with room for `needed` positions. Capacity doubles,
    /// so that copying stays a constant cost per position.
    fn reserve(&mut self, layer: usize, needed: usize, shape: &Shape) -> Result<&LayerCache> {
        if self.layers.is_empty() {
            for _ in 0..shape.n_layers {
                self.layers
                    .push(shape.allocate(needed.next_multiple_of(GROWTH))?);
            }
        }
        let cache = &mut self.layers[layer];
        let capacity = cache.keys.dim(1)?;
        if needed > capacity {
            let grown = shape.allocate((2 * capacity).max(needed.next_multiple_of(GROWTH)))?;
            grown.keys.slice_set(&cache.keys, 1, 0)?;
            grown.values.slice_set(&cache.values, 1, 0)?;
            *cache = grown;
        }
        Ok(cache)
    }
}

impl Shape {
    fn allocate(&self, capacity: usize) -> Result<LayerCache> {
        let shape = (self.n_kv_heads, capacity, self.head_dim);
        Ok(LayerCache {
            keys: Tensor::zeros(shape, self.dtype, &self.device)?,
            values: Tensor::zeros(shape, self.dtype, &self.device)?,
        })
    }
}
