//! Cosines of decoder rows with a direction.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use multiversion::multiversion;

use super::{SaeFile, top::Top};

/// Bytes read at once: half of a small second-level cache.
const BLOCK_BYTES: usize = 256 << 10;
/// Independent sums, so that additions need not wait for each other.
const LANES: usize = 16;

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// As wide as the SAE's rows, not zero.
    pub direction: &'a [f32],
    /// Feature to leave out: the one that the direction is of.
    pub except: Option<u32>,
    /// How many to return.
    pub top_k: usize,
}

/// A feature and how alike it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// The feature.
    pub index: u32,
    /// Cosine of its decoder row with the query.
    pub cosine: f32,
}

#[derive(Default)]
struct State {
    room: Vec<u8>,
    top: Option<Top<u32>>,
}

/// The features whose decoder rows have the largest cosine with a direction, largest first.
/// Rows of zeros have none and are left out.
pub fn similar(sae: &SaeFile, query: Query<'_>) -> io::Result<Vec<Neighbour>> {
    let width = sae.width();
    let direction = unit(query.direction);
    let squares = sae.object.squares(sae.layout.d_sae as usize);
    let states = sae.visit(BLOCK_BYTES, |state: &mut State, block| {
        let first = block.start;
        let bytes = sae.layout.decoder_range(block);
        let rows = sae.floats(&bytes, &mut state.room)?;
        let top = state.top.get_or_insert_with(|| Top::new(query.top_k));
        for (index, row) in (first..).zip(rows.chunks_exact(width)) {
            let known = squares.and_then(|squares| squares.get(index as usize));
            let (product, square) = (dot(&direction, row), square(row, known));
            if square > 0.0 && Some(index) != query.except {
                top.push(product / square.sqrt(), index);
            }
        }
        Ok(())
    })?;
    let mut top = Top::new(query.top_k);
    states
        .into_iter()
        .filter_map(|state| state.top)
        .for_each(|part| top.merge(part));
    let sorted = top.into_sorted().into_iter();
    Ok(sorted
        .map(|(cosine, index)| Neighbour {
            index,
            cosine: cosine.clamp(-1.0, 1.0),
        })
        .collect())
}

/// The direction at norm 1: the squares of one that is very long or short are no numbers of f32.
fn unit(direction: &[f32]) -> Vec<f32> {
    let squares = direction.iter().map(|&value| f64::from(value).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    let scaled = direction.iter().map(|&value| f64::from(value) / norm);
    scaled.map(|value| value as f32).collect()
}

/// ‖row‖², kept when it was computed first.
fn square(row: &[f32], known: Option<&AtomicU32>) -> f32 {
    let square = known.map_or(0.0, |known| f32::from_bits(known.load(Ordering::Relaxed)));
    if square > 0.0 {
        return square;
    }
    let square = dot(row, row);
    if let Some(known) = known {
        known.store(square.to_bits(), Ordering::Relaxed);
    }
    square
}

/// Their product. One sum in a loop by itself, which the compiler makes fast; not so two. In
/// instructions that every processor has, it would be slower than memory.
#[multiversion(targets("x86_64+avx2"))]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    sums.iter().sum()
}
