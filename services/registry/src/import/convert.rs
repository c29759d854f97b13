//! From any source to the canonical form, in bounded memory.
//!
//! Blocks of features are read as the file has them, folded, transposed where
//! needed and handed on in file order, so that the writer only ever appends.

use super::{ActivationSource, SaeSource};
use crate::{
    canonical::Architecture,
    format::{
        FormatError,
        features::{FeatureBlock, Matrix},
        malformed,
    },
    progress::Progress,
};

/// Bytes handed on at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// Smallest decoder norm, as SAELens clamps it.
const NORM_MIN: f64 = 1e-8;

/// Writes the tensors of `source` in canonical order to `emit`; `scale` is the
/// factor by which the SAE expects its input scaled (1 for most).
pub fn convert(
    source: &SaeSource,
    scale: f32,
    progress: &Progress,
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut counter = Counter {
        progress,
        done: 0,
        total: 2 * source.encoder.features() as u64,
    };
    let mut norms = source.rescales_by_decoder_norm.then(Vec::new);
    for_each_block(&source.decoder, &mut counter, &mut |block, _, count| {
        let mut factors = vec![1.0 / scale; count];
        if let Some(norms) = &mut norms {
            for (factor, squared) in factors.iter_mut().zip(block.squared_norms()) {
                let norm = squared.sqrt().max(NORM_MIN);
                *factor = narrow(1.0 / norm);
                norms.push(narrow(norm));
            }
        }
        emit_rows(block, &factors, emit)
    })?;
    let mut dots = Vec::new();
    for_each_block(&source.encoder, &mut counter, &mut |block, start, count| {
        if source.subtracts_b_dec {
            dots.extend(block.dots(&source.b_dec));
        }
        let factors = match &norms {
            Some(norms) => norms[start..start + count].to_vec(),
            None => vec![scale; count],
        };
        emit_rows(block, &factors, emit)
    })?;
    emit(scalars(source, &dots, norms.as_deref())?)?;
    let b_dec = source
        .b_dec
        .iter()
        .flat_map(|value| (value / scale).to_le_bytes())
        .collect();
    emit(b_dec)
}

struct Counter<'a> {
    progress: &'a Progress,
    done: u64,
    total: u64,
}

type Visit<'a> = dyn FnMut(&FeatureBlock, usize, usize) -> Result<(), FormatError> + 'a;

/// Visits all features in order: the block, its first feature, its number of features.
fn for_each_block(
    matrix: &Matrix,
    counter: &mut Counter<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), FormatError> {
    let mut block = FeatureBlock::default();
    let step = matrix.features_per_block();
    for start in (0..matrix.features()).step_by(step) {
        let count = step.min(matrix.features() - start);
        counter
            .progress
            .report("transposing", counter.done, counter.total)?;
        block.load(matrix, start, count)?;
        visit(&block, start, count)?;
        counter.done += count as u64;
    }
    Ok(())
}

fn emit_rows(
    block: &FeatureBlock,
    factors: &[f32],
    emit: &mut dyn FnMut(Vec<u8>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let step = (CHUNK_BYTES / (block.width() * size_of::<f32>())).max(1);
    for (chunk, factors) in factors.chunks(step).enumerate() {
        let rows = block.rows(chunk * step, factors);
        if factors.iter().any(|&factor| factor != 1.0) {
            check_scaled(&rows)?;
        }
        emit(rows)?;
    }
    Ok(())
}

/// Products of finite numbers can still overflow.
fn check_scaled(rows: &[u8]) -> Result<(), FormatError> {
    let (cells, _) = rows.as_chunks::<4>();
    if cells
        .iter()
        .all(|cell| f32::from_le_bytes(*cell).is_finite())
    {
        return Ok(());
    }
    Err(malformed(
        "the weights with all scales folded in are not finite in float32",
    ))
}

/// The `scalars` tensor, with `dots` (b_dec · W_enc[:, i], if subtracted) and
/// decoder norms folded in.
fn scalars(
    source: &SaeSource,
    dots: &[f64],
    norms: Option<&[f32]>,
) -> Result<Vec<u8>, FormatError> {
    let dot = |i: usize| dots.get(i).copied().unwrap_or(0.0);
    let norm = |i: usize| norms.map_or(1.0, |norms| f64::from(norms[i]));
    let mut values = Vec::with_capacity(
        source.encoder.features() * source.activation.architecture().scalar_count(),
    );
    match &source.activation {
        ActivationSource::Relu { b_enc } => {
            values.extend(
                b_enc
                    .iter()
                    .enumerate()
                    .map(|(i, &b)| narrow((f64::from(b) - dot(i)) * norm(i))),
            );
        }
        ActivationSource::JumpRelu { b_enc, threshold } => {
            for (i, (&b, &threshold)) in b_enc.iter().zip(threshold).enumerate() {
                values.extend([narrow((f64::from(b) - dot(i)) * norm(i)), threshold]);
            }
        }
        ActivationSource::Gated {
            b_gate,
            r_mag,
            b_mag,
        } => {
            for (i, ((&gate, &r), &mag)) in b_gate.iter().zip(r_mag).zip(b_mag).enumerate() {
                let magnitude = f64::from(r).exp();
                values.extend([
                    narrow(f64::from(gate) - dot(i)),
                    narrow(magnitude),
                    narrow(f64::from(mag) - magnitude * dot(i)),
                ]);
            }
        }
        ActivationSource::Stored { scalars, .. } => values.extend(scalars),
    }
    check_finite(&values, source.activation.architecture())?;
    Ok(values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect())
}

/// Sums of finite numbers can still overflow.
fn check_finite(values: &[f32], architecture: Architecture) -> Result<(), FormatError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(position) => Err(malformed(format!(
            "the folded biases of feature {} are not finite in float32",
            position / architecture.scalar_count()
        ))),
    }
}

// The canonical form is f32; folding is done in f64 and rounded once.
fn narrow(value: f64) -> f32 {
    value as f32
}
