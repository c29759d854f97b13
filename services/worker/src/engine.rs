//! The engine: one OS thread owns the model and steps all live sequences.
//!
//! Requests arrive through a bounded queue. Each step reads prompt chunks and
//! decode rows of all running sequences together; variants of a request share
//! what they have in common. Results leave through a bounded channel per
//! request: one whose channel is full is parked until its reader catches up,
//! one whose channel is closed, or whose deadline has passed, is dropped before
//! the next step. What a request gets depends on nothing but the request.

mod backlog;
mod generation;
mod groups;
mod handle;
mod job;
mod pacer;
mod parts;
mod prefix;
mod sampler;
mod sampling;
mod scheduler;
mod scoring;
mod sequence;
mod start;

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use rayon::prelude::*;

use crate::{
    model::{KvCache, Logits, Model, Scores, Top},
    steering::Participant,
    text::TextCodec,
};

use backlog::Backlog;
use groups::{Group, Placed};
use handle::Gauges;
pub use handle::{EngineHandle, EngineLoad, SubmitError, start};
pub use job::{
    Event, Failure, Finish, FinishReason, Job, Link, Outcome, Scored, Task, TokenEvent, link,
};
use pacer::{Pacer, StepCost};
use prefix::{Prefix, PrefixCache};
pub use sampler::Choice;
pub use sampling::{GenerationDefaults, SamplingPlan, Strategy};
use sequence::{Lane, Sequence};

/// How long the engine waits before it looks again at parked readers.
const PARKED_POLL: Duration = Duration::from_millis(2);

/// Bounds of the engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Sequences decoded at the same time, unsteered twins included.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// Prompt tokens read in one step, over all sequences.
    pub prompt_tokens_per_step: usize,
    /// Share by which prompts may lengthen a step of those who decode.
    pub max_stall: f64,
    /// How long a request keeps its slots while its reader does not read.
    pub max_parked: Duration,
    /// Longest prompt + generation, in tokens.
    pub context_length: usize,
    /// Bytes of keys and values over all running sequences.
    pub kv_cache_bytes: usize,
    /// Bytes of keys and values kept for prompts to come.
    pub prefix_cache_bytes: usize,
}

struct Engine {
    model: Arc<Model>,
    codec: Arc<TextCodec>,
    config: EngineConfig,
    inbox: Receiver<Job>,
    gauges: Arc<Gauges>,
    backlog: Backlog,
    running: Vec<Sequence>,
    cache: KvCache,
    /// Parts that a step is cut into, at most.
    parts: usize,
    /// Of the last step's parts.
    scores: Vec<Scores>,
    free_slots: Vec<usize>,
    prefixes: PrefixCache,
    pacer: Pacer,
    closed: bool,
}

/// What a sequence gets of a step.
#[derive(Clone, Default)]
struct Share<'a> {
    /// Tokens read.
    read: usize,
    /// Rows of logits of its lanes.
    by_lane: [Vec<&'a [f32]>; 2],
    top: Option<&'a Top>,
}

impl Engine {
    fn new(
        model: Arc<Model>,
        codec: Arc<TextCodec>,
        config: EngineConfig,
        inbox: Receiver<Job>,
        gauges: Arc<Gauges>,
    ) -> Self {
        let cache = model.new_cache(config.max_sequences);
        let grain = model.prompt_grain();
        let parts = model.parts();
        Self {
            model,
            codec,
            config,
            inbox,
            gauges,
            backlog: Backlog::default(),
            running: Vec::new(),
            cache,
            parts,
            scores: Vec::new(),
            free_slots: (0..config.max_sequences).rev().collect(),
            prefixes: PrefixCache::new(config.prefix_cache_bytes),
            pacer: Pacer::new(config.prompt_tokens_per_step, config.max_stall, grain),
            closed: false,
        }
    }

    fn run(mut self) {
        loop {
            self.receive();
            self.drop_abandoned();
            self.admit();
            if self.closed && self.running.is_empty() && self.backlog.is_empty() {
                return;
            }
            self.step();
            self.gauges.running(&self.running, &self.prefixes);
        }
    }

