//! The queue that calls wait in, as far as the door sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Response};
use tonic::{Status, body::Body};

/// Time between two lines in the log about refusals. Thousands a second arrive when they are
/// many, and a line costs about as much as all else that is done about one.
const LINE_EVERY: Duration = Duration::from_millis(100);

/// A service's queue. While it is full, calls that would wait in it are refused before they
/// are read: under overload that is most of what arrives.
#[derive(Debug)]
pub struct Queue {
    calls: &'static [&'static str],
    waiting: Arc<AtomicUsize>,
    most: usize,
    reason: &'static str,
    refusal: HeaderMap,
    lines: Lines,
}

impl Queue {
    /// `calls` are paths, `refusal` is what they are told while `most` are waiting, for this
    /// `reason`.
    pub fn new(
        calls: &'static [&'static str],
        waiting: Arc<AtomicUsize>,
        most: usize,
        reason: &'static str,
        refusal: Status,
    ) -> Self {
        Self {
            calls,
            waiting,
            most,
            reason,
            refusal: refusal.into_http::<()>().into_parts().0.headers,
            lines: Lines::default(),
        }
    }

    /// Whether there is no room for a call.
    pub(crate) fn refuses(&self, path: &str) -> bool {
        self.waiting.load(Ordering::Acquire) >= self.most && self.calls.contains(&path)
    }

    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// What a refused call gets.
    pub(crate) fn refusal(&self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        response.headers_mut().clone_from(&self.refusal);
        response
    }

    /// Whether a refusal is worth a line; if so, how many before it were not.
    pub(crate) fn line(&self) -> Option<u64> {
        self.lines.take(Instant::now())
    }
}

/// Lines in the log, so many a second at most.
#[derive(Debug)]
struct Lines {
    began: Instant,
    /// When the next one may be, in microseconds since then.
    next: AtomicU64,
    left_out: AtomicU64,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            next: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }
}

impl Lines {
    fn take(&self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.began);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (now, next) = (micros(since), micros(since + LINE_EVERY));
        let is_due = |due: u64| (now >= due).then_some(next);
        let taken = self
            .next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, is_due);
        if taken.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_and_say_how_many_they_stand_for() {
        let lines = Lines::default();
        let at = |millis: u64| lines.take(lines.began + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(50), at(99)), (None, None, None));
        assert_eq!(at(100), Some(3));
        assert_eq!(at(150), None);
        assert_eq!(at(10_000), Some(1));
    }
}
