//! Products with quantised matrices, in integers: eight weight rows at a time,
//! each in a lane of its own, so that a block's sum is exact whatever is
//! multiplied beside it.

use super::{Columns, GROUP, ahead};
use crate::model::kernels::{
    activations::{IntegerTile, PER_TILE, TILE},
    formats::{BLOCK, Quantized, each_block},
    isa::Isa,
};

/// Activation rows multiplied together: as many sums as fit the registers.
const ROWS: usize = 3;
/// Activation rows for which a tile is unpacked once.
const CHUNK: usize = 64;
/// Pieces of four elements, which are a lane.
const QUADS: usize = BLOCK / 4;

/// A tile of eight weight rows: what lies together is one lane of each.
#[repr(align(32))]
struct Tile {
    q: [[[u8; BLOCK]; QUADS]; PER_TILE],
    /// Of the blocks' parts, one after the other.
    scales: [[f32; GROUP]; 2 * PER_TILE],
    offsets: [[f32; GROUP]; 2 * PER_TILE],
}

impl Tile {
    const EMPTY: Self = Self {
        q: [[[0; BLOCK]; QUADS]; PER_TILE],
        scales: [[0.0; GROUP]; 2 * PER_TILE],
        offsets: [[0.0; GROUP]; 2 * PER_TILE],
    };

    /// Takes the `index`th tile of some rows; gives the blocks that it has. Asks for as
    /// much of what comes after the rows, little by little: all at once would have to wait.
    #[inline(always)]
    fn unpack<F: Quantized, I: Isa>(
        &mut self,
        isa: I,
        (rows, next): (&[&[F::Stored]; GROUP], &[u8]),
        index: usize,
    ) -> usize {
        let per_tile = PER_TILE / F::BLOCKS;
        let (from, to) = (index * per_tile, rows[0].len().min((index + 1) * per_tile));
        let mut here = [&[][..]; GROUP];
        for (here, row) in here.iter_mut().zip(rows) {
            *here = &row[from..to];
        }
        self.unpack_scales::<F, I>(isa, &here);
        for i in 0..to - from {
            each_block!(F, BLOCK_OF => {
                let block = (from + i) * F::BLOCKS + BLOCK_OF;
                isa.prefetch(ahead(next, block, GROUP * size_of::<F::Stored>() / F::BLOCKS));
                let mut rows = [isa.repeat(&[0; 4]); GROUP];
                for (row, here) in rows.iter_mut().zip(&here) {
                    *row = F::integers::<I, BLOCK_OF>(isa, &here[i]);
                }
                let quads = isa.transpose(rows);
                for (to, quad) in self.q[i * F::BLOCKS + BLOCK_OF].iter_mut().zip(quads) {
                    *to = isa.store(quad);
                }
            });
        }
        (to - from) * F::BLOCKS
    }

    #[inline(always)]
    fn unpack_scales<F: Quantized, I: Isa>(&mut self, isa: I, rows: &[&[F::Stored]; GROUP]) {
        let mut scales = [[[0.0; 8]; GROUP]; 2];
        let mut offsets = scales;
        for (row, stored) in rows.iter().enumerate() {
            let own = F::scales(isa, stored);
            for part in 0..F::PARTS {
                scales[part][row] = own.scales[part];
                offsets[part][row] = own.offsets[part];
            }
        }
        for part in 0..F::PARTS {
            let at = part * PER_TILE..(part + 1) * PER_TILE;
            transpose(isa, &scales[part], &mut self.scales[at.clone()]);
            if !F::SIGNED {
                transpose(isa, &offsets[part], &mut self.offsets[at]);
            }
        }
    }
}

#[inline(always)]
fn transpose<I: Isa>(isa: I, rows: &[[f32; 8]; 8], to: &mut [[f32; 8]]) {
    let mut bytes = [isa.repeat(&[0; 4]); 8];
    for (bytes, row) in bytes.iter_mut().zip(rows) {
        *bytes = isa.bytes(bytemuck::cast_ref(row));
    }
    for (to, column) in to.iter_mut().zip(isa.transpose(bytes)) {
        *to = bytemuck::cast(isa.store(column));
    }
}

