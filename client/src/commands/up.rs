//! `steer up`.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use console::style;
use serde::Serialize;
use steering_client::{Client, Endpoints, Health, Service};

use crate::{
    cli::Globals,
    failure::hinted,
    output,
    process::{Process, Show, StopSignal},
    progress,
};

/// Start a worker and a registry on this machine, and run until Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer up --model google/gemma-2-2b-it --quantize q8_0
  steer up --model ./gemma-3-270m-it-Q4_K_M.gguf --device cpu
  steer up --model ./model --worker-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0 --json

The programs steer-worker and steer-registry are looked up next to steer, then on the PATH.
With --json, one document is printed when both are ready:
  {\"worker\": {\"url\", \"pid\"}, \"registry\": {\"url\", \"pid\"}}")]
pub(crate) struct UpArgs {
    /// Model: a folder, a GGUF file, or an id on the hub.
    #[arg(long, value_name = "ID|PATH", env = "STEER_WORKER_MODEL")]
    model: OsString,
    /// Type of activations and unquantised weights: f32, bf16, f16.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Quantise the weights on load: q8_0, q4k, …
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<String>,
    /// Where the model runs: auto, cpu, cuda, metal.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The registry's folder [default: the registry's own, ~/.local/share/steer/registry].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address of the worker; port 0 = any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    worker_listen: String,
    /// Address of the registry; port 0 = any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50052")]
    registry_listen: String,
    /// One more argument for steer-worker; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    worker_arg: Vec<OsString>,
    /// One more argument for steer-registry; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    registry_arg: Vec<OsString>,
}

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What runs, and where.
struct Services {
    worker: Process,
    registry: Process,
    endpoints: Endpoints,
}

#[derive(Serialize)]
struct Document<'a> {
    worker: ServiceDocument<'a>,
    registry: ServiceDocument<'a>,
}

#[derive(Serialize)]
struct ServiceDocument<'a> {
    url: &'a str,
    pid: Option<u32>,
}

pub(crate) async fn run(args: UpArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut stop = StopSignal::listen()?;
    let spinner = progress::spinner("starting steer-worker and steer-registry");
    let shown = spinner.clone();
    let show: Show = Arc::new(move |line| shown.suspend(|| output::note(output::printable(line))));
    let mut services = start(args, &show)?;
    let outcome = tokio::select! {
        outcome = supervise(&mut services, globals.json, &spinner) => outcome,
        () = stop.received() => Ok(()),
    };
    spinner.finish_and_clear();
    output::dim("stopping");
    let Services {
        worker, registry, ..
    } = &mut services;
    tokio::select! {
        _ = async { tokio::join!(worker.stop(), registry.stop()) } => {}
        // A second signal: the processes are killed when dropped.
        () = stop.received() => {}
    }
    outcome
}

fn start(args: UpArgs, show: &Show) -> anyhow::Result<Services> {
    let [worker_addr, registry_addr] = free_addresses([
        (&args.worker_listen, "--worker-listen"),
        (&args.registry_listen, "--registry-listen"),
    ])?;
    let mut worker_args = vec!["--model".into(), args.model];
    let options = [
        ("--dtype", args.dtype),
        ("--quantize", args.quantize),
        ("--device", args.device),
        ("--listen", Some(worker_addr.to_string())),
    ];
    for (name, value) in options {
        worker_args.extend(
            value
                .into_iter()
                .flat_map(|value| [name.into(), value.into()]),
        );
    }
    worker_args.extend(args.worker_arg);
    let mut registry_args: Vec<OsString> =
        vec!["--listen".into(), registry_addr.to_string().into()];
    if let Some(data) = args.data {
        registry_args.extend(["--data".into(), data.into()]);
    }
    registry_args.extend(args.registry_arg);
    Ok(Services {
        registry: Process::start("registry", "steer-registry", &registry_args, show)?,
        worker: Process::start("worker", "steer-worker", &worker_args, show)?,
        endpoints: Endpoints {
            worker: url(worker_addr),
            registry: url(registry_addr),
        },
    })
}

/// Announces the services once they are ready; ends only when one of them does.
async fn supervise(
    services: &mut Services,
    json: bool,
    spinner: &indicatif::ProgressBar,
) -> anyhow::Result<()> {
    let client = Client::connect(&services.endpoints)?;
    tokio::select! {
        error = services.worker.ended() => return Err(error),
        error = services.registry.ended() => return Err(error),
        () = ready(&client, spinner) => {}
    }
    spinner.finish_and_clear();
    announce(services, json)?;
    tokio::select! {
        error = services.worker.ended() => Err(error),
        error = services.registry.ended() => Err(error),
    }
}

async fn ready(client: &Client, spinner: &indicatif::ProgressBar) {
    spinner.set_message("waiting for the registry");
    healthy(client, Service::Registry).await;
    spinner.set_message("waiting for the worker to load the model");
    healthy(client, Service::Worker).await;
}

async fn healthy(client: &Client, service: Service) {
    while !matches!(client.health(service).await, Ok(Health::Serving)) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn announce(services: &Services, json: bool) -> anyhow::Result<()> {
    let Services {
        worker,
        registry,
        endpoints,
    } = services;
    if json {
        return output::json(&Document {
            worker: ServiceDocument {
                url: &endpoints.worker,
                pid: worker.id(),
            },
            registry: ServiceDocument {
                url: &endpoints.registry,
                pid: registry.id(),
            },
        });
    }
    output::line(style("ready").green().bold())?;
    output::line(format_args!("  worker    {}", endpoints.worker))?;
    output::line(format_args!("  registry  {}", endpoints.registry))?;
    output::line("try in another terminal")?;
    let default = Endpoints::default();
    if endpoints.worker != default.worker {
        output::line(format_args!("  export STEER_WORKER={}", endpoints.worker))?;
    }
    if endpoints.registry != default.registry {
        output::line(format_args!(
            "  export STEER_REGISTRY={}",
            endpoints.registry
        ))?;
    }
    output::line("  steer status")?;
    output::line("  steer generate 'Write a haiku.'")?;
    output::line("  steer saes import --help")?;
    Ok(output::line("Ctrl-C stops both")?)
}

/// Checks that the addresses can be had, and settles ports that were left open.
/// Without this, a service that was there before would pass for the one we start.
fn free_addresses<const N: usize>(wanted: [(&str, &str); N]) -> anyhow::Result<[SocketAddr; N]> {
    let mut held = Vec::new();
    let mut addresses = [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)); N];
    for (address, (text, option)) in addresses.iter_mut().zip(wanted) {
        let listener = TcpListener::bind(text).map_err(|error| {
            hinted(
                format!("cannot listen on {text}: {error}"),
                format!("is one running already (`steer status`)? Else pick another {option} ADDR"),
            )
        })?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

/// The URL that reaches an address from this machine.
fn url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_reachable_from_here() {
        let url = |text: &str| url(text.parse().expect("address"));
        assert_eq!(url("0.0.0.0:7"), "http://127.0.0.1:7");
        assert_eq!(url("[::]:7"), "http://[::1]:7");
        assert_eq!(url("10.0.0.1:7"), "http://10.0.0.1:7");
    }

    #[test]
    fn open_ports_are_settled_and_taken_ones_refused() {
        let [a, b] = free_addresses([("127.0.0.1:0", "-a"), ("127.0.0.1:0", "-b")]).expect("two");
        assert_ne!(a.port(), b.port());
        let taken = TcpListener::bind(a).expect("free again");
        let text = taken.local_addr().expect("address").to_string();
        assert!(free_addresses([(&text, "-a")]).is_err());
    }
}
