//! Activation rows as the products read them.

/// Elements of a row that are multiplied at a time.
pub(super) const TILE: usize = 256;

/// A tile of a row, in whole cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Tile(pub(super) [[f32; 8]; TILE / 8]);

impl Tile {
    pub(super) const EMPTY: Self = Self([[0.0; 8]; TILE / 8]);
}

/// Rows, padded with zeros to whole tiles; made once for all matrices that
/// multiply them.
#[derive(Debug)]
pub(super) struct Rows {
    tiles: Vec<Tile>,
    /// Tiles per row.
    stride: usize,
}

impl Rows {
    pub(super) fn new(x: &[f32], k: usize) -> Self {
        let stride = k.div_ceil(TILE);
        let mut tiles = vec![Tile::EMPTY; x.len() / k * stride];
        for (tiles, x) in tiles.chunks_exact_mut(stride).zip(x.chunks_exact(k)) {
            for (tile, x) in tiles.iter_mut().zip(x.chunks(TILE)) {
                tile.0.as_flattened_mut()[..x.len()].copy_from_slice(x);
            }
        }
        Self { tiles, stride }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[Tile] {
        &self.tiles[row * self.stride..(row + 1) * self.stride]
    }

    #[inline(always)]
    pub(super) fn tile(&self, row: usize, tile: usize) -> &Tile {
        &self.tiles[row * self.stride + tile]
    }
}
