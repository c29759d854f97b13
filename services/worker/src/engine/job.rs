//! What goes into the engine and what comes out.

use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use super::{Choice, SamplingPlan};
use crate::steering::{Program, Tally};

/// A request, checked and compiled: one prompt, one or more variants.
#[derive(Debug)]
pub struct Job {
    /// Token ids of the prompt, at least one.
    pub prompt: Arc<[u32]>,
    /// What to decode.
    pub variants: Vec<VariantJob>,
    /// How tokens are chosen.
    pub sampling: Arc<SamplingPlan>,
    /// Where events go. Closing the receiver cancels the job.
    pub events: Sender<Event>,
}

/// One variant of a job.
#[derive(Debug)]
pub struct VariantJob {
    /// Its interventions, compiled.
    pub program: Program,
}

/// What the engine reports.
#[derive(Debug)]
pub enum Event {
    /// A token was generated.
    Token(TokenEvent),
    /// A variant is complete.
    Finished(Finish),
    /// A variant could not go on.
    Failed(String),
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
    /// What each intervention did.
    pub tallies: Vec<Tally>,
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
}
