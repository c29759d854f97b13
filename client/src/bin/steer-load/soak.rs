//! Mixed calls for a long time, and what they do to the services' memory.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::future::{join, try_join_all};
use serde::Serialize;
use steering_client::{Client, Error, generation::Event, prompt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    measure, stats,
    workload::{Rng, Steered, Workload},
};

/// Between two looks at the memory.
const LOOK: Duration = Duration::from_secs(1);
/// Largest page of metrics read.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Mixed unary calls and streams, and the services' memory meanwhile.
#[derive(Debug, Clone, Args)]
pub(crate) struct Soak {
    /// Clients at the same time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) streams: usize,
    /// Seconds, warm-up included.
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) seconds: u64,
    /// Seconds at the start that do not count.
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub(crate) settle: u64,
    /// A service's `--health-listen` address, where its memory is read; repeatable.
    #[arg(long, value_name = "HOST:PORT", required = true)]
    pub(crate) watch: Vec<String>,
    /// Call the registry as well.
    #[arg(long)]
    pub(crate) with_registry: bool,
    /// Fail if a service's memory grows by more than this after the settling.
    #[arg(long, value_name = "MIB")]
    pub(crate) max_growth: Option<f64>,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Soaked {
    pub(crate) seconds: f64,
    pub(crate) calls: u64,
    /// Of these, generations read to their end and generations cut off.
    pub(crate) generations: u64,
    pub(crate) cut: u64,
    /// Calls that the worker refused because its queue was full.
    pub(crate) refused: u64,
    pub(crate) services: Vec<Memory>,
}

/// A service's resident memory after the settling.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    pub(crate) watch: String,
    pub(crate) looks: usize,
    /// Medians of the first and the last quarter of the looks, and the largest.
    pub(crate) first_mib: f64,
    pub(crate) last_mib: f64,
    pub(crate) max_mib: f64,
    /// Least squares over all looks.
    pub(crate) slope_mib_per_100k_calls: f64,
}

#[derive(Debug, Default)]
struct Counts {
    calls: Cell<u64>,
    generations: Cell<u64>,
    cut: Cell<u64>,
    refused: Cell<u64>,
}

