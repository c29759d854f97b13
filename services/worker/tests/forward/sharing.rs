//! Chunks that leave their first layers to another.

use super::*;
use steering_worker::model::Shared;

/// Adds to the activations of some chunks, from a layer's output on: every chunk
/// its own number at every hook point that is not before.
struct Edits {
    /// Per chunk: the number of layers before the first edit, and the number.
    chunks: Vec<Option<(usize, f32)>>,
    lengths: Vec<usize>,
    /// Times that it was called with fewer chunks than there are.
    partial: usize,
}

impl Hook for Edits {
    fn wants(&self, point: HookPoint) -> bool {
        let reached = |edit: &Option<(usize, f32)>| edit.is_some_and(|(n, _)| applies(point, n));
        self.chunks.iter().any(reached)
    }

    fn apply(
        &mut self,
        point: HookPoint,
        x: &Tensor,
        chunks: &[usize],
    ) -> candle_core::Result<Option<Tensor>> {
        self.partial += usize::from(chunks.len() < self.chunks.len());
        let mut rows = x.to_vec2::<f32>()?;
        let mut next = rows.iter_mut();
        for &chunk in chunks {
            for row in next.by_ref().take(self.lengths[chunk]) {
                match self.chunks[chunk] {
                    Some((n, value)) if applies(point, n) => {
                        row.iter_mut().step_by(3).for_each(|v| *v += value);
                    }
                    _ => {}
                }
            }
        }
        assert!(next.next().is_none(), "as many rows as tokens");
        let (n, width) = x.dims2()?;
        Tensor::from_vec(rows.concat(), (n, width), x.device()).map(Some)
    }
}

/// Whether an edit that leaves `layers` layers alone is made here.
fn applies(point: HookPoint, layers: usize) -> bool {
    point.layer >= layers || (point.layer + 1 == layers && point.site == Site::ResidPost)
}

/// Leaders, followers and a stranger: (prompt, leader, layers before the first edit).
type Group = Vec<(usize, Option<usize>, usize)>;

fn group(layers: usize, n_layers: usize) -> Group {
    vec![
        (0, None, n_layers),
        (0, Some(0), layers),
        (1, None, n_layers),
        (2, None, 1),
        (1, Some(2), n_layers),
        (0, Some(0), 1 + layers % n_layers),
        (1, Some(2), layers),
        (0, Some(0), layers),
    ]
}

/// Reads prompts in two chunks, then eight tokens more one by one, not shared.
fn run(model: &Model, group: &Group, shared: bool) -> Vec<Vec<Rows>> {
    let mut cache = model.new_cache(group.len());
    let prompts = [70, 33, 41].map(|n| tokens(model, n, n));
    let mut steps = Vec::new();
    for part in 0..10 {
        let one = |(slot, &(prompt, leader, layers)): (usize, &(usize, Option<usize>, usize))| {
            let prompt = &prompts[prompt];
            let cut = prompt.len() / 2;
            let (start, tokens) = match part {
                0 => (0, &prompt[..cut]),
                1 => (cut, &prompt[cut..]),
                _ => (prompt.len() + part - 2, &prompt[part..=part]),
            };
            let leader = leader.filter(|_| shared && part < 2);
            Chunk {
                shared: leader.map(|leader| Shared { leader, layers }),
                ..chunk(slot, start, tokens)
            }
        };
        let chunks: Vec<Chunk> = group.iter().enumerate().map(one).collect();
        let edit = |(i, &(_, _, layers)): (usize, &(usize, Option<usize>, usize))| {
            Some((layers, 0.1 + i as f32 * 0.05))
        };
        let mut hook = Edits {
            chunks: group.iter().enumerate().map(edit).collect(),
            lengths: chunks.iter().map(|chunk| chunk.tokens.len()).collect(),
            partial: 0,
        };
        steps.push(step(model, &mut cache, chunks, &mut hook).expect("step"));
        assert_eq!(hook.partial > 0, shared && part < 2, "work is shared");
    }
    let lengths: Vec<usize> = (0..group.len()).map(|slot| cache.len(slot)).collect();
    let expected: Vec<usize> = group.iter().map(|g| prompts[g.0].len() + 8).collect();
    assert_eq!(lengths, expected);
    steps
}

#[test]
fn sharing_layers_changes_no_bit() {
    for_every_family(|family, model| {
        let n_layers = model.config().layers.len();
        for layers in 1..=n_layers {
            let group = group(layers, n_layers);
            let (shared, alone) = (run(model, &group, true), run(model, &group, false));
            for (part, (shared, alone)) in shared.iter().zip(&alone).enumerate() {
                for (i, (shared, alone)) in shared.iter().zip(alone).enumerate() {
                    let what = format!("{family}, {layers} layers, step {part}, chunk {i}");
                    same(shared, alone, &what);
                }
                let followers = (&shared[1], &shared[0]);
                assert_ne!(followers.0, followers.1, "the edits do something");
            }
        }
    });
}

#[test]
fn a_batch_that_contradicts_itself_is_refused() {
    let model = Fixture::load("gemma3").model("model/config.json", &f32_on_cpu());
    let n_layers = model.config().layers.len();
    let prompt = tokens(&model, 6, 0);
    let follower = |leader, layers| Chunk {
        shared: Some(Shared { leader, layers }),
        ..chunk(1, 0, &prompt)
    };
    let refused = |chunks: Vec<Chunk>, problem: &str| {
        let error = step(&model, &mut model.new_cache(3), chunks, &mut NoHook);
        let error = error.expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    };
    let leader = chunk(0, 0, &prompt);
    refused(vec![leader.clone(), follower(1, 2)], "follows chunk 1");
    refused(vec![leader.clone(), follower(0, 0)], "shares 0 of");
    refused(
        vec![leader.clone(), follower(0, n_layers + 1)],
        "shares 7 of",
    );
    let shorter = chunk(0, 0, &prompt[..5]);
    refused(vec![shorter, follower(0, 2)], "differs from chunk 0");
    let third = Chunk {
        slot: 2,
        ..follower(1, 2)
    };
    refused(vec![leader.clone(), follower(0, 2), third], "a follower");
    refused(vec![chunk(0, 0, &[])], "no tokens");
    refused(vec![chunk(0, 3, &prompt)], "continues at position 0, not 3");
    refused(
        vec![leader.clone(), leader],
        "continues at position 6, not 0",
    );
}
