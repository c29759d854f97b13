//! Start, readiness, orderly end.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use steering_proto::v1::{
    FILE_DESCRIPTOR_SET, feature_registry_service_server::FeatureRegistryServiceServer,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    config::Config,
    error::{Error, Result},
    grpc::RegistryService,
    import::access::Access,
    registry::Registry,
    store::sqlite::SqliteStore,
    vectors::Vectors,
};

/// Largest request: files come in chunks of 1 MiB.
const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// Largest response; [`Registry::features`] keeps below it.
pub(crate) const SEND_BYTES_MAX: usize = 64 << 20;
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
const REQUESTS_PER_CONNECTION_MAX: usize = 128;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long running requests may take once the end has begun.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long a query may still take after that.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// How long watchers of the health service have to take notice of the end.
const NOTICE: Duration = Duration::from_millis(100);
/// Requests cancelled by one client before they were begun; more at a time end
/// the connection.
const RESET_STREAMS_MAX: usize = 1024;

/// Serves on `listener` until `shutdown` resolves; then says NOT_SERVING,
/// finishes running requests and returns.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.local_addr()?;
    let access = import_access(&config, address.ip().is_loopback())?;
    std::fs::create_dir_all(&config.data)?;
    let _lock = lock(&config.data)?;
    let vectors = Vectors::local(&config.data.join("objects"))?;
    let store = Arc::new(SqliteStore::open(&config.data.join("registry.sqlite")).await?);
    let staging = config.data.join("staging");
    let registry = Arc::new(Registry::open(store, vectors, &staging, access)?);
    registry.remove_orphans().await?;

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<Service>().await;
    let (stop, mut stopped) = watch::channel(false);
    // The builder's own tcp_nodelay does not reach a listener made elsewhere,
    // and without it every small response waits 40 ms for the client's ACK.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = builder()
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(boxed)?)
        .add_service(reflection().build_v1alpha().map_err(boxed)?)
        .add_service(
            Service::new(RegistryService::new(Arc::clone(&registry)))
                .max_decoding_message_size(RECEIVE_BYTES_MAX)
                .max_encoding_message_size(SEND_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the sender is gone, which is the same.
            let _ = stopped.wait_for(|&stop| stop).await;
        });
    tracing::debug!(data = %config.data.display(), "ready");
    eprintln!("steer-registry listening on {address}");

    let drain = async {
        shutdown.await;
        tracing::info!("stopping");
        say_not_serving(&health).await;
        let _ = stop.send(true);
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let served = tokio::select! {
        result = server => result.map_err(boxed),
        () = drain => {
            tracing::warn!("requests still ran after {} s and are cut off", DRAIN_MAX.as_secs());
            Ok(())
        }
    };
    if tokio::time::timeout(CLOSE_MAX, registry.close())
        .await
        .is_err()
    {
        // Safe: what is not committed is not there after a restart.
        tracing::warn!("a query still ran and is cut off");
    }
    served
}

type Service = FeatureRegistryServiceServer<RegistryService>;

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Storage(Box::new(error))
}

fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
}

fn reflection<'b>() -> tonic_reflection::server::Builder<'b> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The descriptors know the worker's service too, which is not served here.
        .with_service_name("steering.v1.FeatureRegistryService")
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .with_service_name("grpc.reflection.v1alpha.ServerReflection")
}

/// Tells those who watch, then ends their watching, which would otherwise hold
/// the end up.
async fn say_not_serving(health: &HealthReporter) {
    health.set_not_serving::<Service>().await;
    health
        .set_service_status("", ServingStatus::NotServing)
        .await;
    tokio::time::sleep(NOTICE).await;
    let name = <Service as NamedService>::NAME;
    for service in ["", name] {
        let mut health = health.clone();
        health.clear_service_status(service).await;
    }
}

fn import_access(config: &Config, loopback: bool) -> Result<Option<Access>> {
    match (config.import_roots.as_slice(), loopback) {
        ([], true) => Ok(Some(Access::Anywhere)),
        ([], false) => Ok(None),
        (roots, _) => Ok(Some(Access::roots(roots)?)),
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
