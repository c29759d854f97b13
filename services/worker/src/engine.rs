//! The engine: one OS thread owns the model and steps all live sequences.
//!
//! Requests arrive through a bounded queue; each step reads prompt chunks and
//! decode rows of all running sequences together. Results leave through a
//! bounded channel per request. A request whose channel is full is parked until
//! its reader catches up; one whose channel is closed is dropped before the next
//! step, and its slots are free.

mod job;
mod sampler;
mod sampling;
mod scheduler;
mod sequence;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    model::{Batch, KvCache, Model},
    steering::{Participant, StepHook},
    text::TextCodec,
};

pub use job::{Event, Finish, FinishReason, Job, TokenEvent, VariantJob};
pub use sampler::Choice;
pub use sampling::{GenerationDefaults, SamplingPlan, Strategy};
use sequence::Sequence;

/// How long the engine waits before it looks again at parked readers.
const PARKED_POLL: Duration = Duration::from_millis(2);

/// Bounds of the engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Sequences decoded at the same time.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// Prompt tokens read in one step, over all sequences.
    pub prompt_tokens_per_step: usize,
    /// Longest prompt + generation, in tokens.
    pub context_length: usize,
}

/// Hands jobs to the engine's thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    jobs: SyncSender<Job>,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: try again later.
    #[error("the queue is full")]
    Full,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

impl EngineHandle {
    /// Queues a job, or refuses it at the door.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.jobs.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }
}

/// Starts the engine's thread. It ends when every handle is gone and all
/// accepted work is done.
pub fn start(
    model: Arc<Model>,
    codec: Arc<TextCodec>,
    config: EngineConfig,
) -> std::io::Result<(EngineHandle, JoinHandle<()>)> {
    let (jobs, inbox) = mpsc::sync_channel(config.max_queued);
    let thread = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || Engine::new(model, codec, config, inbox).run())?;
    Ok((EngineHandle { jobs }, thread))
}

struct Engine {
    model: Arc<Model>,
    codec: Arc<TextCodec>,
    config: EngineConfig,
    inbox: Receiver<Job>,
    /// The job at the head of the queue, waiting for slots.
    waiting: VecDeque<Job>,
    running: Vec<Sequence>,
    cache: KvCache,
    free_slots: Vec<usize>,
    closed: bool,
}

impl Engine {
    fn new(
        model: Arc<Model>,
        codec: Arc<TextCodec>,
        config: EngineConfig,
        inbox: Receiver<Job>,
    ) -> Self {
        let cache = model.new_cache(config.max_sequences);
        Self {
            model,
            codec,
            config,
            inbox,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache,
            free_slots: (0..config.max_sequences).rev().collect(),
            closed: false,
        }
    }

    fn run(mut self) {
        loop {
            self.receive();
            self.drop_abandoned();
            self.admit();
            if self.closed && self.running.is_empty() && self.waiting.is_empty() {
                return;
            }
            let views: Vec<_> = self.running.iter().map(Sequence::view).collect();
            let plan = scheduler::plan(&views, self.config.prompt_tokens_per_step);
            if !plan.is_empty() {
                self.step(&plan);
            }
        }
    }

    /// Takes the next job off the queue if none waits for slots; sleeps if there
    /// is nothing else to do.
    fn receive(&mut self) {
        if self.closed || !self.waiting.is_empty() {
            if !self.running.iter().any(Sequence::is_runnable) {
                thread::sleep(PARKED_POLL);
            }
            return;
        }
        let idle = self.running.is_empty();
        let parked = !self.running.iter().any(Sequence::is_runnable);
        let received = if idle {
            self.inbox
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected)
        } else if parked {
            self.inbox.recv_timeout(PARKED_POLL)
        } else {
            self.inbox.recv_timeout(Duration::ZERO)
        };
        match received {
            Ok(job) => self.waiting.push_back(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closed = true,
        }
    }

    /// Frees the slots of sequences whose reader has gone.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.events.is_closed());
        self.release(Sequence::is_abandoned);
    }

    fn release(&mut self, done: impl Fn(&Sequence) -> bool) {
        let (cache, free_slots) = (&mut self.cache, &mut self.free_slots);
        self.running.retain(|sequence| {
            let done = done(sequence);
            if done {
                cache.clear(sequence.slot());
                free_slots.push(sequence.slot());
            }
            !done
        });
    }

    /// Gives slots to waiting jobs, in order, all variants of a job at once.
    fn admit(&mut self) {
        while let Some(job) = self.waiting.front() {
            if job.variants.len() > self.free_slots.len() {
                return;
            }
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            let slots = self
                .free_slots
                .split_off(self.free_slots.len() - job.variants.len());
            let sequences = Sequence::of_job(job, slots, &self.codec, self.config.context_length);
            self.running.extend(sequences);
            // One more may fit, but only the queue knows.
            if let Ok(job) = self.inbox.try_recv() {
                self.waiting.push_back(job);
            }
        }
    }

    /// Reads the planned tokens and lets every sequence that is up to date
    /// choose its next one.
    fn step(&mut self, plan: &[scheduler::Share]) {
        let mut chunks = Vec::with_capacity(plan.len());
        let mut participants = Vec::with_capacity(plan.len());
        let mut shares = plan.iter().peekable();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let Some(share) = shares.next_if(|share| share.sequence == index) else {
                continue;
            };
            let (chunk, tokens) = sequence.chunk(share.tokens, &self.codec);
            chunks.push(chunk);
            let (program, tallies) = sequence.steering();
            participants.push(Participant {
                program,
                tallies,
                tokens,
            });
        }
        let batch = Batch { chunks };
        let mut hook = StepHook::new(participants);
        let logits = self
            .model
            .forward(&batch, &mut self.cache, &mut hook)
            .and_then(|logits| logits.map(|t| t.to_vec2::<f32>()).transpose());
        match logits {
            Ok(logits) => self.advance(plan, logits.unwrap_or_default()),
            Err(e) => {
                tracing::error!("a step failed: {e}");
                for share in plan {
                    self.running[share.sequence].fail(&e.to_string());
                }
            }
        }
        self.release(Sequence::is_finished);
    }

    fn advance(&mut self, plan: &[scheduler::Share], logits: Vec<Vec<f32>>) {
        let mut logits = logits.into_iter();
        for share in plan {
            let sequence = &mut self.running[share.sequence];
            if sequence.advance(share.tokens)
                && let Some(row) = logits.next()
            {
                sequence.choose(&row);
            }
        }
    }
}
