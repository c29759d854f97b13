//! Products with integers that have a scale for every block: a block is summed in
//! integers.

use std::marker::PhantomData;

use super::{Eights, GROUP, ahead};
use crate::model::kernels::{
    activations::{Activations, IntegerTile, PER_TILE},
    formats::{BLOCK, Quantized},
    isa::Isa,
};

/// Pieces of four elements, which are a lane.
const QUADS: usize = BLOCK / 4;

/// A tile of eight weight rows: what lies together is one lane of each.
#[repr(align(32))]
pub(super) struct Tile<F> {
    q: [[[u8; BLOCK]; QUADS]; PER_TILE],
    scales: [[f32; GROUP]; PER_TILE],
    offsets: [[f32; GROUP]; PER_TILE],
    format: PhantomData<F>,
}

impl<F: Quantized> Tile<F> {
    pub(super) const EMPTY: Self = Self {
        q: [[[0; BLOCK]; QUADS]; PER_TILE],
        scales: [[0.0; GROUP]; PER_TILE],
        offsets: [[0.0; GROUP]; PER_TILE],
        format: PhantomData,
    };

    /// Takes the `index`th tile of some rows; gives the blocks that it has.
    #[inline(always)]
    fn unpack<I: Isa>(
        &mut self,
        isa: I,
        (rows, next): (&[&[F::Stored]; GROUP], &[u8]),
        index: usize,
    ) -> usize {
        let (from, to) = (index * PER_TILE, rows[0].len().min((index + 1) * PER_TILE));
        let mut here = [&[][..]; GROUP];
        for (here, row) in here.iter_mut().zip(rows) {
            *here = &row[from..to];
        }
        self.unpack_scales(isa, &here);
        for (i, q) in self.q[..to - from].iter_mut().enumerate() {
            isa.prefetch(ahead(next, from + i, GROUP * size_of::<F::Stored>()));
            let mut rows = [isa.repeat(&[0; 4]); GROUP];
            for (row, here) in rows.iter_mut().zip(&here) {
                *row = F::integers(isa, &here[i]);
                if I::DOTS && F::SIGNED {
                    *row = isa.lifted(*row);
                }
            }
            for (to, quad) in q.iter_mut().zip(isa.transpose(rows)) {
                *to = isa.store(quad);
            }
        }
        to - from
    }

    #[inline(always)]
    fn unpack_scales<I: Isa>(&mut self, isa: I, rows: &[&[F::Stored]; GROUP]) {
        let mut scales = [[0.0; 8]; GROUP];
        let mut offsets = scales;
        for (row, stored) in rows.iter().enumerate() {
            let own = F::scales(isa, stored);
            (scales[row], offsets[row]) = (own.scales, own.offsets);
        }
        transpose(isa, &scales, &mut self.scales);
        if !F::SIGNED {
            transpose(isa, &offsets, &mut self.offsets);
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

impl<F: Quantized> Eights for Tile<F> {
    #[inline(always)]
    fn add<I: Isa>(
        &mut self,
        isa: I,
        (weights, next): (&[&[u8]; GROUP], &[u8]),
        (x, first): (&Activations, usize),
        sums: &mut [I::Floats],
    ) {
        let mut rows = [&[][..]; GROUP];
        for (row, weights) in rows.iter_mut().zip(weights) {
            *row = F::stored(weights);
        }
        for index in 0..rows[0].len().div_ceil(PER_TILE) {
            let blocks = self.unpack(isa, (&rows, next), index);
            tile_sums(isa, (self, blocks), x.integers.tiles(index, first), sums);
        }
    }
}

/// Adds the products of a tile of weights, of so many blocks, with a tile of
/// every activation row.
#[inline(always)]
fn tile_sums<F: Quantized, I: Isa>(
    isa: I,
    weights: (&Tile<F>, usize),
    x: &[IntegerTile],
    sums: &mut [I::Floats],
) {
    // As many rows together as the registers have room for their sums.
    let mut done = 0;
    if I::DOTS {
        done = groups::<F, I, 8>(isa, weights, x, sums, done);
        done = groups::<F, I, 4>(isa, weights, x, sums, done);
    } else {
        done = groups::<F, I, 3>(isa, weights, x, sums, done);
    }
    done = groups::<F, I, 2>(isa, weights, x, sums, done);
    groups::<F, I, 1>(isa, weights, x, sums, done);
}

/// Goes on with as many rows as there are in whole groups; gives how many are done.
#[inline(always)]
fn groups<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    weights: (&Tile<F>, usize),
    x: &[IntegerTile],
    sums: &mut [I::Floats],
    done: usize,
) -> usize {
    let (groups, _) = sums[done..].as_chunks_mut::<R>();
    let (x, _) = x[done..].as_chunks::<R>();
    for (sums, x) in groups.iter_mut().zip(x) {
        multiply::<F, I, R>(isa, weights, x, sums);
    }
    done + R * groups.len()
}

/// Adds the products of a tile of weights, of so many blocks, and of some rows.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn multiply<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    (weights, blocks): (&Tile<F>, usize),
    x: &[IntegerTile; R],
    sums: &mut [I::Floats; R],
) {
    let mut local = *sums;
    for block in 0..blocks.min(PER_TILE) {
        let products = block_products::<F, I, R>(isa, weights, x, block);
        let scales = isa.floats(&weights.scales[block]);
        for r in 0..R {
            let scale = isa.multiply(scales, isa.splat(x[r].scales[block]));
            local[r] = isa.fma(scale, isa.ints_to_floats(products[r]), local[r]);
        }
        if !F::SIGNED {
            let offsets = isa.floats(&weights.offsets[block]);
            for r in 0..R {
                local[r] = isa.fma(offsets, isa.splat(x[r].sums[block]), local[r]);
            }
        }
    }
    *sums = local;
}

/// The integer products of one block.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn block_products<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[IntegerTile; R],
    block: usize,
) -> [I::Ints; R] {
    let pairs = |quad: usize, w: I::Bytes, r: usize| {
        let x = isa.repeat(&x[r].q[block][quad]);
        if F::SIGNED {
            isa.signed_pairs(w, x)
        } else {
            isa.pairs(w, x)
        }
    };
    if I::DOTS {
        return dots(isa, weights, x, block);
    }
    let mut ints = [isa.ints(0); R];
    let mut quad = 0;
    while quad < QUADS {
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

/// The same, where four products and their sum are one instruction.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn dots<F: Quantized, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[IntegerTile; R],
    block: usize,
) -> [I::Ints; R] {
    let mut ints = [isa.ints(0); R];
    if F::SIGNED {
        for r in 0..R {
            ints[r] = isa.ints(x[r].lowered[block]);
        }
    }
    for quad in 0..QUADS {
        let w = isa.bytes(&weights.q[block][quad]);
        for r in 0..R {
            ints[r] = isa.dot(ints[r], w, isa.repeat(&x[r].q[block][quad]));
        }
    }
    ints
}
