//! The outside of the engine: handing in jobs, and seeing what it does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use steering_proto::generate::Priority;

use super::{Engine, EngineConfig, Job, Task, prefix::PrefixCache, sequence::Sequence};
use crate::{
    model::{Model, compute_on_this_thread},
    text::TextCodec,
};

/// Hands jobs to the engine's thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    jobs: SyncSender<Job>,
    gauges: Arc<Gauges>,
    max_queued: usize,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: try again later.
    #[error("{waiting} requests are waiting, as many as may; try again later")]
    Full {
        /// Requests waiting.
        waiting: usize,
    },
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// What the engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Sequences in slots.
    pub running_sequences: usize,
    /// Requests of which at least one variant waits.
    pub waiting_requests: usize,
    /// Bytes of keys and values reserved by running sequences.
    pub kv_bytes_reserved: usize,
    /// Bytes of keys and values kept for prompts to come.
    pub prefix_bytes: usize,
    /// Prompt tokens taken from there.
    pub prefix_tokens: usize,
}

/// Counters that both sides see.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    waiting: Arc<AtomicUsize>,
    running: AtomicUsize,
    kv_bytes: AtomicUsize,
    prefix_bytes: AtomicUsize,
    prefix_tokens: AtomicUsize,
}

impl Gauges {
    fn enter_queue(&self, most: usize) -> Result<(), SubmitError> {
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (waiting < most).then_some(waiting + 1)
            })
            .map(drop)
            .map_err(|waiting| SubmitError::Full { waiting })
    }

    /// Notes that requests have started, or given up.
    pub(super) fn left_queue(&self, n: usize) {
        self.waiting.fetch_sub(n, Ordering::AcqRel);
    }

    /// Notes that prompt tokens were taken from the prefix cache.
    pub(super) fn reused(&self, tokens: usize) {
        self.prefix_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Notes what is running.
    pub(super) fn running(&self, running: &[Sequence], prefixes: &PrefixCache) {
        let slots = running.iter().map(|s| s.lanes.len()).sum();
        let kv_bytes = running.iter().map(|s| s.kv_bytes).sum();
        self.running.store(slots, Ordering::Relaxed);
        self.kv_bytes.store(kv_bytes, Ordering::Relaxed);
        self.prefix_bytes.store(prefixes.bytes(), Ordering::Relaxed);
    }
}

impl EngineHandle {
    /// How many requests wait, kept up to date, and how many may: at that many, every
    /// priority is refused.
    pub fn queue(&self) -> (Arc<AtomicUsize>, usize) {
        (self.gauges.waiting.clone(), self.max_queued)
    }

    /// Queues a job, or refuses it at the door. A quarter of the queue is left to
    /// interactive work, and another to bulk requests: texts of captures come by the
    /// thousand, and are offered again and again.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.gauges.enter_queue(match (job.priority, &job.task) {
            (Priority::Interactive, _) => self.max_queued,
            (Priority::Batch, Task::Capture) => self.max_queued.div_ceil(2),
            (Priority::Batch, _) => self.max_queued - self.max_queued / 4,
        })?;
        self.jobs.try_send(job).map_err(|e| {
            self.gauges.left_queue(1);
            match e {
                TrySendError::Full(_) => SubmitError::Full {
                    waiting: self.max_queued,
                },
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })
    }

    /// What the engine is doing.
    pub fn load(&self) -> EngineLoad {
        let gauges = &self.gauges;
        let read = |gauge: &AtomicUsize| gauge.load(Ordering::Relaxed);
        EngineLoad {
            running_sequences: read(&gauges.running),
            waiting_requests: read(&gauges.waiting),
            kv_bytes_reserved: read(&gauges.kv_bytes),
            prefix_bytes: read(&gauges.prefix_bytes),
            prefix_tokens: read(&gauges.prefix_tokens),
        }
    }
}

/// Starts the engine's thread. It ends when every handle is gone and all
/// accepted work is done.
pub fn start(
    model: Arc<Model>,
    codec: Arc<TextCodec>,
    config: EngineConfig,
) -> std::io::Result<(EngineHandle, JoinHandle<()>)> {
    let (jobs, inbox) = sync_channel(config.max_queued);
    let gauges = Arc::new(Gauges::default());
    let handle = EngineHandle {
        jobs,
        gauges: gauges.clone(),
        max_queued: config.max_queued,
    };
    let thread = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            compute_on_this_thread();
            Engine::new(model, codec, config, inbox, gauges).run();
        })?;
    Ok((handle, thread))
}
