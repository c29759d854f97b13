//! Activation rows as the products read them.

/// Elements of a row that are multiplied at a time.
pub(super) const TILE: usize = 256;

/// A tile of a row, in whole cache lines.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[f32; 8]; TILE / 8]);

impl Tile {
    pub(super) const EMPTY: Self = Self([[0.0; 8]; TILE / 8]);
}

/// Rows, padded with zeros to whole tiles; made once for all matrices that
/// multiply them.
#[derive(Debug)]
pub(super) struct Rows {
    /// The first tile of every row, then the second of every row, ...: what is
    /// multiplied together lies together.
    tiles: Vec<Tile>,
    n_rows: usize,
}

impl Rows {
    pub(super) fn new(x: &[f32], k: usize) -> Self {
        let n_rows = x.len() / k;
        let mut tiles = vec![Tile::EMPTY; n_rows * k.div_ceil(TILE)];
        for (row, x) in x.chunks_exact(k).enumerate() {
            let tiles = tiles[row..].iter_mut().step_by(n_rows);
            for (tile, x) in tiles.zip(x.chunks(TILE)) {
                tile.0.as_flattened_mut()[..x.len()].copy_from_slice(x);
            }
        }
        Self { tiles, n_rows }
    }

    /// The blocks of the only row.
    #[inline(always)]
    pub(super) fn only_row(&self) -> &[[[f32; 8]; 4]] {
        debug_assert_eq!(self.n_rows, 1);
        bytemuck::cast_slice(&self.tiles)
    }

    /// A tile of every row from `first` on.
    #[inline(always)]
    pub(super) fn tiles(&self, tile: usize, first: usize) -> &[Tile] {
        &self.tiles[tile * self.n_rows + first..(tile + 1) * self.n_rows]
    }
}
