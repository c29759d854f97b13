//! Measures a running worker under load.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use steering_client::{Client, Endpoints, connection::service_url};

#[path = "../../access.rs"]
mod access;
mod loops;
mod measure;
mod overload;
mod report;
mod soak;
mod stats;
mod workload;

use access::AccessArgs;
use loops::{Closed, Join, Open, Sweep};
use overload::Overload;
use report::{Rounds, Runs};
use soak::Soak;
use stats::{Summary, median};
use workload::{Shape, Steered, Workload};

/// Measure a running worker under load.
///
/// Requests are random prompts with random interventions; greedy, and never ended by an
/// end-of-sequence token, so that every run is the same work.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(after_help = "\
Examples:
  steer-load closed --streams 16 --against off
  steer-load closed --streams 64 --interventions 64 --against one-intervention
  steer-load closed --streams 16 --edits 8 --layers 4 --against off --json
  steer-load open --rate 2 --requests 60
  steer-load join --streams 8 --join-prompt 2000 --max-new-tokens 400
  steer-load sweep --variants 40
  steer-load soak --streams 64 --seconds 600 --watch 127.0.0.1:8081
  steer-load overload --seconds 30 --times 10")]
struct Cli {
    /// Where the model worker is.
    #[arg(long, global = true, value_name = "URL", env = "STEER_WORKER")]
    #[arg(default_value = Endpoints::DEFAULT_WORKER, value_parser = service_url)]
    worker: String,
    /// Where the registry is, for soaks that call it.
    #[arg(long, global = true, value_name = "URL", env = "STEER_REGISTRY")]
    #[arg(default_value = Endpoints::DEFAULT_REGISTRY, value_parser = service_url)]
    registry: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
    /// Measurements; with --against, of each side, in alternation.
    #[arg(long, global = true, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Requests before the first measurement.
    #[arg(long, global = true, value_name = "N", default_value_t = 2)]
    warm_up: usize,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Streams that send their next request when the last is answered.
    Closed(WithShape<Closed>),
    /// Requests that arrive at random, at a given rate.
    Open(WithShape<Open>),
    /// The streams' time per token before and while a long prompt joins.
    Join(WithShape<Join>),
    /// A sweep as one request against one request per variant.
    Sweep(WithShape<Sweep>),
    /// Mixed calls for a long time, and the services' memory meanwhile.
    Soak(WithShape<Soak>),
    /// What is served when many times as many requests arrive as can be.
    Overload(WithShape<Overload>),
}

#[derive(Debug, Args)]
struct WithShape<T: Args> {
    #[command(flatten)]
    load: T,
    #[command(flatten)]
    shape: Shape,
    /// Compare closed and open loops with this, in alternation: A B A B.
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// Leave the requests unsteered.
    #[arg(long)]
    unsteered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The same load, unsteered.
    Off,
    /// The same load with one intervention for all.
    OneIntervention,
    /// The same requests from one stream (closed loop).
    OneStream,
}

