//! Requests that wait for slots, and whose turn it is. Pure.

use std::collections::HashMap;

use steering_proto::generate::Priority;

use super::Job;

/// Of so many slots, one goes to bulk work, if any waits.
const BATCH_TURN: usize = 4;

/// A request of which at least one variant waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// Identifies the request among its sequences.
    pub(super) id: u64,
    pub(super) job: Job,
    /// The next variant to start.
    pub(super) next_variant: usize,
}

/// Waiting requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pending: Vec<Pending>,
    next_id: u64,
    granted: usize,
}

impl Backlog {
    pub(super) fn push(&mut self, job: Job) {
        self.pending.push(Pending {
            id: self.next_id,
            job,
            next_variant: 0,
        });
        self.next_id += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.pending.iter()
    }

    /// Drops requests; returns how many.
    pub(super) fn drop_if(&mut self, over: impl Fn(&Job) -> bool) -> usize {
        let before = self.pending.len();
        self.pending.retain(|pending| !over(&pending.job));
        before - self.pending.len()
    }

    /// Whose variant starts next: interactive before bulk work, except every
    /// [`BATCH_TURN`]th slot; then who holds the fewest slots; then who came
    /// first. `held` has the slots held by request; one that may not have more waits
    /// for its own variants to end, so that a request with many variants never
    /// shuts out one with few.
    pub(super) fn next(
        &self,
        held: &HashMap<u64, usize>,
        may_have_more: impl Fn(&Pending, usize) -> bool,
    ) -> Option<usize> {
        let batch_turn = self.granted % BATCH_TURN == BATCH_TURN - 1;
        let preferred = if batch_turn {
            Priority::Batch
        } else {
            Priority::Interactive
        };
        let slots_of = |pending: &Pending| held.get(&pending.id).copied().unwrap_or(0);
        self.pending
            .iter()
            .enumerate()
            .filter(|(_, pending)| may_have_more(pending, slots_of(pending)))
            .min_by_key(|(_, pending)| (pending.job.priority != preferred, slots_of(pending)))
            .map(|(index, _)| index)
    }

    /// The request at an index.
    pub(super) fn get(&self, index: usize) -> &Pending {
        &self.pending[index]
    }

    /// Notes that a variant of the request at an index has started. Returns
    /// whether it was the last one.
    pub(super) fn start(&mut self, index: usize) -> bool {
        self.granted += 1;
        let pending = &mut self.pending[index];
        pending.next_variant += 1;
        let all_started = pending.next_variant == pending.job.variants.len();
        if all_started {
            self.pending.remove(index);
        }
        all_started
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        engine::{Task, link},
        steering::Program,
    };

    fn job(n_variants: usize, priority: Priority) -> Job {
        Job {
            prompt: Arc::new([1]),
            task: Task::Capture,
            variants: (0..n_variants)
                .map(|_| Arc::default())
                .collect::<Vec<Arc<Program>>>(),
            priority,
            link: link(n_variants, None).0,
        }
    }

    /// Who gets each of `slots` slots, in order.
    fn turns(jobs: Vec<Job>, slots: usize, most_held: usize) -> Vec<u64> {
        let mut backlog = Backlog::default();
        jobs.into_iter().for_each(|job| backlog.push(job));
        let mut held: HashMap<u64, usize> = HashMap::new();
        let mut order = Vec::new();
        while order.len() < slots
            && let Some(index) = backlog.next(&held, |_, slots| slots < most_held)
        {
            let id = backlog.get(index).id;
            *held.entry(id).or_default() += 1;
            order.push(id);
            backlog.start(index);
        }
        order
    }

    #[test]
    fn one_variant_does_not_wait_behind_many() {
        let jobs = vec![
            job(40, Priority::Interactive),
            job(1, Priority::Interactive),
        ];
        assert_eq!(turns(jobs, 4, 48), [0, 1, 0, 0]);
    }

    #[test]
    fn a_request_with_many_variants_leaves_room() {
        let jobs = vec![job(40, Priority::Interactive)];
        assert_eq!(turns(jobs, 64, 12).len(), 12);
    }

    #[test]
    fn bulk_work_yields_and_is_not_starved() {
        let jobs = vec![job(4, Priority::Batch), job(9, Priority::Interactive)];
        assert_eq!(turns(jobs, 9, 64), [1, 1, 1, 0, 1, 1, 1, 0, 1]);
    }
}
