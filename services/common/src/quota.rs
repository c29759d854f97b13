//! What a key may use: requests per minute, and requests at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{keys::Key, refusal::Refusal};

/// When a key that has all its requests running may try again: nobody knows.
const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// Use of all keys that have a quota, by id: it outlives a change of the file.
#[derive(Debug, Default, Clone)]
pub(crate) struct Quotas(Arc<Mutex<HashMap<String, Use>>>);

#[derive(Debug)]
struct Use {
    /// Requests that may come at once; fills up to a minute's worth.
    left: f64,
    filled: Instant,
    running: u32,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Permit {
    quotas: Quotas,
    id: String,
}

impl Quotas {
    /// Counts a request. None where the key has no quota.
    pub(crate) fn enter(&self, key: &Key) -> Result<Option<Permit>, Refusal> {
        if key.requests_per_minute.is_none() && key.concurrent_requests.is_none() {
            return Ok(None);
        }
        let now = Instant::now();
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = uses.entry(key.id.clone()).or_insert_with(|| Use {
            left: f64::INFINITY,
            filled: now,
            running: 0,
        });
        if let Some(most) = key.concurrent_requests
            && of_key.running >= most
        {
            return Err(Refusal::Concurrency {
                most,
                retry: CONCURRENCY_RETRY,
            });
        }
        if let Some(most) = key.requests_per_minute {
            of_key.take(most, now)?;
        }
        of_key.running += 1;
        Ok(Some(Permit {
            quotas: self.clone(),
            id: key.id.clone(),
        }))
    }
}

impl Use {
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), Refusal> {
        let per_second = f64::from(per_minute) / 60.0;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * per_second).min(f64::from(per_minute));
        self.filled = now;
        if self.left < 1.0 {
            return Err(Refusal::Rate {
                most: per_minute,
                retry: Duration::from_secs_f64((1.0 - self.left) / per_second),
            });
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut uses = self.quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_key) = uses.get_mut(&self.id) {
            of_key.running = of_key.running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_may_come_at_once_and_refills() {
        let now = Instant::now();
        let mut of_key = Use {
            left: f64::INFINITY,
            filled: now,
            running: 0,
        };
        for _ in 0..60 {
            of_key.take(60, now).expect("within the quota");
        }
        let Err(Refusal::Rate { most: 60, retry }) = of_key.take(60, now) else {
            panic!("the 61st is let in");
        };
        assert!((retry.as_secs_f64() - 1.0).abs() < 0.01, "{retry:?}");
        let later = now + Duration::from_millis(1010);
        of_key.take(60, later).expect("one more after a second");
        of_key.take(60, later).expect_err("and no second one");
    }
}
