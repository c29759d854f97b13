//! Keys and values of every live sequence, by slot.
//!
//! A layer that sees the whole sequence keeps all positions. A sliding-window
//! layer keeps, between steps, the `window − 1` positions that the next token
//! sees, and as much again as a quarter of the window, so that old positions
//! are dropped in bulk: [`KvShape::bytes`] is the exact bound.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{ModelConfig, gpu::address};

/// Buffers hold a multiple of this many positions.
const GRAIN: usize = 64;

/// Slots, each with the keys and values of one sequence. A slot's memory grows
/// with its sequence and is freed with it.
#[derive(Debug)]
pub struct KvCache {
    /// One buffer per layer; none if the slot is empty.
    slots: Vec<Vec<LayerCache>>,
    shape: KvShape,
}

/// Keys and values of a sequence's first tokens, outside the cache.
#[derive(Debug)]
pub struct KvSnapshot {
    layers: Vec<LayerCache>,
    windows: Vec<Option<usize>>,
}

/// Sizes of a model's keys and values.
#[derive(Debug, Clone)]
pub(super) struct KvShape {
    /// One per layer.
    windows: Vec<Option<usize>>,
    n_kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    device: Device,
}

/// Keys and values of one sequence at one layer.
#[derive(Debug)]
struct LayerCache {
    /// `[n_kv_heads, capacity, head_dim]`.
    keys: Tensor,
    values: Tensor,
    /// Positions held, from row 0 on.
    held: Range<usize>,
    /// Positions that there is room for.
    capacity: usize,
    /// Where keys and values are on a GPU; else 0.
    addresses: [u64; 2],
}

impl KvCache {
    pub(super) fn new(shape: KvShape, n_slots: usize) -> Self {
        Self {
            slots: (0..n_slots).map(|_| Vec::new()).collect(),
            shape,
        }
    }

    /// Number of slots.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens read into a slot: the position of its next token.
    pub fn len(&self, slot: usize) -> usize {
        length(&self.slots[slot])
    }

    /// Bytes that a slot holds.
    pub fn bytes(&self, slot: usize) -> usize {
        self.slots[slot].iter().map(LayerCache::bytes).sum()
    }

    /// Empties a slot and frees its memory.
    pub fn clear(&mut self, slot: usize) {
        self.slots[slot] = Vec::new();
    }

    /// Copies the first `len` positions, as far as they are still held.
    pub fn snapshot(&self, slot: usize, len: usize) -> Result<KvSnapshot> {
        if len > self.len(slot) {
            bail!("slot {slot} has {} tokens, not {len}", self.len(slot));
        }
        let copy = |layer: &LayerCache| layer.copy(layer.held.start.min(len)..len, None);
        Ok(KvSnapshot {
            layers: self.slots[slot].iter().map(copy).collect::<Result<_>>()?,
            windows: self.shape.windows.clone(),
        })
    }

    /// Moves all that a slot holds out of it and leaves it empty.
    pub fn take(&mut self, slot: usize) -> KvSnapshot {
        KvSnapshot {
            layers: std::mem::take(&mut self.slots[slot]),
            windows: self.shape.windows.clone(),
        }
    }

    /// Exchanges what a slot holds with another cache of the same model.
    pub fn exchange(&mut self, slot: usize, other: &mut Self) {
        std::mem::swap(&mut self.slots[slot], &mut other.slots[slot]);
    }

    /// Copies the first `len` positions of a snapshot into an empty slot; the
    /// next token is at position `len`.
    pub fn restore(&mut self, slot: usize, snapshot: &KvSnapshot, len: usize) -> Result<()> {
        if !self.slots[slot].is_empty() {
            bail!("slot {slot} is not empty");
        }
        if !snapshot.covers(len) {
            bail!("the snapshot does not reach back from position {len}");
        }
        let copy = |(layer, &window): (&LayerCache, &Option<usize>)| {
            let seen = seen_from(window, len)..len;
            layer.copy(seen, Some(&self.shape))
        };
        let layers = snapshot.layers.iter().zip(&self.shape.windows).map(copy);
        self.slots[slot] = layers.collect::<Result<_>>()?;
        Ok(())
    }

    /// Stores keys and values, each `[n_kv_heads, n, head_dim]`, from position
    /// `start` on, which must be the layer's next.
    pub(super) fn store(
        &mut self,
        slot: usize,
        layer: usize,
        start: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        self.make_room(slot, layer, start, keys.dim(1)?)?;
        let cache = &self.slots[slot][layer];
        let row = start - cache.held.start;
        cache.keys.slice_set(&keys.contiguous()?, 1, row)?;
        cache.values.slice_set(&values.contiguous()?, 1, row)
    }

    /// Room for the keys and values of `n` tokens from position `start` on, which
    /// must be the layer's next; the caller writes them.
    pub(super) fn make_room(
        &mut self,
        slot: usize,
        layer: usize,
        start: usize,
        n: usize,
    ) -> Result<()> {
        let layers = &mut self.slots[slot];
        if layers.is_empty() {
            let capacity = capacity_for(start + n);
            let new = |_: &Option<usize>| self.shape.allocate(capacity, 0);
            *layers = self.shape.windows.iter().map(new).collect::<Result<_>>()?;
        }
        let cache = &mut layers[layer];
        if cache.held.end != start {
            let next = cache.held.end;
            bail!("slot {slot} continues at position {next}, not {start}");
        }
        if start + n - cache.held.start > cache.capacity {
            let first = cache
                .held
                .start
                .max(seen_from(self.shape.windows[layer], start));
            *cache = cache.moved(first, start + n - first, &self.shape)?;
        }
        cache.held.end = start + n;
        Ok(())
    }

