//! Logits against Hugging Face transformers with the workshop notebook's hooks.
//! The references are made by `tests/golden/generate.py`.

mod support;

use candle_core::Tensor;
use steering_proto::intervention::Token;
use steering_worker::{
    model::{Batch, Chunk, KvCache, Logits, Model},
    steering::{Participant, Program, StepHook},
};
use support::{Case, FAMILIES, Fixture, f32_on_cpu};

/// Largest difference allowed between our logits and the reference's.
const TOLERANCE: f32 = 1e-4;

/// A case being decoded with the reference's own tokens.
struct Run<'a> {
    case: &'a Case,
    program: Program,
    tokens: Vec<u32>,
    read: usize,
    slot: usize,
    logits: Vec<Vec<f32>>,
}

impl<'a> Run<'a> {
    fn new(fixture: &Fixture, case: &'a Case, slot: usize) -> Self {
        let program = Program::compile(&fixture.interventions(case)).expect("compiles");
        let mut tokens = case.prompt_token_ids.clone();
        tokens.extend(&case.token_ids[..case.token_ids.len() - 1]);
        Self {
            case,
            program,
            tokens,
            read: 0,
            slot,
            logits: Vec::new(),
        }
    }

    /// The next tokens: prompt tokens in chunks, then one by one.
    fn next(&self, prompt_chunk: usize) -> usize {
        let prompt_left = self.case.prompt_token_ids.len().saturating_sub(self.read);
        prompt_left.min(prompt_chunk).max(1)
    }

    fn done(&self) -> bool {
        self.read == self.tokens.len()
    }
}

/// Decodes all runs together, prompts in chunks of `prompt_chunk`.
fn decode(model: &Model, cache: &mut KvCache, runs: &mut [Run<'_>], prompt_chunk: usize) {
    while runs.iter().any(|run| !run.done()) {
        let mut chunks = Vec::new();
        let mut participants = Vec::new();
        let mut tallies: Vec<_> = runs.iter().map(|r| r.program.new_tallies()).collect();
        for (run, tallies) in runs.iter().zip(&mut tallies).filter(|(run, _)| !run.done()) {
            let end = run.read + run.next(prompt_chunk);
            let wanted = end >= run.case.prompt_token_ids.len();
            chunks.push(Chunk {
                slot: run.slot,
                start: run.read,
                tokens: run.tokens[run.read..end].to_vec(),
                logits: if wanted { Logits::Last } else { Logits::None },
            });
            let token = |position: usize| Token {
                id: run.tokens[position],
                position: position as u32,
                generated: position >= run.case.prompt_token_ids.len(),
                special: false,
            };
            participants.push(Participant {
                program: &run.program,
                tallies,
                tokens: (run.read..end).map(token).collect(),
            });
        }
        let batch = Batch { chunks };
        let mut hook = StepHook::new(participants);
        let logits = model.forward(&batch, cache, &mut hook).expect("forward");
        let mut rows = logits
            .map(|t: Tensor| t.to_vec2::<f32>().expect("f32"))
            .into_iter()
            .flatten();
        for run in runs.iter_mut().filter(|run| !run.done()) {
            run.read += run.next(prompt_chunk);
            if run.read >= run.case.prompt_token_ids.len() {
                run.logits.push(rows.next().expect("a row"));
            }
        }
    }
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    best.expect("not empty") as u32
}

fn check(fixture: &Fixture, family: &str, run: &Run<'_>) {
    let name = &run.case.name;
    let expected = fixture.logits[name].to_vec2::<f32>().expect("f32");
    assert_eq!(run.logits.len(), expected.len());
    let error = run
        .logits
        .iter()
        .flatten()
        .zip(expected.iter().flatten())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        error <= TOLERANCE,
        "{family}/{name}: logits differ by {error}"
    );
    let greedy: Vec<u32> = run.logits.iter().map(|row| argmax(row)).collect();
    assert_eq!(greedy, run.case.token_ids, "{family}/{name}");
}

#[test]
fn logits_match_the_reference_alone() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        for case in &fixture.cases.cases {
            let mut runs = [Run::new(&fixture, case, 0)];
            decode(&model, &mut model.new_cache(1), &mut runs, usize::MAX);
            check(&fixture, family, &runs[0]);
        }
    }
}

#[test]
fn logits_match_the_reference_in_one_batch_with_chunked_prompts() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        let cases = &fixture.cases.cases;
        let mut runs: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(slot, case)| Run::new(&fixture, case, slot))
            .collect();
        decode(&model, &mut model.new_cache(cases.len()), &mut runs, 3);
        for run in &runs {
            check(&fixture, family, run);
        }
    }
}

#[test]
fn both_spellings_of_a_configuration_mean_the_same_model() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        for style in ["config_new_style.json", "config_old_style.json"] {
            if !fixture.dir.join(style).exists() {
                continue;
            }
            let model = fixture.model(style, &f32_on_cpu());
            let cases = &fixture.cases.cases;
            let case = cases
                .iter()
                .find(|c| c.name == "long_prompt_clamp")
                .expect("case");
            let mut runs = [Run::new(&fixture, case, 0)];
            decode(&model, &mut model.new_cache(1), &mut runs, usize::MAX);
            check(&fixture, family, &runs[0]);
        }
    }
}

#[test]
fn without_its_interventions_a_steered_case_fails() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        for case in fixture
            .cases
            .cases
            .iter()
            .filter(|c| !c.interventions.is_empty())
        {
            let mut runs = [Run::new(&fixture, case, 0)];
            runs[0].program = Program::default();
            decode(&model, &mut model.new_cache(1), &mut runs, usize::MAX);
            let greedy: Vec<u32> = runs[0].logits.iter().map(|row| argmax(row)).collect();
            assert_ne!(greedy, case.token_ids, "{family}/{}", case.name);
        }
    }
}
