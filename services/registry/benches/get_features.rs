//! Latency of `GetFeatures` on a running registry:
//!
//!     cargo bench -p steering-registry --bench get_features -- http://127.0.0.1:50052 baseball
//!
//! Without an address it says so and ends, so that `cargo test --benches` passes.

use std::time::{Duration, Instant};

use steering_proto::v1::{
    FeatureRef, GetFeaturesRequest, feature_ref::Feature,
    feature_registry_service_client::FeatureRegistryServiceClient,
};
use tonic::transport::Channel;

type Client = FeatureRegistryServiceClient<Channel>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

const WARM_UP: usize = 500;
const CALLS: usize = 10_000;
const CLIENTS: usize = 64;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [address, label] = arguments.as_slice() else {
        println!("usage: get_features http://HOST:PORT LABEL");
        return Ok(());
    };
    let mut client = connect(address).await?;
    let one = vec![Feature::Label(label.clone())];
    let sixteen: Vec<_> = (0..16).map(|i| Feature::FeatureIndex(i * 4001)).collect();
    for _ in 0..WARM_UP {
        get(&mut client, &one).await?;
    }
    report(
        "one feature by label, one client",
        &time(&mut client, &one, CALLS).await?,
    );
    report(
        "16 features by index, one client",
        &time(&mut client, &sixteen, CALLS / 5).await?,
    );
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..CLIENTS {
        let (mut client, one) = (connect(address).await?, one.clone());
        tasks.push(tokio::spawn(async move {
            time(&mut client, &one, CALLS / CLIENTS).await
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    report(
        &format!("one feature by label, {CLIENTS} clients ({rate:.0} calls/s)"),
        &times,
    );
    Ok(())
}

async fn connect(address: &str) -> Result<Client, Failure> {
    Ok(Client::connect(address.to_owned())
        .await?
        .max_decoding_message_size(64 << 20))
}

async fn get(client: &mut Client, features: &[Feature]) -> Result<(), Failure> {
    let features = features
        .iter()
        .map(|feature| FeatureRef {
            sae_id: String::new(),
            feature: Some(feature.clone()),
        })
        .collect();
    client
        .get_features(GetFeaturesRequest {
            features,
            include_statistics: false,
        })
        .await?;
    Ok(())
}

async fn time(
    client: &mut Client,
    features: &[Feature],
    calls: usize,
) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let started = Instant::now();
        get(client, features).await?;
        times.push(started.elapsed());
    }
    Ok(times)
}

fn report(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.3} ms, p99 {:.3} ms, {} calls",
        at(50),
        at(99),
        sorted.len()
    );
}