    /// Gives back what a chunk longer than the window's slack made a buffer grow.
    pub(super) fn trim(&mut self, slot: usize, layer: usize) -> Result<()> {
        let cache = &mut self.slots[slot][layer];
        let next = cache.held.end;
        let rows = rows_kept(self.shape.windows[layer], next);
        if cache.capacity > capacity_for(rows) {
            let first = cache
                .held
                .start
                .max(seen_from(self.shape.windows[layer], next));
            *cache = cache.moved(first, rows, &self.shape)?;
        }
        Ok(())
    }

    /// Keys and values of a layer, each `[n_kv_heads, capacity, head_dim]`, and
    /// the positions held, from row 0 on.
    pub(super) fn layer(&self, slot: usize, layer: usize) -> (&Tensor, &Tensor, Range<usize>) {
        let cache = &self.slots[slot][layer];
        (&cache.keys, &cache.values, cache.held.clone())
    }

    /// Where a layer's keys and values are on a GPU, the first position held, and
    /// the positions that there is room for.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "what GPUs read"))]
    pub(super) fn place(&self, slot: usize, layer: usize) -> ([u64; 2], usize, usize) {
        let cache = &self.slots[slot][layer];
        (cache.addresses, cache.held.start, cache.capacity)
    }
}

impl KvSnapshot {
    /// Tokens that were read.
    pub fn len(&self) -> usize {
        length(&self.layers)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// Whether a sequence can go on from position `len`: every windowed layer
    /// still holds the window before it.
    pub fn covers(&self, len: usize) -> bool {
        let holds = |(layer, &window): (&LayerCache, &Option<usize>)| {
            layer.held.start <= seen_from(window, len)
        };
        len <= self.len() && self.layers.iter().zip(&self.windows).all(holds)
    }
}

impl KvShape {
    pub(super) fn new(config: &ModelConfig, dtype: DType, device: &Device) -> Self {
        Self {
            windows: config.layers.iter().map(|layer| layer.window).collect(),
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            dtype,
            device: device.clone(),
        }
    }

    /// Bytes that a sequence of `tokens` tokens holds at most between steps.
    pub(super) fn bytes(&self, tokens: usize) -> usize {
        let rows = |window: &Option<usize>| capacity_for(rows_kept(*window, tokens));
        let rows: usize = self.windows.iter().map(rows).sum();
        rows * 2 * self.n_kv_heads * self.head_dim * self.dtype.size_in_bytes()
    }

    fn allocate(&self, capacity: usize, first: usize) -> Result<LayerCache> {
        let shape = (self.n_kv_heads, capacity, self.head_dim);
        let keys = Tensor::zeros(shape, self.dtype, &self.device)?;
        let values = Tensor::zeros(shape, self.dtype, &self.device)?;
        Ok(LayerCache::new(keys, values, first..first))
    }
}

impl LayerCache {
    fn new(keys: Tensor, values: Tensor, held: Range<usize>) -> Self {
        Self {
            capacity: keys.dims()[1],
            addresses: [address(&keys), address(&values)],
            keys,
            values,
            held,
        }
    }

    fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        bytes(&self.keys) + bytes(&self.values)
    }

    /// The rows from position `first` on in a new buffer with room for `rows`.
    /// One path for growing, sliding and shrinking.
    fn moved(&self, first: usize, rows: usize, shape: &KvShape) -> Result<Self> {
        let mut new = shape.allocate(capacity_for(rows), first)?;
        let kept = first..self.held.end;
        if !kept.is_empty() {
            let rows = |t: &Tensor| {
                t.narrow(1, first - self.held.start, kept.len())?
                    .contiguous()
            };
            new.keys.slice_set(&rows(&self.keys)?, 1, 0)?;
            new.values.slice_set(&rows(&self.values)?, 1, 0)?;
        }
        new.held = kept;
        Ok(new)
    }

    /// A copy of some positions, held or none: with room to grow, or without.
    fn copy(&self, positions: Range<usize>, room: Option<&KvShape>) -> Result<Self> {
        let rows = |t: &Tensor| {
            let row = positions.start.saturating_sub(self.held.start);
            t.narrow(1, row, positions.len())?.force_contiguous()
        };
        let (keys, values) = (rows(&self.keys)?, rows(&self.values)?);
        let exact = Self::new(keys, values, positions.clone());
        match room {
            None => Ok(exact),
            Some(shape) => exact.moved(positions.start, positions.len(), shape),
        }
    }
}

fn length(layers: &[LayerCache]) -> usize {
    layers.last().map_or(0, |layer| layer.held.end)
}

/// First position that the token at `position` sees.
fn seen_from(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Rows that a layer needs for `tokens` tokens: its window at most.
fn rows_kept(window: Option<usize>, tokens: usize) -> usize {
    window.map_or(tokens, |window| window.min(tokens))
}

/// Rows of a buffer that needs `rows`. The quarter more keeps copying a constant
/// cost per position.
fn capacity_for(rows: usize) -> usize {
    (rows + rows / 4).next_multiple_of(GRAIN)
}
