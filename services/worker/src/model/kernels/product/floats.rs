//! Products with floats: a tile of weights becomes f32 once for many rows.

use super::{Columns, ahead};
use crate::model::kernels::{
    activations::{PER_TILE, Piece, TILE, Tile},
    formats::Floats,
    isa::{Isa, total},
};

/// Weight rows multiplied together.
const GROUP: usize = 4;
/// Activation rows multiplied together: as many sums as fit the registers.
const ROWS: usize = 3;
/// Activation rows for which a tile is unpacked once.
const CHUNK: usize = 48;

/// Computes the columns.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) fn compute<F: Floats>(mut columns: Columns<'_>, isa: impl Isa) {
    let row_bytes = columns.weights.bytes_of(columns.weights.in_width);
    let weights = &columns.weights.bytes[columns.first * row_bytes..];
    if let [out] = &mut columns.out[..] {
        let x = columns.x.floats.only_row();
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        let mut rows = weights.chunks_exact(row_bytes);
        for (i, out) in groups.iter_mut().enumerate() {
            let next = ahead(weights, i + 2, GROUP * row_bytes);
            let group = [(); GROUP].map(|()| rows.next().unwrap_or_default());
            *out = isa.totals(row_sums::<F, _, _>(isa, (group, next), x));
        }
        for (out, row) in rest.iter_mut().zip(rows) {
            let [sum] = row_sums::<F, _, _>(isa, ([row], &[]), x);
            *out = total(isa.array(sum));
        }
        return;
    }
    let mut tiles = [Tile::EMPTY; GROUP];
    let mut sums = vec![[isa.splat(0.0); GROUP]; columns.out.len().min(CHUNK)];
    for (chunk, out) in columns.out.chunks_mut(CHUNK).enumerate() {
        let sums = &mut sums[..out.len()];
        for (i, column) in (0..out[0].len()).step_by(GROUP).enumerate() {
            let next = ahead(weights, i + 1, GROUP * row_bytes);
            let group = GROUP.min(out[0].len() - column);
            let rows = &weights[column * row_bytes..(column + group) * row_bytes];
            sums.fill([isa.splat(0.0); GROUP]);
            for tile in 0..columns.weights.in_width.div_ceil(TILE) {
                isa.prefetch(ahead(next, tile, GROUP * columns.weights.bytes_of(TILE)));
                let eights = TILE.min(columns.weights.in_width - tile * TILE).div_ceil(8);
                let mut weights = [&[][..]; GROUP];
                for g in 0..GROUP {
                    // Where there are fewer rows, the last stands in.
                    let row = &rows[g.min(group - 1) * row_bytes..][..row_bytes];
                    match F::in_place(row) {
                        Some(row) => weights[g] = &row[tile * TILE / 8..][..eights],
                        None => unpack::<F>(isa, row, tile, &mut tiles[g]),
                    }
                }
                for g in 0..GROUP {
                    if weights[g].is_empty() {
                        weights[g] = &tiles[g].0[..eights];
                    }
                }
                let x = columns.x.floats.tiles(tile, chunk * CHUNK);
                tile_sums(isa, weights, x, sums);
            }
            for (out, sums) in out.iter_mut().zip(&*sums) {
                let totals = isa.totals(*sums);
                let out = &mut out[column..column + group];
                match out.as_mut_array() {
                    Some(out) => *out = totals,
                    None => out.copy_from_slice(&totals[..group]),
                }
            }
        }
    }
}

