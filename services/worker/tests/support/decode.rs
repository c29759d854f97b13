//! Decoding the cases of a fixture with the reference's own tokens.

use steering_proto::intervention::Token;
use steering_worker::{
    model::{Batch, Chunk, KvCache, Logits, Model, Scores},
    steering::{Participant, Program, ProgramSpec, SteeringState, StepHook},
};

use super::{Case, Fixture};

/// A case being decoded with the reference's own tokens.
pub(crate) struct Run<'a> {
    pub(crate) case: &'a Case,
    pub(crate) program: Program,
    pub(crate) logits: Vec<Vec<f32>>,
    tokens: Vec<u32>,
    read: usize,
    slot: usize,
}

impl<'a> Run<'a> {
    pub(crate) fn new(fixture: &Fixture, case: &'a Case, slot: usize) -> Self {
        let spec = ProgramSpec {
            interventions: &fixture.interventions(case),
            ..ProgramSpec::default()
        };
        let program = Program::compile(&spec).expect("compiles");
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

    /// The most likely token at every step.
    pub(crate) fn greedy(&self) -> Vec<u32> {
        self.logits.iter().map(|row| argmax(row)).collect()
    }

    /// Largest difference to other logits.
    pub(crate) fn difference(&self, other: &[Vec<f32>]) -> f32 {
        assert_eq!(self.logits.len(), other.len());
        self.logits
            .iter()
            .flatten()
            .zip(other.iter().flatten())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    /// Root mean square of the differences to other logits, as a share of theirs.
    pub(crate) fn relative_error(&self, other: &[Vec<f32>]) -> f32 {
        assert_eq!(self.logits.len(), other.len());
        let pairs = self.logits.iter().flatten().zip(other.iter().flatten());
        let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (a, b)| {
            (error + (a - b).powi(2), size + b.powi(2))
        });
        (error / size).sqrt()
    }
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    best.expect("not empty") as u32
}

/// Decodes one case by itself.
pub(crate) fn decode_alone<'a>(model: &Model, fixture: &Fixture, case: &'a Case) -> Run<'a> {
    let mut runs = [Run::new(fixture, case, 0)];
    decode(model, &mut model.new_cache(1), &mut runs, usize::MAX);
    let [run] = runs;
    run
}

/// Decodes all runs together, prompts in chunks of `prompt_chunk`.
pub(crate) fn decode(
    model: &Model,
    cache: &mut KvCache,
    runs: &mut [Run<'_>],
    prompt_chunk: usize,
) {
    while runs.iter().any(|run| !run.done()) {
        let mut chunks = Vec::new();
        let mut participants = Vec::new();
        let state =
            |run: &Run<'_>| SteeringState::new(&run.program, run.case.prompt_token_ids.len());
        let mut states: Vec<_> = runs.iter().map(state).collect();
        for (run, state) in runs.iter().zip(&mut states).filter(|(run, _)| !run.done()) {
            let end = run.read + run.next(prompt_chunk);
            let wanted = end >= run.case.prompt_token_ids.len();
            chunks.push(Chunk {
                slot: run.slot,
                start: run.read,
                tokens: run.tokens[run.read..end].to_vec(),
                logits: if wanted { Logits::Last } else { Logits::None },
                shared: None,
            });
            let token = |position: usize| Token {
                id: run.tokens[position],
                position: position as u32,
                generated: position >= run.case.prompt_token_ids.len(),
                special: false,
            };
            participants.push(Participant::new(
                &run.program,
                state,
                (run.read..end).map(token).collect(),
            ));
        }
        let batch = Batch { chunks };
        let mut hook = StepHook::new(participants);
        let mut scores = Scores::default();
        let read = model.forward(&batch, cache, &mut hook, &mut scores);
        read.expect("forward");
        let mut rows = scores.logits.chunks_exact(model.config().vocab_size);
        for run in runs.iter_mut().filter(|run| !run.done()) {
            run.read += run.next(prompt_chunk);
            if run.read >= run.case.prompt_token_ids.len() {
                run.logits.push(rows.next().expect("a row").to_vec());
            }
        }
    }
}
