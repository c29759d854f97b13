//! Both services as child processes: started, waited for, used, stopped.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use indicatif::ProgressBar;
use serde::Serialize;
use steering_client::{Client, Credentials, Endpoints, Health, Service};

use crate::{
    failure::hinted,
    output,
    process::{Process, Show, StopSignal},
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How to start both.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Address of the worker; port 0 = any free one.
    pub(crate) worker_listen: String,
    /// Arguments of the worker, but for its address.
    pub(crate) worker_args: Vec<OsString>,
    /// Address of the registry; port 0 = any free one.
    pub(crate) registry_listen: String,
    /// Arguments of the registry, but for its address.
    pub(crate) registry_args: Vec<OsString>,
    /// For services that are told to ask for API keys.
    pub(crate) credentials: Credentials,
}

/// What runs, and where.
#[derive(Debug, Serialize)]
pub(crate) struct Running {
    /// The worker.
    pub(crate) worker: Address,
    /// The registry.
    pub(crate) registry: Address,
}

/// Where one service is.
#[derive(Debug, Serialize)]
pub(crate) struct Address {
    /// Its URL.
    pub(crate) url: String,
    /// Its process.
    pub(crate) pid: Option<u32>,
}

/// Starts both services, does `work` once they are ready, and stops them: when the
/// work is done, when one of them ends, or on a signal.
pub(crate) async fn run_with(
    launch: &Launch,
    show: &Show,
    spinner: &ProgressBar,
    work: impl AsyncFnOnce(&Client, &Running) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut stop = StopSignal::listen()?;
    let [worker_addr, registry_addr] = free_addresses([
        (&launch.worker_listen, "--worker-listen"),
        (&launch.registry_listen, "--registry-listen"),
    ])?;
    let at = |address: SocketAddr, args: &[OsString]| {
        let mut all = vec!["--listen".into(), address.to_string().into()];
        all.extend_from_slice(args);
        all
    };
    let registry_args = at(registry_addr, &launch.registry_args);
    let mut registry = Process::start("registry", "steer-registry", &registry_args, show)?;
    let worker_args = at(worker_addr, &launch.worker_args);
    let mut worker = Process::start("worker", "steer-worker", &worker_args, show)?;
    let running = Running {
        worker: address(worker_addr, &worker),
        registry: address(registry_addr, &registry),
    };
    let endpoints = Endpoints {
        worker: running.worker.url.clone(),
        registry: running.registry.url.clone(),
    };
    let client = Client::connect_with(&endpoints, &launch.credentials)?;
    let used = async {
        ready(&client, spinner).await;
        work(&client, &running).await
    };
    let outcome = tokio::select! {
        error = worker.ended() => Err(error),
        error = registry.ended() => Err(error),
        outcome = used => outcome,
        () = stop.received() => Ok(()),
    };
    spinner.finish_and_clear();
    output::dim("stopping");
    tokio::select! {
        _ = async { tokio::join!(worker.stop(), registry.stop()) } => {}
        // A second signal: the processes are killed when dropped.
        () = stop.received() => {}
    }
    outcome
}

fn address(address: SocketAddr, process: &Process) -> Address {
    Address {
        url: url(address),
        pid: process.id(),
    }
}

async fn ready(client: &Client, spinner: &ProgressBar) {
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
