//! Activation rows as the products read them.

use rayon::prelude::*;

use super::{
    ALONE, Format, Kind,
    dispatch::{Kernel, dispatch},
    formats::BLOCK,
    isa::Isa,
};

/// Elements of a row that are multiplied at a time.
pub(super) const TILE: usize = 256;
/// Blocks of a tile.
pub(super) const PER_TILE: usize = TILE / BLOCK;

/// Rows as each kind of matrix needs them; empty where no matrix is of the kind.
#[derive(Debug)]
pub(super) struct Activations {
    pub(super) floats: Rows<Tile>,
    pub(super) integers: Rows<IntegerTile>,
    pub(super) super_blocks: Rows<SuperTile>,
}

impl Activations {
    pub(super) fn new(x: &[f32], k: usize, formats: &[Format]) -> Self {
        let wanted = |kind| match formats.iter().any(|format| format.kind() == kind) {
            true => x,
            false => &x[..0],
        };
        Self {
            floats: Rows::new(wanted(Kind::Floats), k),
            integers: Rows::new(wanted(Kind::Integers), k),
            super_blocks: Rows::new(wanted(Kind::SuperBlocks), k),
        }
    }
}

/// A tile of a row, in whole cache lines.
pub(super) trait Piece: Copy + Send {
    const EMPTY: Self;

    /// Fills an empty tile.
    fn fill(&mut self, x: &[f32]);
}

#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [[f32; 8]; TILE / 8]);

impl Piece for Tile {
    const EMPTY: Self = Self([[0.0; 8]; TILE / 8]);

    #[inline(always)]
    fn fill(&mut self, x: &[f32]) {
        self.0.as_flattened_mut()[..x.len()].copy_from_slice(x);
    }
}

/// A tile of a row in 8 bits: an element is about `scale · q`, with one scale
/// for each block, by which its largest element is ±127.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct IntegerTile {
    pub(super) q: [[[i8; 4]; BLOCK / 4]; PER_TILE],
    pub(super) scales: [f32; PER_TILE],
    /// `scale · Σ q` of each block.
    pub(super) sums: [f32; PER_TILE],
    /// `−128 · Σ q` of each block.
    pub(super) lowered: [i32; PER_TILE],
}

impl Piece for IntegerTile {
    const EMPTY: Self = Self {
        q: [[[0; 4]; BLOCK / 4]; PER_TILE],
        scales: [0.0; PER_TILE],
        sums: [0.0; PER_TILE],
        lowered: [0; PER_TILE],
    };

    #[inline(always)]
    fn fill(&mut self, x: &[f32]) {
        for (i, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (scale, inverse) = scale(x);
            let [first, second] = quantize(x, inverse, &mut self.q[i]);
            self.scales[i] = scale;
            self.sums[i] = scale * f32::from(first + second);
            self.lowered[i] = -128 * i32::from(first + second);
        }
    }
}

/// A tile of a row in 8 bits, with one scale for all of it.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct SuperTile {
    pub(super) q: [[[i8; 4]; BLOCK / 4]; PER_TILE],
    /// `Σ q` of the blocks' first halves, then of their second ones.
    pub(super) halves: [[i16; 2]; PER_TILE],
    /// `Σ q` of the blocks.
    pub(super) blocks: [[i16; 2]; PER_TILE / 2],
    pub(super) scale: f32,
}

impl Piece for SuperTile {
    const EMPTY: Self = Self {
        q: [[[0; 4]; BLOCK / 4]; PER_TILE],
        halves: [[0; 2]; PER_TILE],
        blocks: [[0; 2]; PER_TILE / 2],
        scale: 0.0,
    };

    #[inline(always)]
    fn fill(&mut self, x: &[f32]) {
        let (scale, inverse) = scale(x);
        self.scale = scale;
        for (i, x) in x.as_chunks().0.iter().enumerate() {
            let [first, second] = quantize(x, inverse, &mut self.q[i]);
            self.halves.as_flattened_mut()[i] = first;
            self.halves.as_flattened_mut()[PER_TILE + i] = second;
            self.blocks.as_flattened_mut()[i] = first + second;
        }
    }
}

/// By which the largest of some numbers is ±127, and what to multiply them with
/// for it. If any isn't finite, nothing that is multiplied with them is a number.
#[inline(always)]
fn scale(x: &[f32]) -> (f32, f32) {
    // Of floats that aren't negative, the bits are in the same order.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.abs().to_bits());
    }
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, 0.0);
    }
    let scale = largest / 127.0;
    let inverse = match scale {
        f32::MIN_POSITIVE.. => 1.0 / scale,
        _ => 0.0,
    };
    (scale, inverse)
}

/// The integers of a block; the sum of its first half and of its second.
#[inline(always)]
fn quantize(x: &[f32; BLOCK], inverse: f32, q: &mut [[i8; 4]; BLOCK / 4]) -> [i16; 2] {
    /// A float of this size has no room for fractions: what is added to it is
    /// rounded, to even, and stands in its lowest bits.
    const WHOLE: f32 = 1.5 * (1 << 23) as f32;
    let q = q.as_flattened_mut();
    let mut sums = [0; 2];
    for (half, x) in x.as_chunks::<16>().0.iter().enumerate() {
        for (i, x) in x.iter().enumerate() {
            let integer = (x * inverse + WHOLE).to_bits() as i32 - WHOLE.to_bits() as i32;
            q[16 * half + i] = integer as i8;
            sums[half] += integer;
        }
    }
    sums.map(|sum| sum as i16)
}

/// Rows, padded with zeros to whole tiles; made once for all matrices that
/// multiply them.
#[derive(Debug)]
pub(super) struct Rows<T> {
    /// The first tile of every row, then the second of every row, ...: what is
    /// multiplied together lies together.
    tiles: Vec<T>,
    n_rows: usize,
}

impl<T: Piece> Rows<T> {
    fn new(x: &[f32], k: usize) -> Self {
        let n_rows = x.len() / k;
        let mut tiles = vec![T::EMPTY; n_rows * k.div_ceil(TILE)];
        let fill = |(index, tiles): (usize, &mut [T])| dispatch(Fill { x, k, index, tiles });
        if x.len() < ALONE {
            tiles.chunks_mut(n_rows.max(1)).enumerate().for_each(fill);
        } else {
            tiles.par_chunks_mut(n_rows).enumerate().for_each(fill);
        }
        Self { tiles, n_rows }
    }

    /// A tile of every row from `first` on.
    #[inline(always)]
    pub(super) fn tiles(&self, tile: usize, first: usize) -> &[T] {
        &self.tiles[tile * self.n_rows + first..(tile + 1) * self.n_rows]
    }
}

impl Rows<Tile> {
    /// The blocks of the only row.
    #[inline(always)]
    pub(super) fn only_row(&self) -> &[[[f32; 8]; 4]] {
        debug_assert_eq!(self.n_rows, 1);
        bytemuck::cast_slice(&self.tiles)
    }
}

/// Fills the tiles of all rows of `x`, `k` wide, with the `index`th piece of each.
struct Fill<'a, T> {
    x: &'a [f32],
    k: usize,
    index: usize,
    tiles: &'a mut [T],
}

impl<T: Piece> Kernel for Fill<'_, T> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        let piece = self.index * TILE..self.k.min((self.index + 1) * TILE);
        for (tile, x) in self.tiles.iter_mut().zip(self.x.chunks_exact(self.k)) {
            tile.fill(&x[piece.clone()]);
        }
    }
}