fn add(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

impl Soak {
    pub(crate) async fn run(&self, client: &Client, load: &mut Workload) -> anyhow::Result<Soaked> {
        ensure!(self.settle < self.seconds, "--settle is below --seconds");
        let start = Instant::now();
        let end = start + Duration::from_secs(self.seconds);
        let settled = start + Duration::from_secs(self.settle);
        let (counts, load) = (Counts::default(), RefCell::new(load));
        let clients = (0..self.streams).map(|number| {
            let rng = Rng(number as u64);
            self.client(client, &load, &counts, rng, end)
        });
        let watched = self
            .watch
            .iter()
            .map(|address| watch(address, &counts, settled, end));
        let (called, services) = join(try_join_all(clients), try_join_all(watched)).await;
        called?;
        let soaked = Soaked {
            seconds: start.elapsed().as_secs_f64(),
            calls: counts.calls.get(),
            generations: counts.generations.get(),
            cut: counts.cut.get(),
            refused: counts.refused.get(),
            services: services?,
        };
        self.check(&soaked)?;
        Ok(soaked)
    }

    fn check(&self, soaked: &Soaked) -> anyhow::Result<()> {
        let Some(most) = self.max_growth else {
            return Ok(());
        };
        for memory in &soaked.services {
            let grown = memory.last_mib - memory.first_mib;
            if grown > most {
                bail!("a service grew by {grown:.1} MiB, {most} may be: {memory:?}");
            }
        }
        Ok(())
    }

    async fn client(
        &self,
        client: &Client,
        load: &RefCell<&mut Workload>,
        counts: &Counts,
        mut rng: Rng,
        end: Instant,
    ) -> anyhow::Result<()> {
        while Instant::now() < end {
            let result = match rng.next() % 8 {
                0 => client.get_model().await.map(drop),
                1 => client.tokenize(prompt::text("a few words")).await.map(drop),
                2 if self.with_registry => client.list_saes(Some(10)).await.map(drop),
                // A caller that goes away in the middle.
                3 => {
                    let request = load.borrow_mut().request(Steered::On)?;
                    add(&counts.cut);
                    cut_off(client, request, rng.next() % 8).await
                }
                _ => {
                    let request = load.borrow_mut().request(Steered::On)?;
                    add(&counts.generations);
                    let sample = measure::run(client, request, Instant::now(), |_| {}).await;
                    sample.map(drop)
                }
            };
            add(&counts.calls);
            match result {
                Err(error) if measure::is_refusal(&error) => {
                    add(&counts.refused);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// Reads some tokens and drops the stream.
async fn cut_off(
    client: &Client,
    request: steering_client::v1::GenerateRequest,
    tokens: u64,
) -> Result<(), Error> {
    let mut stream = client.generate(request).await?;
    let mut read = 0;
    while read < tokens {
        match stream.next().await? {
            Some(Event::Token(_)) => read += 1,
            Some(_) => {}
            None => break,
        }
    }
    Ok(())
}

/// Looks at a service's memory until the end.
async fn watch(
    address: &str,
    counts: &Counts,
    settled: Instant,
    end: Instant,
) -> anyhow::Result<Memory> {
    tokio::time::sleep_until(settled.into()).await;
    let mut looks = Vec::new();
    while Instant::now() < end {
        let bytes = resident_bytes(address).await;
        let bytes = bytes.with_context(|| format!("--watch {address}"))?;
        looks.push((counts.calls.get() as f64, bytes / f64::from(1 << 20)));
        tokio::time::sleep(LOOK).await;
    }
    ensure!(
        looks.len() >= 4,
        "too short: memory was seen {} times",
        looks.len()
    );
    Ok(memory(address, &looks))
}

fn memory(address: &str, looks: &[(f64, f64)]) -> Memory {
    let mib: Vec<f64> = looks.iter().map(|(_, mib)| *mib).collect();
    let quarter = mib.len() / 4;
    let middle = |part: &[f64]| stats::median(part).unwrap_or_default();
    Memory {
        watch: address.to_owned(),
        looks: looks.len(),
        first_mib: middle(&mib[..quarter]),
        last_mib: middle(&mib[mib.len() - quarter..]),
        max_mib: mib.iter().copied().fold(0.0, f64::max),
        slope_mib_per_100k_calls: slope(looks) * 1e5,
    }
}

/// Of the line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    if variance == 0.0 {
        0.0
    } else {
        covariance / variance
    }
}

/// `process_resident_memory_bytes` of a page of metrics.
async fn resident_bytes(address: &str) -> anyhow::Result<f64> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    tcp.take(PAGE_BYTES_MAX).read_to_string(&mut page).await?;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let value = line.context("there is no process_resident_memory_bytes")?;
    Ok(value.trim().parse()?)
}

impl Soaked {
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!(
            "{:.0} s: {} calls, {} generations, {} cut off, {} refused",
            self.seconds, self.calls, self.generations, self.cut, self.refused
        )];
        lines.extend(self.services.iter().map(|memory| {
            format!(
                "{}: {:.1} MiB, then {:.1} MiB, at most {:.1} MiB; {:+.2} MiB per 100,000 calls",
                memory.watch,
                memory.first_mib,
                memory.last_mib,
                memory.max_mib,
                memory.slope_mib_per_100k_calls
            )
        }));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_noise() {
        let looks = |grow: f64| -> Vec<(f64, f64)> {
            let noise = |i: u32| f64::from(i % 2);
            (0..40)
                .map(|i| (f64::from(i) * 1e3, 100.0 + f64::from(i) * grow + noise(i)))
                .collect()
        };
        let flat = memory("a", &looks(0.0));
        assert!(flat.slope_mib_per_100k_calls.abs() < 1.0, "{flat:?}");
        assert_eq!(flat.max_mib, 101.0);
        let growing = memory("a", &looks(0.5));
        assert!(
            (growing.slope_mib_per_100k_calls - 50.0).abs() < 1.0,
            "{growing:?}"
        );
        assert!(growing.last_mib - growing.first_mib > 10.0, "{growing:?}");
    }
}
