//! What goes into the engine and what comes out.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use steering_proto::generate::Priority;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Choice, SamplingPlan};
use crate::steering::{Collected, Program, Reading, Tally};

/// Events that one variant may send in one step: a token and its end.
const EVENTS_PER_STEP: usize = 2;
/// Events buffered per variant before a slow reader parks its request.
const EVENTS_PER_VARIANT: usize = 16;

/// A request, checked and compiled: one prompt, one or more variants.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// What to do with it.
    pub task: Task,
    /// One program per variant.
    pub variants: Vec<Arc<Program>>,
    /// Place in the queue.
    pub priority: Priority,
    /// How events and failures reach whoever asked.
    pub link: Link,
}

/// What to do with a prompt.
#[derive(Debug, Clone)]
pub enum Task {
    /// Write on.
    Generate {
        /// How tokens are chosen.
        sampling: Arc<SamplingPlan>,
        /// Compare with an unsteered twin.
        kl_divergence: bool,
    },
    /// Read a given continuation and report its likelihood.
    Score {
        /// At least one token.
        continuation: Arc<[u32]>,
    },
    /// Read, and report what was collected.
    Capture,
}

impl Task {
    /// Tokens behind the prompt, at most.
    pub fn max_new_tokens(&self) -> usize {
        match self {
            Self::Generate { sampling, .. } => sampling.max_new_tokens,
            Self::Score { continuation } => continuation.len(),
            Self::Capture => 0,
        }
    }

    /// Whether a variant with this program gets an unsteered twin.
    pub fn needs_twin(&self, program: &Program) -> bool {
        matches!(
            self,
            Self::Generate {
                kl_divergence: true,
                ..
            }
        ) && !program.is_unsteered()
    }
}

/// The engine's end of a request. Closing the receiver cancels the request.
#[derive(Debug, Clone)]
pub struct Link {
    events: Sender<Event>,
    failure: Arc<OnceLock<Failure>>,
    deadline: Option<Instant>,
    n_variants: usize,
}

/// The other end.
#[derive(Debug)]
pub struct Outcome {
    /// Ends when every variant has ended, or all at once by a failure.
    pub events: Receiver<Event>,
    failure: Arc<OnceLock<Failure>>,
}

/// Why a request ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline passed.
    Deadline,
    /// Its reader did not read for so long.
    SlowReader(Duration),
    /// What this variant does leaves no finite numbers to go on with.
    NotFinite(usize),
    /// The model failed.
    Internal(String),
}

/// A bounded connection between a request and the engine.
pub fn link(n_variants: usize, deadline: Option<Instant>) -> (Link, Outcome) {
    let (sender, events) = channel(EVENTS_PER_VARIANT * n_variants);
    let failure = Arc::new(OnceLock::new());
    let link = Link {
        events: sender,
        failure: failure.clone(),
        deadline,
        n_variants,
    };
    (link, Outcome { events, failure })
}

impl Outcome {
    /// Why the events ended early, if they did.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }
}

impl Link {
    /// Whether nothing more is to be done for the request.
    pub(super) fn is_over(&self) -> bool {
        self.events.is_closed() || self.failure.get().is_some()
    }

    /// Whether the request ended by a failure.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Ends the request if its deadline has passed.
    pub(super) fn check_deadline(&self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail(Failure::Deadline);
        }
    }

    /// Ends the request early; the first reason counts.
    pub(super) fn fail(&self, failure: Failure) {
        let _ = self.failure.set(failure);
    }

    /// Whether the reader has room for what a step may produce.
    pub(super) fn has_room(&self) -> bool {
        self.events.capacity() >= EVENTS_PER_STEP * self.n_variants
    }

    pub(super) fn send(&self, event: Event) {
        // Room was checked before the step. An error means that the reader has
        // gone; the sequence is dropped before the next step.
        let _ = self.events.try_send(event);
    }
}

/// What the engine reports.
#[derive(Debug)]
pub enum Event {
    /// A token was generated.
    Token(TokenEvent),
    /// A variant is complete.
    Finished(Finish),
    /// A continuation was scored.
    Scored(Scored),
    /// A text was read.
    Captured(Collected),
}

/// A generated token.
#[derive(Debug)]
pub struct TokenEvent {
    /// Index of the variant.
    pub variant: usize,
    /// The token and its probabilities.
    pub choice: Choice,
    /// Text that became certain with it.
    pub text: String,
    /// What was read at the tokens before it.
    pub readings: Vec<Reading>,
    /// KL(steered ‖ unsteered) in nats, if asked for.
    pub kl_divergence: Option<f32>,
}

/// A variant is complete.
#[derive(Debug)]
pub struct Finish {
    /// Index of the variant.
    pub variant: usize,
    /// Why.
    pub reason: FinishReason,
    /// Text held back until now.
    pub text: String,
    /// Tokens generated.
    pub generated: usize,
    /// Prompt tokens that were not computed for this variant.
    pub shared_prompt_tokens: usize,
    /// What each intervention did.
    pub tallies: Vec<Tally>,
    /// Readings that no token carried.
    pub readings: Vec<Reading>,
}

/// Why a variant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token.
    Eos,
    /// A stop string.
    Stop,
    /// `max_new_tokens` reached.
    MaxNewTokens,
    /// The context is full.
    ContextLength,
    /// The stop condition of this index.
    Condition(usize),
    /// The next token's logits are not finite.
    NotFinite,
}

/// A continuation was scored.
#[derive(Debug)]
pub struct Scored {
    /// Index of the variant.
    pub variant: usize,
    /// ln p of each of its tokens.
    pub logprobs: Vec<f32>,
    /// What each intervention did.
    pub tallies: Vec<Tally>,
}
