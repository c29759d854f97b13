//! Products with matrices in super-blocks: all 256 elements of one are summed in
//! integers, scales and all, so that the order does not matter.

use std::marker::PhantomData;

use super::{Eights, GROUP, ahead};
use crate::model::kernels::{
    activations::{Activations, PER_TILE, SuperTile},
    formats::{BLOCK, SuperBlocks, each_block},
    isa::Isa,
};

/// Activation rows multiplied together: as many sums as fit the registers.
const ROWS: usize = 4;
/// Pieces of four elements, which are a lane.
const QUADS: usize = BLOCK / 4;

/// A super-block of eight weight rows: what lies together is one lane of each.
#[repr(align(32))]
pub(super) struct Tile<F> {
    q: [[[u8; BLOCK]; QUADS]; PER_TILE],
    /// Of every block, twice, part by part.
    scales: [[[i16; 2 * GROUP]; PER_TILE]; 2],
    /// Of two blocks each, part by part.
    offsets: [[i16; 2 * GROUP]; PER_TILE],
    multiples: [[f32; GROUP]; 2],
    format: PhantomData<F>,
}

impl<F: SuperBlocks> Tile<F> {
    pub(super) const EMPTY: Self = Self {
        q: [[[0; BLOCK]; QUADS]; PER_TILE],
        scales: [[[0; 2 * GROUP]; PER_TILE]; 2],
        offsets: [[0; 2 * GROUP]; PER_TILE],
        multiples: [[0.0; GROUP]; 2],
        format: PhantomData,
    };

    #[inline(always)]
    fn unpack<I: Isa>(&mut self, isa: I, rows: &[&F::Stored; GROUP]) {
        for (to, multiples) in self.multiples.iter_mut().zip(F::multiples(isa, rows)) {
            *to = isa.array(multiples);
        }
        let mut scales = [[isa.repeat(&[0; 4]); GROUP]; 2];
        let mut offsets = [isa.repeat(&[0; 4]); GROUP];
        for (row, stored) in rows.iter().enumerate() {
            let [of_row, offsets_of_row] = F::parts(isa, stored);
            [scales[0][row], scales[1][row]] = isa.twice(of_row);
            offsets[row] = isa.word_bytes(offsets_of_row);
        }
        for (scales, to) in scales.iter().zip(&mut self.scales).take(F::PARTS) {
            transpose(isa, scales, to);
        }
        transpose(isa, &offsets, &mut self.offsets);
        each_block!(OF => {
            let mut integers = [isa.repeat(&[0; 4]); GROUP];
            for (integers, stored) in integers.iter_mut().zip(rows) {
                *integers = F::integers::<I, OF>(isa, stored);
            }
            for (to, quad) in self.q[OF].iter_mut().zip(isa.transpose(integers)) {
                *to = isa.store(quad);
            }
        });
    }
}

/// Pairs of words as lanes.
#[inline(always)]
fn transpose<I: Isa>(isa: I, rows: &[I::Bytes; GROUP], to: &mut [[i16; 16]; PER_TILE]) {
    for (to, column) in to.iter_mut().zip(isa.transpose(*rows)) {
        *to = bytemuck::cast(isa.store(column));
    }
}

impl<F: SuperBlocks> Eights for Tile<F> {
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
        for index in 0..rows[0].len() {
            isa.prefetch(ahead(next, index, GROUP * size_of::<F::Stored>()));
            let mut here = [&rows[0][index]; GROUP];
            for (here, row) in here.iter_mut().zip(rows) {
                *here = &row[index];
            }
            let x = &x.super_blocks.tiles(index, first)[..sums.len()];
            // For one row, unpacking does not pay.
            if let ([sum], [x]) = (&mut *sums, x) {
                *sum = straight::<F, I>(isa, &here, x, *sum);
            } else {
                self.unpack(isa, &here);
                tile_sums(isa, self, x, sums);
            }
        }
    }
}

/// Adds the products of a super-block of eight rows and of one activation row,
/// straight from what is stored.
#[inline(always)]
fn straight<F: SuperBlocks, I: Isa>(
    isa: I,
    rows: &[&F::Stored; GROUP],
    x: &SuperTile,
    sum: I::Floats,
) -> I::Floats {
    let mut products = [isa.ints(0); GROUP];
    let mut offsets = [isa.ints(0); GROUP];
    for (row, stored) in rows.iter().enumerate() {
        let [scales, own_offsets] = F::parts(isa, stored);
        let mut sum = isa.ints(0);
        each_block!(OF => {
            let x = isa.bytes(bytemuck::cast_ref(&x.q[OF]));
            let words = isa.pairs(F::integers::<I, OF>(isa, stored), x);
            sum = isa.add_ints(sum, isa.word_pairs(words, isa.spread::<OF>(scales)));
        });
        products[row] = sum;
        let halves = isa.words(bytemuck::cast_ref(&x.halves));
        offsets[row] = isa.word_pairs(own_offsets, halves);
        if F::D_MIN.is_none() {
            products[row] = isa.add_ints(products[row], offsets[row]);
        }
    }
    let products = isa.int_totals(products);
    let offsets = match F::D_MIN {
        Some(_) => isa.int_totals(offsets),
        None => isa.ints(0),
    };
    scaled::<F, I>(isa, (products, offsets), F::multiples(isa, rows), x, sum)
}