impl Against {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::OneIntervention => "one intervention",
            Self::OneStream => "one stream",
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<String> {
    let endpoints = Endpoints {
        worker: cli.worker.clone(),
        registry: cli.registry.clone(),
    };
    let client = Client::connect_with(&endpoints, &cli.access.credentials()?)?;
    match &cli.mode {
        Mode::Closed(options) => {
            let load = options.load;
            let measure = async |side: Side, workload: &mut Workload| {
                let streams = if side.one_stream { 1 } else { load.streams };
                let load = Closed { streams, ..load };
                load.run(&client, workload, side.steered).await
            };
            compare("closed", &cli, options, &client, measure).await
        }
        Mode::Open(options) => {
            let (load, seed) = (options.load, options.shape.seed);
            let measure = async |side: Side, workload: &mut Workload| {
                load.run(&client, workload, side.steered, seed).await
            };
            compare("open", &cli, options, &client, measure).await
        }
        Mode::Join(options) => {
            let mut workload = prepare(&cli, options, &client).await?;
            let mut rounds = Vec::new();
            for _ in 0..cli.rounds {
                rounds.push(
                    options
                        .load
                        .run(&client, &mut workload, options.steered())
                        .await?,
                );
            }
            let ratios: Vec<f64> = rounds.iter().filter_map(|round| round.p99_ratio).collect();
            let report = report_of("join", &workload, rounds, &ratios);
            print(cli.json, &report, Rounds::<loops::Joined>::text)
        }
        Mode::Sweep(options) => {
            let mut workload = prepare(&cli, options, &client).await?;
            let mut rounds = Vec::new();
            for _ in 0..cli.rounds {
                rounds.push(options.load.run(&client, &mut workload).await?);
            }
            let ratios: Vec<f64> = rounds.iter().map(|round| round.speedup).collect();
            let report = report_of("sweep", &workload, rounds, &ratios);
            print(cli.json, &report, Rounds::<loops::Swept>::text)
        }
        Mode::Soak(options) => {
            let mut workload = prepare(&cli, options, &client).await?;
            let soaked = options.load.run(&client, &mut workload).await?;
            print(cli.json, &soaked, soak::Soaked::text)
        }
        Mode::Overload(options) => {
            let mut workload = prepare(&cli, options, &client).await?;
            let overloaded = options.load.run(&client, &mut workload).await?;
            print(cli.json, &overloaded, overload::Overloaded::text)
        }
    }
}

/// One side of a comparison.
#[derive(Debug, Clone, Copy)]
struct Side {
    steered: Steered,
    one_stream: bool,
}

impl<T: Args> WithShape<T> {
    fn steered(&self) -> Steered {
        if self.unsteered {
            Steered::Off
        } else {
            Steered::On
        }
    }
}

async fn prepare<T: Args>(
    cli: &Cli,
    options: &WithShape<T>,
    client: &Client,
) -> anyhow::Result<Workload> {
    let mut workload = Workload::new(client, options.shape.clone()).await?;
    let warm_up = Closed {
        streams: 1,
        requests: cli.warm_up,
    };
    warm_up
        .run(client, &mut workload, options.steered())
        .await?;
    Ok(workload)
}

/// Measures a load and what it is compared with, A B A B.
async fn compare<T: Args>(
    mode: &'static str,
    cli: &Cli,
    options: &WithShape<T>,
    client: &Client,
    measure: impl AsyncFn(Side, &mut Workload) -> anyhow::Result<Summary>,
) -> anyhow::Result<String> {
    let mut workload = prepare(cli, options, client).await?;
    let mut other = workload.with(|shape| {
        if options.against == Some(Against::OneIntervention) {
            shape.interventions = 1;
        }
    });
    let side = Side {
        steered: options.steered(),
        one_stream: false,
    };
    let other_side = Side {
        steered: match options.against {
            Some(Against::Off) => Steered::Off,
            _ => options.steered(),
        },
        one_stream: options.against == Some(Against::OneStream),
    };
    let (mut runs, mut against_runs) = (Vec::new(), Vec::new());
    for _ in 0..cli.rounds {
        runs.push(measure(side, &mut workload).await?);
        if options.against.is_some() {
            against_runs.push(measure(other_side, &mut other).await?);
        }
    }
    let report = Runs {
        mode,
        model: workload.model.model_id.clone(),
        device: workload.model.device.clone(),
        runs,
        against: options.against.map(Against::name),
        against_runs,
    };
    if cli.json {
        Ok(report.json()?)
    } else {
        Ok(report.text())
    }
}

fn report_of<T>(
    mode: &'static str,
    workload: &Workload,
    rounds: Vec<T>,
    ratios: &[f64],
) -> Rounds<T> {
    Rounds {
        mode,
        model: workload.model.model_id.clone(),
        device: workload.model.device.clone(),
        rounds,
        median_ratio: median(ratios),
    }
}

fn print<T: serde::Serialize>(
    json: bool,
    report: &T,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<String> {
    if json {
        Ok(serde_json::to_string(report)?)
    } else {
        Ok(text(report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
