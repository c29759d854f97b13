//! From a waiting request to running sequences.

use std::{collections::HashMap, sync::Arc};

use super::{
    Engine, EngineConfig, Failure, Job, Task,
    backlog::Pending,
    generation::Generation,
    prefix::Chain,
    scoring::Scoring,
    sequence::{Lane, Sequence, Work},
};
use crate::{
    steering::{Program, SteeringState},
    text::TextCodec,
};

impl Engine {
    /// Starts variants while there are slots and room for their keys and values.
    pub(super) fn admit(&mut self) {
        let mut held: HashMap<u64, usize> = HashMap::new();
        for sequence in &self.running {
            *held.entry(sequence.job).or_default() += sequence.lanes.len();
        }
        let mut kv_bytes: usize = self.running.iter().map(|s| s.kv_bytes).sum();
        while let Some(index) = self.backlog.next(&held, |p, n| self.may_have_more(p, n)) {
            let pending = self.backlog.get(index);
            let (id, variant) = (pending.id, pending.next_variant);
            let n_lanes = lanes_of(&pending.job, variant);
            let needed = n_lanes * self.kv_bytes_of(&pending.job);
            let room = kv_bytes + needed <= self.config.kv_cache_bytes || self.running.is_empty();
            if self.free_slots.len() < n_lanes || !room {
                return;
            }
            let slots = self.free_slots.split_off(self.free_slots.len() - n_lanes);
            let mut sequence = self.sequence(index, slots, needed);
            self.restore_prefix(&mut sequence);
            self.running.push(sequence);
            kv_bytes += needed;
            *held.entry(id).or_default() += n_lanes;
            if self.backlog.start(index) {
                self.gauges.left_queue(1);
            }
        }
    }

    /// Whether a request that holds this many slots may have another one: a quarter of
    /// the slots, and of the memory, is always left to others.
    fn may_have_more(&self, pending: &Pending, held: usize) -> bool {
        let EngineConfig {
            max_sequences: slots,
            kv_cache_bytes: bytes,
            ..
        } = self.config;
        let needed = (held + 1) * self.kv_bytes_of(&pending.job);
        held == 0 || (held < slots - slots / 4 && needed <= bytes - bytes / 4)
    }

    /// Bytes of keys and values that one lane of a job needs at most.
    fn kv_bytes_of(&self, job: &Job) -> usize {
        let tokens = job.prompt.len() + job.task.max_new_tokens();
        self.model.kv_bytes(tokens.min(self.config.context_length))
    }

    /// The next variant of a waiting request.
    fn sequence(&self, index: usize, slots: Vec<usize>, kv_bytes: usize) -> Sequence {
        let pending = self.backlog.get(index);
        let variant = pending.next_variant;
        let Job {
            prompt,
            task,
            variants,
            priority,
            link,
        } = &pending.job;
        let mut tokens = prompt.to_vec();
        let work = match task {
            Task::Generate {
                sampling,
                kl_divergence,
            } => Work::Generate(Box::new(Generation::new(
                sampling.clone(),
                *kl_divergence,
                self.model.prefers_top(),
                &self.codec,
                self.config.context_length,
            ))),
            Task::Score { continuation } => {
                tokens.extend_from_slice(continuation);
                Work::Score(Scoring::default())
            }
            Task::Capture => Work::Capture,
        };
        let twin = Arc::new(Program::default());
        let programs = [&variants[variant], &twin];
        let lanes = slots.into_iter().zip(programs).map(|(slot, program)| Lane {
            slot,
            state: SteeringState::new(program, prompt.len()),
            program: program.clone(),
            chain: Chain::default(),
            first_edit: None,
        });
        Sequence {
            job: pending.id,
            variant,
            priority: *priority,
            parked_since: None,
            lanes: lanes.collect(),
            kv_bytes,
            link: link.clone(),
            tokens,
            prompt_len: prompt.len(),
            read: 0,
            shared_tokens: 0,
            work,
            finished: false,
        }
    }

    /// Takes the longest beginning of the prompt that was read before under the
    /// same edits. The last prompt token is always read: its logits are needed.
    fn restore_prefix(&mut self, sequence: &mut Sequence) {
        if !sequence.can_be_continued() {
            return;
        }
        let prompt_len = sequence.prompt_len;
        for index in 0..sequence.lanes.len() {
            sequence.extend_chain(index, prompt_len, &self.codec);
        }
        let mut len = prompt_len - 1;
        for index in 0..sequence.lanes.len() {
            match self.prefixes.find(&sequence.lanes[index].chain, len) {
                Some((found, _)) => len = found,
                None => return,
            }
        }
        for index in 0..sequence.lanes.len() {
            // A lane's longest beginning may not be cut to another's length.
            match self.prefixes.find(&sequence.lanes[index].chain, len) {
                Some((found, _)) if found == len => {}
                _ => return,
            }
        }
        for index in 0..sequence.lanes.len() {
            let before: Vec<_> = (0..len).map(|i| sequence.token(i, &self.codec)).collect();
            let lane = &mut sequence.lanes[index];
            let Some((_, prefix)) = self.prefixes.find(&lane.chain, len) else {
                return;
            };
            if let Err(e) = self.cache.restore(lane.slot, &prefix.cache, len) {
                return sequence.link.fail(Failure::Internal(e.to_string()));
            }
            lane.state.restore(&lane.program, &prefix.memory, &before);
            lane.first_edit = lane.program.first_edit(&before);
        }
        sequence.read = len;
        sequence.shared_tokens = len;
        self.gauges.reused(len);
    }
}

/// Slots that a variant takes: a twin needs one of its own.
fn lanes_of(job: &Job, variant: usize) -> usize {
    1 + usize::from(job.task.needs_twin(&job.variants[variant]))
}

impl Sequence {
    /// Whether its beginning may come from, and serve, other sequences.
    pub(super) fn can_be_continued(&self) -> bool {
        let reports_prompt = self.lanes.iter().any(|lane| lane.program.reports_prompt());
        !matches!(self.work, Work::Capture) && !reports_prompt
    }

    /// Extends a lane's chain of hashes to `len` tokens.
    pub(super) fn extend_chain(&mut self, lane: usize, len: usize, codec: &TextCodec) {
        for index in self.lanes[lane].chain.len()..len {
            let token = self.token(index, codec);
            let Lane { chain, program, .. } = &mut self.lanes[lane];
            chain.push(program, token);
        }
    }
}
