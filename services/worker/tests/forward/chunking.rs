//! However a prompt is cut and whoever shares the batch.

use super::*;

/// Longer than any fixture's window, and than the buffer of a windowed layer.
const PROMPT: usize = 90;

fn alone_and_in_company(what: &str, model: &Model) {
    let prompt = tokens(model, PROMPT, 0);
    let whole = read(model, &mut model.new_cache(1), 0, 0, &prompt, PROMPT);
    for size in [1, 2, 3, 5, 64] {
        let what = format!("{what} by {size}");
        let cut = read(model, &mut model.new_cache(1), 0, 0, &prompt, size);
        same(&cut, &whole, &what);
        same(&among_strangers(model, &prompt, size), &whole, &what);
    }
    same(&among_strangers(model, &prompt, PROMPT), &whole, what);
}

/// Reads the prompt while others read theirs: longer, shorter, in other chunks.
fn among_strangers(model: &Model, prompt: &[u32], size: usize) -> Rows {
    let strangers = [(130, 7), (17, 4), (55, 1)].map(|(n, size)| (tokens(model, n, n), size));
    let mut cache = model.new_cache(4);
    let mut rows = Vec::new();
    for (i, part) in prompt.chunks(size).enumerate() {
        let mut chunks = Vec::new();
        for (slot, (tokens, size)) in strangers.iter().enumerate() {
            if let Some(part) = tokens.chunks(*size).nth(i) {
                chunks.push(chunk(slot, i * size, part));
            }
        }
        let ours = 1.min(chunks.len());
        chunks.insert(ours, chunk(3, i * size, part));
        let logits = step(model, &mut cache, chunks, &mut NoHook).expect("step");
        rows.extend(logits[ours].clone());
    }
    rows
}

#[test]
fn neither_chunks_nor_strangers_change_a_bit() {
    for_every_family(alone_and_in_company);
}

#[test]
fn nor_do_they_in_half_precision() {
    for family in ["gemma2", "gemma3", "qwen2"] {
        let options = LoadOptions {
            precision: Precision::Bf16,
            ..f32_on_cpu()
        };
        let model = Fixture::load(family).model("model/config.json", &options);
        alone_and_in_company(family, &model);
    }
}

#[test]
fn logits_from_a_token_on_are_the_last_rows() {
    for_every_family(|family, model| {
        let prompt = tokens(model, 12, 0);
        let all = read(model, &mut model.new_cache(1), 0, 0, &prompt, 12);
        let rows = |logits| {
            let chunk = Chunk {
                logits,
                ..chunk(0, 0, &prompt)
            };
            let batch = Batch {
                chunks: vec![chunk],
            };
            // What was there before is gone.
            let mut scores = Scores {
                logits: vec![1.0; 3],
                top: vec![Top::default(); 2],
            };
            let mut cache = model.new_cache(1);
            let read = model.forward(&batch, &mut cache, &mut NoHook, &mut scores);
            read.expect("forward");
            if let Logits::Top(n) = logits {
                let [top] = &scores.top[..] else {
                    panic!("one chunk, one token");
                };
                let last: Vec<f32> = all[11].iter().map(|v| f32::from_bits(*v)).collect();
                let mut sorted = last.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for (id, logit) in (0u32..).zip(&last) {
                    let wanted = *logit >= sorted[n as usize - 1];
                    assert_eq!(top.candidates.contains(&(id, *logit)), wanted, "{family}");
                }
                let sum: f64 = last.iter().map(|v| f64::from(*v).exp()).sum();
                assert!(
                    (f64::from(top.log_sum_exp) - sum.ln()).abs() < 1e-5,
                    "{family}"
                );
            } else {
                assert!(scores.top.is_empty());
            }
            bits(model, &scores.logits)
        };
        same(&rows(Logits::From(7)), &all[7..].to_vec(), family);
        same(&rows(Logits::Last), &all[11..].to_vec(), family);
        assert!(rows(Logits::From(12)).is_empty());
        assert!(rows(Logits::None).is_empty());
        assert!(rows(Logits::Top(1)).is_empty());
        assert!(rows(Logits::Top(7)).is_empty());
    });
}

/// Keeps the last layer's output.
#[derive(Default)]
struct Capture(Vec<Vec<f32>>);

impl Hook for Capture {
    fn wants(&self, point: HookPoint) -> bool {
        point.site == Site::ResidPost
    }

    fn apply(
        &mut self,
        _: HookPoint,
        x: &Tensor,
        _: &[usize],
    ) -> candle_core::Result<Option<Tensor>> {
        self.0 = x.to_vec2()?;
        Ok(None)
    }
}

#[test]
fn projecting_the_last_activation_gives_the_logits() {
    for_every_family(|family, model| {
        let prompt = tokens(model, 9, 0);
        let mut hook = Capture::default();
        let chunks = vec![chunk(0, 0, &prompt)];
        let logits = step(model, &mut model.new_cache(1), chunks, &mut hook).expect("step");
        let projected = model.project(&hook.0[8]).expect("projects");
        let cap = model.config().final_softcap;
        for (projected, logit) in projected.iter().zip(&logits[0][8]) {
            let logit = f32::from_bits(*logit);
            let projected = cap.map_or(*projected, |cap| {
                (f64::from(*projected) / cap).tanh() as f32 * cap as f32
            });
            assert!(
                (projected - logit).abs() <= 1e-5,
                "{family}: {projected} {logit}"
            );
        }
    });
}
