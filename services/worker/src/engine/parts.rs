//! A step in parts, each on a thread of its own.
//!
//! To share out every product of a small model costs more than it saves. Its sequences
//! are shared out instead, once for the whole stack: a row's result does not depend on
//! the rows beside it.

use std::ops::Range;

use rayon::prelude::*;

use super::groups::Placed;
use crate::{
    model::{Batch, Chunk, KvCache, Model, Scores, Shared},
    steering::{Participant, StepHook},
};

/// Chunks of a step that are read together.
struct Part<'a> {
    batch: Batch,
    cache: KvCache,
    hook: StepHook<'a>,
    scores: &'a mut Scores,
}

/// Runs the model over a step, cut into `most` parts or fewer; `participants` are those
/// of `placed`. Each part's scores are in `scores`, in the chunks' order.
pub(super) fn forward(
    model: &Model,
    most: usize,
    (placed, participants): (&[Placed], Vec<Participant<'_>>),
    cache: &mut KvCache,
    scores: &mut Vec<Scores>,
) -> candle_core::Result<()> {
    let pieces = cut(placed, most, model.config().layers.len());
    scores.resize_with(pieces.len(), Scores::default);
    let mut participants = participants.into_iter();
    let mut parts = Vec::with_capacity(pieces.len());
    for (piece, scores) in pieces.into_iter().zip(scores) {
        let first = piece.start;
        let chunks = placed[piece]
            .iter()
            .map(|placed| moved(&placed.chunk, first));
        let batch = Batch {
            chunks: chunks.collect(),
        };
        let own = participants.by_ref().take(batch.chunks.len());
        let mut part = Part {
            hook: StepHook::new(own.collect()),
            cache: model.new_cache(cache.n_slots()),
            batch,
            scores,
        };
        part.exchange(cache);
        parts.push(part);
    }
    let results: Vec<_> = parts
        .par_iter_mut()
        .map(|part| model.forward(&part.batch, &mut part.cache, &mut part.hook, part.scores))
        .collect();
    for part in &mut parts {
        part.exchange(cache);
    }
    results.into_iter().collect()
}

impl Part<'_> {
    /// Exchanges what its slots hold.
    fn exchange(&mut self, cache: &mut KvCache) {
        for chunk in &self.batch.chunks {
            self.cache.exchange(chunk.slot, cache);
        }
    }
}

/// Cuts a step into pieces of about the same work. Chunks that share work stay together.
fn cut(placed: &[Placed], most: usize, n_layers: usize) -> Vec<Range<usize>> {
    let work = |placed: &Placed| {
        let shared = placed.chunk.shared.map_or(0, |shared| shared.layers);
        placed.chunk.tokens.len() * (n_layers + 1 - shared)
    };
    // The first chunk that it or any chunk behind it follows.
    let mut first_leader: Vec<usize> = placed
        .iter()
        .map(|placed| {
            placed
                .chunk
                .shared
                .map_or(usize::MAX, |shared| shared.leader)
        })
        .collect();
    for index in (1..placed.len()).rev() {
        first_leader[index - 1] = first_leader[index - 1].min(first_leader[index]);
    }
    let all: usize = placed.iter().map(work).sum();
    let mut pieces = Vec::with_capacity(most);
    let (mut first, mut done) = (0, 0);
    for (index, placed) in placed.iter().enumerate() {
        if first_leader[index] >= index && done * most >= all * (pieces.len() + 1) {
            pieces.push(first..index);
            first = index;
        }
        done += work(placed);
    }
    pieces.push(first..placed.len());
    pieces
}

/// A chunk in a batch that begins with the step's chunk `first`.
fn moved(chunk: &Chunk, first: usize) -> Chunk {
    Chunk {
        shared: chunk.shared.map(|shared| Shared {
            leader: shared.leader - first,
            ..shared
        }),
        ..chunk.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::groups::Member, *};
    use crate::model::Logits;

    const LAYERS: usize = 3;

    /// Chunks of so many tokens, some of which leave a layer to an earlier one.
    fn step(chunks: &[(usize, Option<usize>)]) -> Vec<Placed> {
        let chunk = |(slot, &(tokens, leader)): (usize, &(usize, Option<usize>))| Chunk {
            slot,
            start: 0,
            tokens: vec![1; tokens],
            logits: Logits::Last,
            shared: leader.map(|leader| Shared { leader, layers: 1 }),
        };
        let placed = |chunk| Placed {
            member: Member {
                sequence: 0,
                lane: 0,
            },
            chunk,
            tokens: Vec::new(),
        };
        chunks.iter().enumerate().map(chunk).map(placed).collect()
    }

    #[test]
    fn sequences_are_shared_out_evenly() {
        assert_eq!(cut(&step(&[(1, None); 16]), 2, LAYERS), [0..8, 8..16]);
        assert_eq!(cut(&step(&[(1, None); 5]), 2, LAYERS), [0..3, 3..5]);
        assert_eq!(cut(&step(&[(1, None); 3]), 8, LAYERS), [0..1, 1..2, 2..3]);
        assert_eq!(cut(&step(&[(1, None); 9]), 1, LAYERS).len(), 1);
    }

    #[test]
    fn a_long_prompt_is_a_part() {
        let chunks = [(1, None), (1, None), (40, None), (1, None), (1, None)];
        assert_eq!(cut(&step(&chunks), 2, LAYERS), [0..3, 3..5]);
        assert_eq!(cut(&step(&[(40, None)]), 4, LAYERS).len(), 1);
    }

    #[test]
    fn what_shares_work_stays_together() {
        let (own, follows) = ((5, None), |leader| (5, Some(leader)));
        let chunks = step(&[own, own, follows(0), own, follows(3)]);
        assert_eq!(cut(&chunks, 8, LAYERS), [0..3, 3..5]);
        let moved = moved(&chunks[4].chunk, 3);
        assert_eq!(moved.shared.map(|shared| shared.leader), Some(0));
    }
}