    /// Takes what has arrived; sleeps if there is nothing else to do.
    fn receive(&mut self) {
        if !self.closed && self.running.is_empty() && self.backlog.is_empty() {
            match self.inbox.recv() {
                Ok(job) => self.backlog.push(job),
                Err(_) => self.closed = true,
            }
        } else if !self.running.iter().any(|s| s.link.has_room()) {
            match self.inbox.recv_timeout(PARKED_POLL) {
                Ok(job) => self.backlog.push(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Returns at once from now on: keep the pace of the poll.
                    std::thread::sleep(PARKED_POLL);
                    self.closed = true;
                }
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(job) => self.backlog.push(job),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// Ends requests whose reader has gone or does not read, or whose deadline has passed.
    fn drop_abandoned(&mut self) {
        let now = Instant::now();
        let waiting = self.backlog.iter().map(|pending| &pending.job.link);
        let links = self.running.iter().map(|s| &s.link).chain(waiting);
        links.for_each(|link| link.check_deadline(now));
        for sequence in &mut self.running {
            sequence.check_reader(now, self.config.max_parked);
        }
        let dropped = self.backlog.drop_if(|job| job.link.is_over());
        self.gauges.left_queue(dropped);
        self.release();
    }

    /// Frees the slots of sequences that are over; what they read is kept for
    /// prompts that begin in the same way.
    fn release(&mut self) {
        let mut kept = Vec::with_capacity(self.running.len());
        for sequence in std::mem::take(&mut self.running) {
            if sequence.is_over() {
                self.give_back(sequence);
            } else {
                kept.push(sequence);
            }
        }
        self.running = kept;
    }

    fn give_back(&mut self, mut sequence: Sequence) {
        let reusable = !sequence.link.has_failed() && sequence.can_be_continued();
        let read = sequence.read;
        for index in 0..sequence.lanes.len() {
            let slot = sequence.lanes[index].slot;
            if reusable {
                sequence.extend_chain(index, read, &self.codec);
                let lane = &mut sequence.lanes[index];
                lane.chain.truncate(read); // it may have been dropped in its prompt
                self.prefixes.insert(Prefix {
                    chain: std::mem::take(&mut lane.chain),
                    cache: self.cache.take(slot),
                    memory: lane.state.memory(&lane.program),
                });
            }
            self.cache.clear(slot);
            self.free_slots.push(slot);
        }
    }

    /// One step: plans, reads, and lets every sequence that is up to date go on.
    fn step(&mut self) {
        let began = Instant::now();
        let n_layers = self.model.config().layers.len();
        let groups = groups::form(&self.running);
        let decode_rows = groups.iter().map(Group::decode_rows).sum();
        let prompts = groups::crowd(&groups);
        let budget = self.pacer.prompt_budget(decode_rows, prompts);
        let units: Vec<_> = groups
            .iter()
            .map(|group| group.unit(&self.running, budget, n_layers, &self.codec))
            .collect();
        let counts = scheduler::plan(&units, budget);
        let mut placed = Vec::new();
        for (group, &n) in groups.iter().zip(&counts).filter(|(_, n)| **n > 0) {
            group.place(n, &mut self.running, n_layers, &self.codec, &mut placed);
        }
        if placed.is_empty() {
            return;
        }
        match self.forward(&placed) {
            Ok(()) => self.advance(&placed),
            Err(e) => {
                tracing::error!("a step failed: {e}");
                for placed in &placed {
                    let link = &self.running[placed.member.sequence].link;
                    link.fail(Failure::Internal(e.to_string()));
                }
            }
        }
        self.release();
        let prompt_rows = units
            .iter()
            .zip(&counts)
            .filter(|(unit, _)| !unit.decodes)
            .map(|(unit, &n)| unit.weight * n as f32);
        self.pacer.observe(StepCost {
            decode_rows,
            prompt_rows: prompt_rows.sum::<f32>().ceil() as usize,
            took: began.elapsed(),
        });
    }

    /// Runs the model over a batch.
    fn forward(&mut self, placed: &[Placed]) -> candle_core::Result<()> {
        let mut lanes: Vec<Vec<Option<&mut Lane>>> = self
            .running
            .iter_mut()
            .map(|sequence| sequence.lanes.iter_mut().map(Some).collect())
            .collect();
        let participants = placed.iter().filter_map(|placed| {
            let lane = lanes[placed.member.sequence][placed.member.lane].take()?;
            let Lane { program, state, .. } = lane;
            Some(Participant::new(program, state, placed.tokens.clone()))
        });
        parts::forward(
            &self.model,
            self.parts,
            (placed, participants.collect()),
            &mut self.cache,
            &mut self.scores,
        )
    }

    /// Hands every sequence of the step its rows of logits.
    fn advance(&mut self, placed: &[Placed]) {
        let vocabulary = self.model.config().vocab_size;
        let scores = self.scores.iter();
        let mut rows = scores
            .clone()
            .flat_map(|s| s.logits.chunks_exact(vocabulary));
        let mut tops = scores.flat_map(|s| &s.top);
        let mut shares = vec![Share::default(); self.running.len()];
        for Placed { member, chunk, .. } in placed {
            let n = chunk.tokens.len();
            let share = &mut shares[member.sequence];
            let wanted = match chunk.logits {
                Logits::None => 0,
                Logits::Last => 1,
                Logits::From(first) => n - first,
                Logits::Top(_) => {
                    share.top = tops.next();
                    0
                }
            };
            share.read = n;
            share.by_lane[member.lane] = rows.by_ref().take(wanted).collect();
        }
        // Choosing a token takes a pass over the vocabulary for each sequence.
        self.running
            .par_iter_mut()
            .zip(&shares)
            .filter(|(_, share)| share.read > 0)
            .for_each(|(sequence, share)| {
                sequence.advance(share.read, &share.by_lane.concat(), share.top);
            });
        let counts: Vec<usize> = shares.into_iter().map(|share| share.read).collect();
        for (index, n) in counts.into_iter().enumerate() {
            let Sequence {
                prompt_len, read, ..
            } = self.running[index];
            if n > 0 && (read - n..read).contains(&(prompt_len - 1)) {
                self.keep_prompt(index);
            }
        }
    }

    /// Keeps a prompt that was not edited, for others that begin in the same
    /// way while this sequence is still running.
    fn keep_prompt(&mut self, index: usize) {
        let sequence = &self.running[index];
        if !sequence.can_be_continued() {
            return;
        }
        let len = sequence.prompt_len;
        for lane in sequence
            .lanes
            .iter()
            .filter(|lane| lane.first_edit.is_none())
        {
            if self.prefixes.has(&lane.chain, len - 1) {
                continue;
            }
            match self.cache.snapshot(lane.slot, len) {
                Ok(cache) => self.prefixes.insert(Prefix {
                    chain: lane.chain.clone(),
                    cache,
                    memory: lane.state.memory(&lane.program),
                }),
                Err(e) => tracing::warn!("a prompt is not kept: {e}"),
            }
        }
    }
}