/// Adds what eight rows' integers stand for to their sums.
#[inline(always)]
fn scaled<F: SuperBlocks, I: Isa>(
    isa: I,
    (products, offsets): (I::Ints, I::Ints),
    [d, d_offset]: [I::Floats; 2],
    x: &SuperTile,
    sum: I::Floats,
) -> I::Floats {
    let x = isa.splat(x.scale);
    let sum = isa.fma(isa.multiply(d, x), isa.ints_to_floats(products), sum);
    match F::D_MIN {
        Some(_) => isa.fma(isa.multiply(d_offset, x), isa.ints_to_floats(offsets), sum),
        None => sum,
    }
}

/// Adds the products of a tile of weights with a tile of every activation row.
#[inline(always)]
fn tile_sums<F: SuperBlocks, I: Isa>(
    isa: I,
    weights: &Tile<F>,
    x: &[SuperTile],
    sums: &mut [I::Floats],
) {
    let (groups, rest) = sums.as_chunks_mut::<ROWS>();
    let (x_groups, x_rest) = x.as_chunks::<ROWS>();
    for (sums, x) in groups.iter_mut().zip(x_groups) {
        multiply(isa, weights, x, sums);
    }
    if let (Some(sums), Some(x)) = (rest.as_mut_array::<3>(), x_rest.as_array()) {
        multiply(isa, weights, x, sums);
    } else if let (Some(sums), Some(x)) = (rest.as_mut_array::<2>(), x_rest.as_array()) {
        multiply(isa, weights, x, sums);
    } else if let (Some(sums), Some(x)) = (rest.as_mut_array::<1>(), x_rest.as_array()) {
        multiply(isa, weights, x, sums);
    }
}

/// Adds the products of a tile of weights and of some rows.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn multiply<F: SuperBlocks, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[SuperTile; R],
    sums: &mut [I::Floats; R],
) {
    let products = block_products(isa, weights, x);
    let mut offsets = match F::D_MIN {
        Some(_) => [isa.ints(0); R],
        None => products,
    };
    for i in 0..4 * F::PARTS {
        let offset = isa.words(&weights.offsets[i]);
        for r in 0..R {
            let sums = match F::PARTS {
                1 => &x[r].blocks[i],
                _ => &x[r].halves[i],
            };
            let here = isa.word_pairs(offset, isa.repeat_words(sums));
            offsets[r] = isa.add_ints(offsets[r], here);
        }
    }
    let multiples = [
        isa.floats(&weights.multiples[0]),
        isa.floats(&weights.multiples[1]),
    ];
    for r in 0..R {
        let products = match F::D_MIN {
            Some(_) => products[r],
            None => offsets[r],
        };
        sums[r] = scaled::<F, I>(isa, (products, offsets[r]), multiples, &x[r], sums[r]);
    }
}

/// Products with some quads of a block, added in 16 bits.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn pair_sums<F, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[SuperTile; R],
    (block, quads): (usize, std::ops::Range<usize>),
) -> [I::Words; R] {
    let w = isa.bytes(&weights.q[block][quads.start]);
    let mut words = [isa.pairs(w, isa.repeat(&x[0].q[block][quads.start])); R];
    for r in 1..R {
        words[r] = isa.pairs(w, isa.repeat(&x[r].q[block][quads.start]));
    }
    for quad in quads.start + 1..quads.end {
        let w = isa.bytes(&weights.q[block][quad]);
        for r in 0..R {
            let here = isa.pairs(w, isa.repeat(&x[r].q[block][quad]));
            words[r] = isa.add_words(words[r], here);
        }
    }
    words
}

/// The integer products of a super-block, each block's with its scale.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn block_products<F: SuperBlocks, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[SuperTile; R],
) -> [I::Ints; R] {
    if I::DOTS {
        return dots(isa, weights, x);
    }
    let mut products = [isa.ints(0); R];
    for block in 0..PER_TILE {
        for part in 0..F::PARTS {
            let scales = isa.words(&weights.scales[part][block]);
            let quads = QUADS / F::PARTS;
            let mut quad = part * quads;
            while quad < (part + 1) * quads {
                let words = pair_sums(isa, weights, x, (block, quad..quad + F::SUMS));
                for r in 0..R {
                    products[r] = isa.add_ints(products[r], isa.word_pairs(words[r], scales));
                }
                quad += F::SUMS;
            }
        }
    }
    products
}

/// The same, where four products and their sum are one instruction.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn dots<F: SuperBlocks, I: Isa, const R: usize>(
    isa: I,
    weights: &Tile<F>,
    x: &[SuperTile; R],
) -> [I::Ints; R] {
    let mut products = [isa.ints(0); R];
    for block in 0..PER_TILE {
        for part in 0..F::PARTS {
            let mut sums = [isa.ints(0); R];
            let quads = QUADS / F::PARTS;
            for quad in part * quads..(part + 1) * quads {
                let w = isa.bytes(&weights.q[block][quad]);
                for r in 0..R {
                    sums[r] = isa.dot(sums[r], w, isa.repeat(&x[r].q[block][quad]));
                }
            }
            // Scales are there twice.
            let scales = isa.words(&weights.scales[part][block]);
            let scales = isa.word_pairs(scales, isa.repeat_words(&[1, 0]));
            for r in 0..R {
                products[r] = isa.add_ints(products[r], isa.multiply_ints(sums[r], scales));
            }
        }
    }
    products
}
