//! Start, readiness, orderly end.

use std::{fs::File, path::Path, pin::pin, sync::Arc, time::Duration};

use steering_proto::v1::feature_registry_service_server::FeatureRegistryServiceServer;
use steering_service::{Connection, Front, FrontConfig, LogFormat, Metrics};
use tokio::net::TcpListener;
use tonic::{server::NamedService, service::Routes};

use crate::{
    config::Config,
    error::{Error, Result},
    grpc::RegistryService,
    import::access::{Access, HubAccess},
    registry::Registry,
    store::{Store, postgres::PostgresStore, sqlite::SqliteStore},
    vectors::{Bucket, Cache, Vectors},
};

/// Largest request: files come in chunks of 1 MiB.
const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// Largest response; [`Registry::features`] keeps below it.
pub(crate) const SEND_BYTES_MAX: usize = 64 << 20;
const CONNECTION: Connection = Connection {
    window_bytes: None,
    reset_streams_max: 1024,
    requests_max: Some(128),
};
/// How long a query may still take after the drain.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Time between two rounds of upkeep.
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

type Service = FeatureRegistryServiceServer<RegistryService>;

/// Serves on `listener` until `shutdown` resolves; then says NOT_SERVING,
/// finishes running requests and returns.
///
/// While the store opens, which may bring a large database up to date, health says
/// NOT_SERVING and requests are UNAVAILABLE.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.local_addr()?;
    // Callers with keys or certificates may come from elsewhere through a proxy.
    let local = address.ip().to_canonical().is_loopback() && !config.security.authenticates();
    config
        .security
        .check_exposure(address)
        .map_err(Error::NotAllowed)?;
    let access = import_access(&config, local)?;
    let hub = HubAccess::new(&config.hub_allow, local);
    std::fs::create_dir_all(&config.data)?;
    let _lock = lock(&config.data)?;
    let (vectors, _cache_lock) = open_vectors(&config)?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION")).map_err(boxed)?;
    let front = Front::start(FrontConfig {
        program: "steer-registry",
        name: Service::NAME,
        listener,
        security: &config.security,
        operation: &config.operation,
        metrics,
        connection: CONNECTION,
    })
    .await
    .map_err(|error| Error::NotAllowed(error.to_string()))?;
    tracing::info!("opening the store; {address} answers NOT_SERVING until then");
    let mut shutdown = pin!(shutdown);
    let registry = tokio::select! {
        opened = open(&config, vectors, access) => Arc::new(opened?.with_hub(hub)),
        () = &mut shutdown => {
            tracing::info!("stopping, before the store was open");
            return front.drain().await.map_err(boxed);
        }
    };
    let sweep = tokio::spawn(sweep(Arc::clone(&registry), config.objects.is_some()));
    let service = Service::new(RegistryService::new(Arc::clone(&registry)))
        .max_decoding_message_size(RECEIVE_BYTES_MAX)
        .max_encoding_message_size(SEND_BYTES_MAX);
    front.open(Routes::new(service), None).await;
    tracing::debug!(data = %config.data.display(), "ready");
    match config.operation.log_format {
        LogFormat::Text => eprintln!("steer-registry listening on {address}"),
        LogFormat::Json => tracing::info!("steer-registry listening on {address}"),
    }

    shutdown.await;
    tracing::info!("stopping");
    sweep.abort();
    let served = front.drain().await.map_err(boxed);
    if tokio::time::timeout(CLOSE_MAX, registry.close())
        .await
        .is_err()
    {
        // Safe: what is not committed is not there after a restart.
        tracing::warn!("a query still ran and is cut off");
    }
    served
}

/// The registry over its store. Cut off at any point, it leaves what it found: migrations
/// are transactions.
async fn open(config: &Config, vectors: Vectors, access: Option<Access>) -> Result<Registry> {
    let store = open_store(config).await?;
    let staging = config.data.join("staging");
    let registry = Registry::open(store, vectors, &staging, access)?;
    let registry = registry.keeping_deleted(config.keep_deleted_days);
    if config.objects.is_none() {
        registry.remove_orphans().await?;
    }
    Ok(registry)
}

/// Objects, and what keeps other processes out of their cache.
fn open_vectors(config: &Config) -> Result<(Vectors, Option<File>)> {
    let Some(url) = &config.objects else {
        return Ok((Vectors::local(&config.data.join("objects"))?, None));
    };
    let folder = config.object_cache.clone();
    let folder = folder.unwrap_or_else(|| config.data.join("cache"));
    std::fs::create_dir_all(&folder)?;
    let lock = lock(&folder)?;
    let cache = Cache::open(Bucket::new(url)?, &folder, config.object_cache_bytes)?;
    Ok((Vectors::remote(cache), Some(lock)))
}

/// Purges what was deleted long ago, now and then, and removes objects of a bucket that nobody
/// named: it may be out of reach at the start, and others put their objects there as well.
async fn sweep(registry: Arc<Registry>, bucket: bool) {
    loop {
        if let Err(error) = registry.purge_deleted().await {
            tracing::warn!(%error, "deleted versions could not be purged");
        }
        if bucket && let Err(error) = registry.remove_orphans().await {
            tracing::warn!(%error, "objects could not be looked through");
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>> {
    Ok(match &config.database {
        Some(url) => Arc::new(PostgresStore::open(url, config.database_connections).await?),
        None => Arc::new(SqliteStore::open(&config.data.join("registry.sqlite")).await?),
    })
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Storage(Box::new(error))
}

fn import_access(config: &Config, local: bool) -> Result<Option<Access>> {
    match (config.import_roots.as_slice(), local) {
        ([], true) => Ok(Some(Access::Anywhere)),
        ([], false) => Ok(None),
        (roots, _) => match Access::roots(roots) {
            Ok(access) => Ok(Some(access)),
            Err(error) => Err(Error::NotAllowed(format!("--import-root: {error}"))),
        },
    }
}

/// Two processes must not sweep each other's unfinished files.
fn lock(data: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::NotAllowed(format!(
            "another steer-registry is using {}",
            data.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}
