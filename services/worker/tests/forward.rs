//! What a token gets does not depend on how the work is arranged: chunks,
//! strangers in the batch, shared layers, snapshots. All comparisons are of bits.

mod support;

#[path = "forward/caching.rs"]
mod caching;
#[path = "forward/chunking.rs"]
mod chunking;
#[path = "forward/sharing.rs"]
mod sharing;

use candle_core::Tensor;
use steering_proto::{HookPoint, Site};
use steering_worker::model::{
    Batch, Chunk, Hook, KvCache, LoadOptions, Logits, Model, NoHook, Precision, Scores, Top,
};
use support::{FAMILIES, Fixture, f32_on_cpu};

type Rows = Vec<Vec<u32>>;

fn for_every_family(test: impl Fn(&str, &Model)) {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        test(family, &fixture.model("model/config.json", &f32_on_cpu()));
    }
}

/// Some tokens, others for each seed.
fn tokens(model: &Model, n: usize, seed: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size;
    (0..n)
        .map(|i| ((i * i * 7 + i * 31 + seed * 97 + 11) % vocabulary) as u32)
        .collect()
}

fn chunk(slot: usize, start: usize, tokens: &[u32]) -> Chunk {
    Chunk {
        slot,
        start,
        tokens: tokens.to_vec(),
        logits: Logits::From(0),
        shared: None,
    }
}

/// One step. The bits of every chunk's logits, chunk by chunk.
fn step(
    model: &Model,
    cache: &mut KvCache,
    chunks: Vec<Chunk>,
    hook: &mut dyn Hook,
) -> candle_core::Result<Vec<Rows>> {
    let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.tokens.len()).collect();
    let mut scores = Scores::default();
    model.forward(&Batch { chunks }, cache, hook, &mut scores)?;
    let mut rows = bits(model, &scores.logits).into_iter();
    Ok(lengths
        .iter()
        .map(|&n| rows.by_ref().take(n).collect())
        .collect())
}

/// The bits of rows of logits.
fn bits(model: &Model, logits: &[f32]) -> Rows {
    let rows = logits.chunks_exact(model.config().vocab_size);
    rows.map(|row| row.iter().map(|v| v.to_bits()).collect())
        .collect()
}

/// Reads tokens from position `start` on, `size` at a time.
fn read(
    model: &Model,
    cache: &mut KvCache,
    slot: usize,
    start: usize,
    tokens: &[u32],
    size: usize,
) -> Rows {
    let mut rows = Vec::new();
    for (i, part) in tokens.chunks(size).enumerate() {
        let chunk = chunk(slot, start + i * size, part);
        rows.extend(
            step(model, cache, vec![chunk], &mut NoHook)
                .expect("step")
                .concat(),
        );
    }
    rows
}

/// Asserts equality without printing thousands of numbers.
fn same(ours: &Rows, expected: &Rows, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (row, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        assert!(ours == expected, "{what}: row {row} differs");
    }
}
