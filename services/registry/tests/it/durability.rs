//! Sudden death: several clients write, the program is killed at any instant, and started again.
//! What was acknowledged is there and whole, what was not is there whole or not at all, readers
//! saw nothing half, and `check` finds nothing wrong.
//!
//! 50 deaths; `STEER_KILL_TRIALS=5000` for more; directions in a folder, or in the bucket of
//! `STEER_TEST_S3`. A kill leaves the page cache alone: this tries
//! atomicity and the order of writes, not what a disk does when the power fails.

mod model;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use crate::{
    durability::model::{SEEDS, State, Step, next, read, read_any},
    harness::Client,
    process::{Process, check},
    sources::write_npz,
};

const TRIALS: u64 = 50;
/// Registries at once, each with its own folder, killed again and again.
const LANES: u64 = 4;
const WRITERS: usize = 3;
/// Longest life after the start, in milliseconds.
const LIFE_MAX: u64 = 250;
/// One in so many dies while it starts.
const STILLBORN: u64 = 8;

/// What a client knows: what must be there, and the write whose end it did not see.
#[derive(Debug, Clone, Default)]
struct Known {
    state: State,
    unsure: Option<Step>,
}

/// What was done in all lives.
#[derive(Debug, Default)]
struct Counts {
    deaths: AtomicU64,
    acknowledged: AtomicU64,
    unsure: AtomicU64,
    done_unsure: AtomicU64,
    reads: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn sudden_death_loses_nothing_that_was_acknowledged() {
    let trials = std::env::var("STEER_KILL_TRIALS").ok();
    let trials = trials.map_or(TRIALS, |text| text.parse().expect("STEER_KILL_TRIALS"));
    let files = Arc::new(tempfile::tempdir().expect("folder"));
    for seed in 0..SEEDS {
        write_npz(files.path(), &format!("{seed}.npz"), seed);
    }
    let counts = Arc::new(Counts::default());
    let lanes = (0..LANES).map(|lane| {
        let lives = trials / LANES + u64::from(lane < trials % LANES);
        tokio::spawn(live_and_die(
            lane,
            lives,
            Arc::clone(&files),
            Arc::clone(&counts),
        ))
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.await.expect("a lane");
    }
    println!("{counts:?}");
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&counts.deaths), trials);
    assert!(
        count(&counts.acknowledged) > trials
            && count(&counts.unsure) > 0
            && count(&counts.reads) > trials,
        "too little was tried: {counts:?}"
    );
}

/// Where a lane's directions are: in a bucket, where there is one.
fn objects(lane: u64) -> Vec<String> {
    let bucket = std::env::var("STEER_TEST_S3").ok();
    let url = bucket.map(|bucket| format!("{bucket}/deaths-{}-{lane}", std::process::id()));
    url.map_or_else(Vec::new, |url| vec!["--objects".to_owned(), url])
}

async fn live_and_die(lane: u64, lives: u64, files: Arc<TempDir>, counts: Arc<Counts>) {
    let data = tempfile::tempdir().expect("folder");
    let objects = objects(lane);
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    let mut known = vec![Known::default(); WRITERS];
    for life in 0..lives {
        let seed = lane << 32 | life;
        let mut rng = StdRng::seed_from_u64(seed);
        if rng.random_ratio(1, STILLBORN as u32) {
            let process = Process::spawn(data.path(), &[], &objects);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
            process.kill();
        } else {
            let process = Process::start(data.path(), &[], &objects);
            let mut client = process.client().await;
            verify(&mut client, &mut known, &counts, seed).await;
            known = life_of(process, known, files.path(), &mut rng, &counts).await;
        }
        counts.deaths.fetch_add(1, Ordering::Relaxed);
    }
    let process = Process::start(data.path(), &[], &objects);
    let mut client = process.client().await;
    verify(&mut client, &mut known, &counts, lane).await;
    let (sound, report) = check(data.path(), &[], &objects);
    assert!(sound, "lane {lane}: {report}");
}

/// Every client finds what it knows, or that and the write that it is unsure of.
async fn verify(client: &mut Client, known: &mut [Known], counts: &Counts, seed: u64) {
    for (writer, known) in known.iter_mut().enumerate() {
        let found = read(client, writer).await;
        if let Some(step) = known.unsure.take() {
            counts.unsure.fetch_add(1, Ordering::Relaxed);
            let mut done = known.state.clone();
            done.apply(&step);
            if found == done {
                counts.done_unsure.fetch_add(1, Ordering::Relaxed);
                known.state = done;
            }
        }
        assert_eq!(found, known.state, "seed {seed}, client {writer}");
    }
}

/// Clients write and read until the end, which comes without warning.
async fn life_of(
    process: Process,
    known: Vec<Known>,
    files: &Path,
    rng: &mut StdRng,
    counts: &Arc<Counts>,
) -> Vec<Known> {
    let dead = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (writer, mut known) in known.into_iter().enumerate() {
        let mut client = process.client().await;
        let mut rng = StdRng::seed_from_u64(rng.random());
        let (dead, counts, files) = (Arc::clone(&dead), Arc::clone(counts), files.to_owned());
        writers.push(tokio::spawn(async move {
            loop {
                let step = next(&known.state, writer, &mut rng);
                match step.perform(&mut client, &files).await {
                    Ok(()) => known.state.apply(&step),
                    Err(status) => {
                        let expected = dead.load(Ordering::SeqCst);
                        assert!(expected, "{step:?} while it lives: {status:?}");
                        known.unsure = Some(step);
                        return known;
                    }
                }
                counts.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut client = process.client().await;
    let (until, reads) = (Arc::clone(&dead), Arc::clone(counts));
    let reader = tokio::spawn(async move {
        while read_any(&mut client, &until).await {
            reads.reads.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..LIFE_MAX))).await;
    dead.store(true, Ordering::SeqCst);
    process.kill();
    let mut known = Vec::new();
    for writer in writers {
        known.push(writer.await.expect("a writer"));
    }
    reader.await.expect("a reader");
    known
}
