//! One variant on its way through the model.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use steering_proto::{HookPoint, generate::Priority, intervention::Token};

use super::{
    Event, Failure, Link,
    generation::Generation,
    prefix::Chain,
    scoring::{MAX_LOGIT_ROWS, Scoring},
};
use crate::{
    model::{Logits, Top},
    steering::{Collected, Program, SteeringState},
    text::TextCodec,
};

/// A program's way through the model: a slot of the cache and what has
/// happened there.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) slot: usize,
    pub(super) program: Arc<Program>,
    pub(super) state: SteeringState,
    /// Over the prompt, then over what is read behind it.
    pub(super) chain: Chain,
    /// The first hook point edited so far: below it, keys and values are those
    /// of the unsteered model.
    pub(super) first_edit: Option<HookPoint>,
}

/// One variant, with its unsteered twin if it is compared with one.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The request it belongs to.
    pub(super) job: u64,
    pub(super) variant: usize,
    pub(super) priority: Priority,
    /// The variant, then its twin.
    pub(super) lanes: Vec<Lane>,
    /// Bytes of keys and values reserved for it.
    pub(super) kv_bytes: usize,
    pub(super) link: Link,
    /// Prompt, then what follows.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens the model has read.
    pub(super) read: usize,
    /// Prompt tokens that were not computed for it.
    pub(super) shared_tokens: usize,
    pub(super) work: Work,
    pub(super) finished: bool,
    /// Since when its reader has had no room.
    pub(super) parked_since: Option<Instant>,
}

/// What the sequence is for.
#[derive(Debug)]
pub(super) enum Work {
    Generate(Box<Generation>),
    Score(Scoring),
    Capture,
}

impl Sequence {
    /// Whether nothing more is to be done for it.
    pub(super) fn is_over(&self) -> bool {
        self.finished || self.link.is_over()
    }

    /// Ends the request if its reader has not read for longer than `most`.
    pub(super) fn check_reader(&mut self, now: Instant, most: Duration) {
        if self.link.has_room() {
            self.parked_since = None;
        } else if now - *self.parked_since.get_or_insert(now) > most {
            self.link.fail(Failure::SlowReader(most));
        }
    }

    /// Whether it reads a token that it wrote itself.
    pub(super) fn decodes(&self) -> bool {
        matches!(self.work, Work::Generate(_)) && self.read >= self.prompt_len
    }

    /// Tokens that it can read in one step, at least 1.
    pub(super) fn unread(&self) -> usize {
        match self.work {
            Work::Generate(_) | Work::Capture => self.tokens.len() - self.read,
            // The last token is scored by those before it, and never read.
            Work::Score(_) => {
                let before_scores = (self.prompt_len - 1).saturating_sub(self.read);
                (self.tokens.len() - 1 - self.read).min(before_scores + MAX_LOGIT_ROWS)
            }
        }
    }

    /// Whether others that read the same tokens may share the work.
    pub(super) fn can_share(&self) -> bool {
        !self.decodes() && self.lanes.iter().all(|lane| !lane.program.reports_prompt())
    }

    /// The token at an index.
    pub(super) fn token(&self, index: usize, codec: &TextCodec) -> Token {
        let id = self.tokens[index];
        Token {
            id,
            position: index as u32,
            generated: index >= self.prompt_len,
            special: codec.is_special(id),
        }
    }

    /// Which logits are needed of the next `n` tokens.
    pub(super) fn logits(&self, n: usize) -> Logits {
        let end = self.read + n;
        match self.work {
            Work::Generate(ref generation) if end == self.tokens.len() => {
                generation.logits(self.lanes.len())
            }
            Work::Score(_) if end >= self.prompt_len => {
                Logits::From((self.prompt_len - 1).saturating_sub(self.read))
            }
            Work::Generate(_) | Work::Score(_) | Work::Capture => Logits::None,
        }
    }

    /// Notes that `n` more tokens were read and goes on: `logits` are the rows
    /// asked for, the variant's before its twin's.
    pub(super) fn advance(&mut self, n: usize, logits: &[&[f32]], top: Option<&Top>) {
        self.read += n;
        let result = match &self.work {
            Work::Generate(_) if logits.is_empty() && top.is_none() => Ok(()),
            Work::Generate(_) => self.write(logits, top),
            Work::Score(_) => {
                self.score(logits);
                Ok(())
            }
            Work::Capture => {
                self.capture();
                Ok(())
            }
        };
        if let Err(problem) = result {
            self.link.fail(Failure::Internal(problem));
        }
    }

    fn capture(&mut self) {
        if self.read < self.tokens.len() {
            return;
        }
        let collected: Collected = self.lanes[0].state.take_collected();
        self.end(Event::Captured(collected));
    }

    /// Sends the last event.
    pub(super) fn end(&mut self, event: Event) {
        self.finished = true;
        self.link.send(event);
    }
}