/// Computes the columns.
#[inline(always)]
pub(super) fn compute<F: Quantized, I: Isa>(mut columns: Columns<'_>, isa: I) {
    let width = columns.weights.in_width;
    let row_bytes = columns.weights.bytes_of(width);
    let weights = &columns.weights.bytes[columns.first * row_bytes..];
    let mut tile = Tile::EMPTY;
    let mut sums = vec![isa.splat(0.0); columns.out.len().min(CHUNK)];
    for (chunk, out) in columns.out.chunks_mut(CHUNK).enumerate() {
        let sums = &mut sums[..out.len()];
        let last = out[0].len() - 1;
        for column in (0..=last).step_by(GROUP) {
            // Where there are fewer than eight rows, the last stands in.
            let mut rows = [&[][..]; GROUP];
            for (g, row) in rows.iter_mut().enumerate() {
                let at = last.min(column + g) * row_bytes;
                *row = F::stored(&weights[at..at + row_bytes]);
            }
            let next = weights
                .get((column + GROUP) * row_bytes..)
                .unwrap_or_default();
            sums.fill(isa.splat(0.0));
            for index in 0..width.div_ceil(TILE) {
                let blocks = tile.unpack::<F, I>(isa, (&rows, next), index);
                let x = columns.x.integers.tiles(index, chunk * CHUNK);
                tile_sums::<F, I>(isa, (&tile, blocks), x, sums);
            }
            for (out, sums) in out.iter_mut().zip(&*sums) {
                let out = &mut out[column..=last.min(column + GROUP - 1)];
                match out.as_mut_array() {
                    Some(out) => *out = isa.array(*sums),
                    None => out.copy_from_slice(&isa.array(*sums)[..out.len()]),
                }
            }
        }
    }
}

/// Adds the products of a tile of weights, of so many blocks, with a tile of
/// every activation row.
#[inline(always)]
fn tile_sums<F: Quantized, I: Isa>(
    isa: I,
    weights: (&Tile, usize),
    x: &[IntegerTile],
    sums: &mut [I::Floats],
) {
    let (groups, rest) = sums.as_chunks_mut::<ROWS>();
    let (x_groups, x_rest) = x.as_chunks::<ROWS>();
    for (sums, x) in groups.iter_mut().zip(x_groups) {
        multiply::<F, I, ROWS>(isa, weights, x, sums);
    }
    let x_rest = match x_groups.get(groups.len()) {
        Some(x) => &x[..],
        None => x_rest,
    };
    if let (Some(sums), Some(x)) = (rest.first_chunk_mut::<2>(), x_rest.first_chunk::<2>()) {
        multiply::<F, I, 2>(isa, weights, x, sums);
    }
    let single = rest.len() & !1;
    if let (Some(sums), Some(x)) = (
        rest[single..].first_chunk_mut::<1>(),
        x_rest.get(single..).and_then(|x| x.first_chunk::<1>()),
    ) {
        multiply::<F, I, 1>(isa, weights, x, sums);
    }
}

/// Adds the products of a tile of weights, of so many blocks, and of some rows.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn multiply<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    (weights, blocks): (&Tile, usize),
    x: &[IntegerTile; R],
    sums: &mut [I::Floats; R],
) {
    let mut local = *sums;
    let quads = QUADS / F::PARTS;
    for block in 0..blocks.min(PER_TILE) {
        for part in 0..F::PARTS {
            let products = block_products::<F, I, R>(isa, weights, x, (block, part * quads));
            let at = block * F::PARTS + part;
            let scales = isa.floats(&weights.scales[at]);
            for r in 0..R {
                let scale = isa.multiply(scales, isa.splat(x[r].scales[block]));
                local[r] = isa.fma(scale, isa.ints_to_floats(products[r]), local[r]);
            }
            if !F::SIGNED {
                let offsets = isa.floats(&weights.offsets[at]);
                for r in 0..R {
                    let sum = x[r].sums[block][part + F::PARTS / 2];
                    local[r] = isa.fma(offsets, isa.splat(sum), local[r]);
                }
            }
        }
    }
    *sums = local;
}

/// The integer products of one block's part, whose first quad is `first`.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn block_products<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile,
    x: &[IntegerTile; R],
    (block, first): (usize, usize),
) -> [I::Ints; R] {
    let pairs = |quad: usize, w: I::Bytes, r: usize| {
        let x = isa.repeat(&x[r].q[block][quad]);
        if F::SIGNED {
            isa.signed_pairs(w, x)
        } else {
            isa.pairs(w, x)
        }
    };
    let zero = isa.zero();
    let mut ints = [zero; R];
    let mut quad = first;
    while quad < first + QUADS / F::PARTS {
        let w = isa.bytes(&weights.q[block][quad]);
        let mut words = [pairs(quad, w, 0); R];
        for r in 1..R {
            words[r] = pairs(quad, w, r);
        }
        for more in quad + 1..quad + F::SUMS {
            let w = isa.bytes(&weights.q[block][more]);
            for r in 0..R {
                words[r] = isa.add_words(words[r], pairs(more, w, r));
            }
        }
        for r in 0..R {
            ints[r] = isa.add_ints(ints[r], isa.add_neighbours(words[r]));
        }
        quad += F::SUMS;
    }
    ints
}