/// Sums of some weight rows with one activation row, straight from what is
/// stored: several, since one row's sums wait for each other. What comes after the
/// rows is asked for little by little: all at once would have to wait.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn row_sums<F: Floats, I: Isa, const G: usize>(
    isa: I,
    (weights, next): ([&[u8]; G], &[u8]),
    x: &[[[f32; 8]; 4]],
) -> [I::Floats; G] {
    let mut sums = [isa.splat(0.0); G];
    let mut stored = [(&[][..], &[][..]); G];
    for (stored, row) in stored.iter_mut().zip(weights) {
        *stored = F::stored(row);
    }
    let n = stored[0].0.len();
    let (whole, rest) = x.split_at(n);
    let mut pieces = [&[][..]; G];
    for (pieces, (stored, _)) in pieces.iter_mut().zip(stored) {
        *pieces = &stored[..n];
    }
    for (i, x) in whole.iter().enumerate() {
        isa.prefetch(ahead(next, i, G * size_of::<F::Stored>()));
        for g in 0..G {
            let w = F::unpack(isa, &pieces[g][i]);
            for (w, x) in w.into_iter().zip(x) {
                sums[g] = isa.fma(w, isa.floats(x), sums[g]);
            }
        }
    }
    if let (false, [x, ..]) = (stored[0].1.is_empty(), rest) {
        for (sum, (_, rest)) in sums.iter_mut().zip(stored) {
            for (w, x) in F::unpack_rest(isa, rest).into_iter().zip(x) {
                *sum = isa.fma(w, isa.floats(x), *sum);
            }
        }
    }
    sums
}

/// Adds the products of a tile's width of weights with a tile of every activation
/// row. The same numbers in the same order as [`row_sums`].
#[inline(always)]
fn tile_sums<I: Isa>(
    isa: I,
    weights: [&[[f32; 8]]; GROUP],
    x: &[Tile],
    sums: &mut [[I::Floats; GROUP]],
) {
    let mut row = 0;
    while row < sums.len() {
        let left = &mut sums[row..];
        // One row alone would wait for its own sums: better twice two than
        // three and one.
        let together = match left.len() {
            1 => 1,
            2 | 4 => 2,
            _ => ROWS,
        };
        if let (ROWS, Some(sums)) = (together, left.first_chunk_mut::<ROWS>()) {
            multiply(isa, weights, [&x[row], &x[row + 1], &x[row + 2]], sums);
        } else if let (2, Some(sums)) = (together, left.first_chunk_mut::<2>()) {
            multiply(isa, weights, [&x[row], &x[row + 1]], sums);
        } else if let Some(sums) = left.first_chunk_mut::<1>() {
            multiply(isa, weights, [&x[row]], sums);
        }
        row += together;
    }
}

/// Unpacks a tile of a weight row; zeros behind the row's end.
#[inline(always)]
pub(in crate::model::kernels) fn unpack<F: Floats>(
    isa: impl Isa,
    row: &[u8],
    tile: usize,
    unpacked: &mut Tile,
) {
    let (stored, rest) = F::stored(row);
    let here = &stored[tile * PER_TILE..stored.len().min((tile + 1) * PER_TILE)];
    let blocks = unpacked.0.as_chunks_mut::<4>().0;
    for (stored, to) in here.iter().zip(&mut *blocks) {
        for (to, w) in to.iter_mut().zip(F::unpack(isa, stored)) {
            *to = isa.array(w);
        }
    }
    let mut left = blocks[here.len()..].iter_mut();
    if !rest.is_empty()
        && let Some(to) = left.next()
    {
        for (to, w) in to.iter_mut().zip(F::unpack_rest(isa, rest)) {
            *to = isa.array(w);
        }
    }
    left.for_each(|to| *to = [[0.0; 8]; 4]);
}

/// Adds the products of weights and activations to their sums.
#[inline(always)]
fn multiply<I: Isa, const R: usize>(
    isa: I,
    weights: [&[[f32; 8]]; GROUP],
    rows: [&Tile; R],
    sums: &mut [[I::Floats; GROUP]; R],
) {
    let mut local = *sums;
    let n = weights[0].len().min(TILE / 8);
    let weights = weights.map(|w| &w[..n]);
    let rows = rows.map(|row| &row.0[..n]);
    for v in 0..n {
        for g in 0..GROUP {
            let w = isa.floats(&weights[g][v]);
            for r in 0..R {
                local[r][g] = isa.fma(w, isa.floats(&rows[r][v]), local[r][g]);
            }
        }
    }
    *sums = local;
}
