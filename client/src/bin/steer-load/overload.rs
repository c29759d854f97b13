//! Many more requests than can be served: what is served then, and how the rest is told.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use futures::{StreamExt, stream::FuturesUnordered};
use serde::Serialize;
use steering_client::{Client, Error, v1};
use tonic_types::StatusExt;

use crate::{
    measure,
    workload::{Rng, Steered, Workload},
};

/// Longest wait for the last answers: a request that then still has none hangs.
const HANG: Duration = Duration::from_secs(120);

/// The most that is served in a closed loop, then what is served when many times as many
/// requests arrive.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Overload {
    /// Clients of the closed loop.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) streams: usize,
    /// Seconds of each part.
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) seconds: u64,
    /// Arrivals per second, in multiples of what the closed loop had served.
    #[arg(long, value_name = "X", default_value_t = 10.0)]
    pub(crate) times: f64,
}

/// One round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Overloaded {
    /// Requests served per second in the closed loop.
    pub(crate) peak_per_s: f64,
    /// Requests that arrived per second after that.
    pub(crate) arrivals_per_s: f64,
    /// Requests served per second while they arrived.
    pub(crate) goodput_per_s: f64,
    /// Goodput ÷ peak.
    pub(crate) ratio: f64,
    pub(crate) served: usize,
    /// Refused with RESOURCE_EXHAUSTED and when to come back.
    pub(crate) refused: usize,
    /// Anything else.
    pub(crate) failed: Vec<String>,
    /// From the last arrival to the last answer.
    pub(crate) last_answer_s: f64,
}

impl Overload {
    pub(crate) async fn run(
        self,
        client: &Client,
        load: &mut Workload,
    ) -> anyhow::Result<Overloaded> {
        ensure!(
            self.times > 0.0 && self.times.is_finite(),
            "--times is above 0"
        );
        let window = Duration::from_secs(self.seconds);
        let peak_per_s = self.closed(client, load, window).await?;
        ensure!(peak_per_s > 0.0, "nothing was served in {} s", self.seconds);
        self.open(client, load, window, peak_per_s).await
    }

    /// Requests served per second when every client waits for its answer.
    async fn closed(
        self,
        client: &Client,
        load: &mut Workload,
        window: Duration,
    ) -> anyhow::Result<f64> {
        let start = Instant::now();
        let mut running = FuturesUnordered::new();
        for _ in 0..self.streams {
            running.push(ask(client, load.request(Steered::On)?, start));
        }
        let mut served = 0;
        while let Some(answer) = running.next().await {
            answer?;
            if start.elapsed() < window {
                served += 1;
                running.push(ask(client, load.request(Steered::On)?, start));
            }
        }
        Ok(f64::from(served) / window.as_secs_f64())
    }

    async fn open(
        self,
        client: &Client,
        load: &mut Workload,
        window: Duration,
        peak_per_s: f64,
    ) -> anyhow::Result<Overloaded> {
        let rate = peak_per_s * self.times;
        let (mut rng, mut due) = (Rng(1), Duration::ZERO);
        let (mut running, start) = (FuturesUnordered::new(), Instant::now());
        let (mut tally, mut arrived) = (Tally::default(), 0_usize);
        loop {
            due += Duration::from_secs_f64(rng.arrival(rate));
            if due >= window {
                break;
            }
            let request = load.request(Steered::On)?;
            let at = start + due;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => break,
                    Some(answer) = running.next() => tally.count(answer),
                }
            }
            arrived += 1;
            running.push(ask(client, request, at));
        }
        // How many arrivals there were in truth, should this side have been too slow.
        let arriving = start.elapsed();
        let in_window = tally.served;
        let rest = async {
            while let Some(answer) = running.next().await {
                tally.count(answer);
            }
        };
        let ended = tokio::time::timeout(HANG, rest).await;
        ensure!(
            ended.is_ok(),
            "requests hang: no answer in {} s",
            HANG.as_secs()
        );
        let goodput_per_s = in_window as f64 / arriving.as_secs_f64();
        Ok(Overloaded {
            peak_per_s,
            arrivals_per_s: arrived as f64 / arriving.as_secs_f64(),
            goodput_per_s,
            ratio: goodput_per_s / peak_per_s,
            served: tally.served,
            refused: tally.refused,
            failed: tally.failed,
            last_answer_s: start.elapsed().saturating_sub(arriving).as_secs_f64(),
        })
    }
}

async fn ask(
    client: &Client,
    request: v1::GenerateRequest,
    due: Instant,
) -> Result<measure::Sample, Error> {
    measure::run(client, request, due, |_| {}).await
}

#[derive(Debug, Default)]
struct Tally {
    served: usize,
    refused: usize,
    failed: Vec<String>,
}

impl Tally {
    fn count(&mut self, answer: Result<measure::Sample, Error>) {
        match answer {
            Ok(_) => self.served += 1,
            Err(error) if is_explicit(&error) => self.refused += 1,
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}

/// Whether a refusal says when it is worth another try.
fn is_explicit(error: &Error) -> bool {
    let details = error.status().and_then(StatusExt::get_details_retry_info);
    measure::is_refusal(error) && details.is_some_and(|info| info.retry_delay.is_some())
}

impl Overloaded {
    pub(crate) fn text(&self) -> String {
        format!(
            "peak {:.1} requests/s; at {:.1} arrivals/s {:.1} served/s ({:.2} of peak); {} served, \
             {} refused, {} failed; last answer after {:.1} s",
            self.peak_per_s,
            self.arrivals_per_s,
            self.goodput_per_s,
            self.ratio,
            self.served,
            self.refused,
            self.failed.len(),
            self.last_answer_s
        )
    }
}
