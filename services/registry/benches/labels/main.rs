//! Finding among many labels, through the whole service over gRPC:
//!
//!     cargo bench -p steering-registry --bench labels -- --labels 10000000
//!     services/registry/tests/backends/with.sh sh -c \
//!         'cargo bench -p steering-registry --bench labels -- --labels 10000000 --database "$STEER_TEST_POSTGRES"'
//!
//! SAEs of 65,536 features, one label each, of words as frequent as in a language. Clients
//! ask one call after another, or with `--every-ms` at a pace. Without a number of labels
//! it says so and ends, so that `cargo test --benches` passes. The database must be empty.

mod texts;

use std::{
    fmt::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use steering_proto::{
    payload::InputNormalization,
    v1::{
        self, feature_ref::Feature, feature_registry_service_client::FeatureRegistryServiceClient,
    },
};
use steering_registry::{
    Config,
    canonical::{Architecture, Layout},
    config::{DATABASE_CONNECTIONS, DatabaseUrl},
    store::{SaeRecord, Store, postgres::PostgresStore, sqlite::SqliteStore},
    vectors::Vectors,
};
use tokio::net::TcpListener;
use tonic::transport::Channel;

use self::texts::{KINDS, label, mixed, query};

type Client = FeatureRegistryServiceClient<Channel>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

const FEATURES: u32 = 65_536;
const CHUNK: usize = 1 << 20;

#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Labels to load.
    #[arg(long)]
    labels: Option<u64>,
    /// An empty PostgreSQL database; SQLite without it.
    #[arg(long)]
    database: Option<String>,
    /// Folder for everything; kept, and not loaded again. A temporary one without it.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Width of the model.
    #[arg(long, default_value_t = 2304)]
    d_in: u32,
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Milliseconds from one call of a client to its next; 0 = at once.
    #[arg(long, default_value_t = 0)]
    every_ms: u64,
    /// Instead, this many searches of each kind, one client's, in one SAE and in all.
    #[arg(long)]
    kinds: Option<u64>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let Some(labels) = arguments.labels else {
        println!("usage: labels --labels N [--database URL]");
        return Ok(());
    };
    let temporary = tempfile::tempdir()?;
    let data = arguments
        .data
        .clone()
        .unwrap_or(temporary.path().to_owned());
    let saes = labels.div_ceil(u64::from(FEATURES));
    let is_loaded = add_saes(&arguments, &data, saes).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let config = Config {
        data,
        task: None,
        objects: None,
        object_cache: None,
        object_cache_bytes: 0,
        database: arguments.database.clone().map(DatabaseUrl::from),
        database_connections: DATABASE_CONNECTIONS,
        listen: String::new(),
        import_roots: Vec::new(),
        hub_allow: Vec::new(),
        keep_deleted_days: 30,
        log: String::new(),
        security: Default::default(),
        operation: Default::default(),
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(steering_registry::run(config, listener, async {
        let _ = stopped.await;
    }));
    let mut client = connect(&address).await?;
    // While its store opens it refuses requests.
    while client
        .list_saes(v1::ListSaesRequest::default())
        .await
        .is_err()
        && !server.is_finished()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if !is_loaded {
        load(&mut client, labels).await?;
    }
    if let Some(calls) = arguments.kinds {
        search_each_kind(&address, saes, calls).await?;
    } else {
        measure_all(&address, arguments, saes).await?;
    }
    let _ = stop.send(());
    server.await??;
    Ok(())
}

async fn measure_all(address: &str, arguments: Arguments, saes: u64) -> Result<(), Failure> {
    let arguments = Arc::new(arguments);
    for (name, ask) in [("search", search as Ask), ("16 features", features as Ask)] {
        // The first calls read what later ones find in memory.
        let mut warm = (*arguments).clone();
        (warm.seconds, warm.every_ms) = (5, 0);
        measure(address, &Arc::new(warm), saes, ask).await?;
        report(name, &measure(address, &arguments, saes, ask).await?);
    }
    Ok(())
}

/// One call after another, by what is asked and where; a first round reads what a second finds
/// in memory.
async fn search_each_kind(address: &str, saes: u64, calls: u64) -> Result<(), Failure> {
    let mut client = connect(address).await?;
    for name in ["", "once more, "] {
        for (kind, what) in KINDS.into_iter().enumerate() {
            for one_sae in [true, false] {
                let mut times = Vec::new();
                for i in 0..calls {
                    let random = mixed(i);
                    let request = search_request(query(kind, random), one_sae, random, saes);
                    let start = Instant::now();
                    client.search_features(request).await?;
                    times.push(start.elapsed());
                }
                times.sort_unstable();
                let place = if one_sae { "one SAE" } else { "all SAEs" };
                report(&format!("{name}{what}, {place}"), &times);
            }
        }
    }
    Ok(())
}

/// All SAEs with the same directions; says whether they were there.
async fn add_saes(arguments: &Arguments, data: &Path, saes: u64) -> Result<bool, Failure> {
    std::fs::create_dir_all(data)?;
    let store: Arc<dyn Store> = match &arguments.database {
        Some(url) => Arc::new(PostgresStore::open(&url.clone().into(), 2).await?),
        None => Arc::new(SqliteStore::open(&data.join("registry.sqlite")).await?),
    };
    if !store.list_saes("", 1).await?.is_empty() {
        store.close().await;
        return Ok(true);
    }
    let vectors = Vectors::local(&data.join("objects"))?;
    let (layout, header) = Layout::new(
        Architecture::Relu,
        InputNormalization::None,
        arguments.d_in,
        FEATURES,
    );
    let mut writer = vectors.writer()?;
    let mut left = layout.file_len() as usize - header.len();
    writer.write(header.into()).await?;
    let part = bytes::Bytes::from([0, 0, 0x80, 0x3f].repeat(CHUNK));
    while left > 0 {
        let len = left.min(part.len());
        writer.write(part.slice(..len)).await?;
        left -= len;
    }
    let staged = writer.finish().await?;
    let digest = staged.digest.clone();
    vectors.publish(staged).await?;
    for i in 0..saes {
        let sae = SaeRecord {
            key: 0,
            name: sae_name(i),
            digest: digest.clone(),
            hook_name: format!("blocks.{}.hook_resid_post", i % 26),
            model_id: "bench/model".to_owned(),
            layout,
            normalization: InputNormalization::None,
            format: "bench".to_owned(),
            origin: String::new(),
            created_at_ms: 0,
            label_count: 0,
            deleted_at_ms: None,
        };
        store.add_sae(&sae, false).await?;
    }
    store.close().await;
    Ok(false)
}

fn sae_name(i: u64) -> String {
    format!("sae-{i:04}")
}

async fn connect(address: &str) -> Result<Client, Failure> {
    let channel = Channel::from_shared(address.to_owned())?.connect_lazy();
    Ok(Client::new(channel).max_decoding_message_size(64 << 20))
}

/// Imports as the service is asked to: one file per SAE.
async fn load(client: &mut Client, labels: u64) -> Result<(), Failure> {
    use v1::import_feature_labels_request::Content;
    let (mut spent, mut bytes) = (Duration::ZERO, 0);
    for (i, first) in (0..).zip((0..labels).step_by(FEATURES as usize)) {
        let file = file(first..labels.min(first + u64::from(FEATURES)));
        let header = v1::LabelImportHeader {
            sae_id: sae_name(i),
            source: "auto".to_owned(),
            ..Default::default()
        };
        bytes += file.len();
        let chunks = file.as_bytes().chunks(CHUNK);
        let contents = std::iter::once(Content::Header(header))
            .chain(chunks.map(|chunk| Content::Chunk(chunk.to_vec())));
        let messages: Vec<_> = contents
            .map(|content| v1::ImportFeatureLabelsRequest {
                content: Some(content),
            })
            .collect();
        let start = Instant::now();
        client
            .import_feature_labels(tokio_stream::iter(messages))
            .await?;
        spent += start.elapsed();
    }
    println!(
        "{labels} labels, {:.0} MB of JSON lines: {:.1} s, {:.0} labels/s",
        bytes as f64 / 1e6,
        spent.as_secs_f64(),
        labels as f64 / spent.as_secs_f64()
    );
    Ok(())
}

fn file(labels: Range<u64>) -> String {
    let mut file = String::new();
    for (index, number) in (0_u32..).zip(labels) {
        let text = label(number);
        // Writing to a String cannot fail.
        let _ = writeln!(file, "{{\"index\": {index}, \"description\": \"{text}\"}}");
    }
    file
}

fn search_request(
    query: String,
    one_sae: bool,
    random: u64,
    saes: u64,
) -> v1::SearchFeaturesRequest {
    let sae_id = if one_sae {
        sae_name((random >> 40) % saes)
    } else {
        String::new()
    };
    v1::SearchFeaturesRequest {
        query,
        sae_id,
        ..Default::default()
    }
}

type Ask = fn(Client, u64, u64) -> tokio::task::JoinHandle<Result<(), tonic::Status>>;

fn search(
    mut client: Client,
    random: u64,
    saes: u64,
) -> tokio::task::JoinHandle<Result<(), tonic::Status>> {
    let kind = match random % 20 {
        0..8 => 0,
        8..12 => 1,
        12..15 => 2,
        15..17 => 3,
        17 => 4,
        18 => 5,
        _ => 6,
    };
    // Half of them in one SAE.
    let request = search_request(query(kind, random), random >> 63 == 0, random, saes);
    tokio::spawn(async move { client.search_features(request).await.map(drop) })
}

fn features(
    mut client: Client,
    random: u64,
    saes: u64,
) -> tokio::task::JoinHandle<Result<(), tonic::Status>> {
    let sae_id = sae_name((random >> 40) % saes);
    let features = (0..16).map(|i| v1::FeatureRef {
        sae_id: sae_id.clone(),
        feature: Some(Feature::FeatureIndex(
            (mixed(random ^ i) % u64::from(FEATURES)) as u32,
        )),
    });
    let request = v1::GetFeaturesRequest {
        features: features.collect(),
        ..Default::default()
    };
    tokio::spawn(async move { client.get_features(request).await.map(drop) })
}

async fn measure(
    address: &str,
    arguments: &Arc<Arguments>,
    saes: u64,
    ask: Ask,
) -> Result<Vec<Duration>, Failure> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut tasks = Vec::new();
    for number in 0..arguments.clients {
        let (client, arguments) = (connect(address).await?, Arc::clone(arguments));
        tasks.push(tokio::spawn(async move {
            let every = Duration::from_millis(arguments.every_ms);
            // Not all at the same moment.
            tokio::time::sleep(every * number as u32 / arguments.clients as u32).await;
            let mut times = Vec::new();
            let mut next = Instant::now();
            while next < end {
                // What waits for the call before it is late, and counted so.
                tokio::time::sleep_until(next.into()).await;
                let start = if every.is_zero() {
                    Instant::now()
                } else {
                    next
                };
                let random = mixed(number << 32 | times.len() as u64);
                ask(client.clone(), random, saes)
                    .await
                    .map_err(|e| e.to_string())?
                    .map_err(|e| e.to_string())?;
                times.push(start.elapsed());
                next = if every.is_zero() {
                    Instant::now()
                } else {
                    next + every
                };
            }
            Ok::<_, String>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    times.sort_unstable();
    Ok(times)
}

fn report(name: &str, times: &[Duration]) {
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{name}: {} calls, p50 {:.2} ms, p99 {:.2} ms, largest {:.1} ms",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
}
