//! Progress of an import, told to whoever waits, and cancellation when nobody does.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use steering_proto::v1::ImportProgress;
use tokio::sync::mpsc;

use crate::format::FormatError;

/// Least time between two messages of one stage: ten a second.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where an import reports to.
#[derive(Debug)]
pub struct Progress {
    sender: mpsc::Sender<ImportProgress>,
    last: Mutex<Option<(&'static str, Instant)>>,
}

impl Progress {
    /// Reports into `sender`. A full channel loses messages rather than slowing the import.
    pub fn new(sender: mpsc::Sender<ImportProgress>) -> Self {
        Self {
            sender,
            last: Mutex::new(None),
        }
    }

    /// Says that `done` of `total` (0 = unknown) units of `stage` are done.
    /// Errors if nobody listens any more, so that the work stops.
    pub fn report(&self, stage: &'static str, done: u64, total: u64) -> Result<(), FormatError> {
        if self.sender.is_closed() {
            return Err(FormatError::Cancelled);
        }
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = match *last {
            Some((reported, at)) => reported != stage || now - at >= INTERVAL,
            None => true,
        };
        if due {
            *last = Some((stage, now));
            let _ = self.sender.try_send(ImportProgress {
                stage: stage.to_owned(),
                done,
                total,
            });
        }
        Ok(())
    }

    /// Resolves when nobody listens any more.
    pub async fn cancelled(&self) {
        self.sender.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_throttled_by_stage_and_stop_with_the_listener() {
        let (sender, mut receiver) = mpsc::channel(64);
        let progress = Progress::new(sender);
        for done in 0..1000 {
            progress.report("reading", done, 1000).expect("listening");
        }
        progress.report("storing", 0, 1).expect("listening");
        let first = receiver.try_recv().expect("first");
        assert_eq!((first.stage.as_str(), first.done), ("reading", 0));
        assert_eq!(receiver.try_recv().expect("second").stage, "storing");
        assert!(receiver.try_recv().is_err());
        drop(receiver);
        assert!(matches!(
            progress.report("storing", 1, 1),
            Err(FormatError::Cancelled)
        ));
    }
}
