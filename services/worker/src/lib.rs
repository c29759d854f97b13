//! The model worker: hooked generation with per-request steering.
//!
//! [`run`] serves one model over gRPC. The synchronous parts, [`model`],
//! [`steering`] and the engine's scheduler, know nothing of tokio or tonic.

mod config;
pub mod engine;
mod error;
mod grpc;
mod limits;
pub mod model;
mod observe;
pub mod source;
mod startup;
pub mod steering;
pub mod text;
mod worker;

use std::{sync::Arc, thread::JoinHandle};

use steering_proto::v1::model_worker_service_server::ModelWorkerServiceServer;
use steering_service::{Connection, Front, FrontConfig, Metrics};
use tokio::net::TcpListener;
use tonic::{server::NamedService, service::Routes};

pub use config::Config;
pub use error::WorkerError;

type Service = ModelWorkerServiceServer<grpc::WorkerService>;

/// What a connection may send ahead is large: texts to capture are small frames, and
/// HTTP/2's budget for those that wait unread is a part of this window.
const CONNECTION: Connection = Connection {
    window_bytes: Some(64 << 20),
    reset_streams_max: 128,
    requests_max: None,
};

/// Serves a model until `shutdown` resolves; then answers NOT_SERVING, refuses new
/// requests, lets streams end (for the drain timeout at most) and returns.
///
/// While the model loads, health says NOT_SERVING and requests are UNAVAILABLE.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WorkerError> {
    let address = listener.local_addr()?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"))?;
    let front = Front::start(FrontConfig {
        program: "steer-worker",
        name: Service::NAME,
        listener,
        security: &config.security,
        operation: &config.operation,
        metrics: metrics.clone(),
        connection: CONNECTION,
    })
    .await?;
    tracing::info!("loading; {address} answers NOT_SERVING until then");
    let mut shutdown = std::pin::pin!(shutdown);
    let limits = config.limits.clone();
    let progress = source::terminal_progress();
    let loading = tokio::task::spawn_blocking(move || startup::load(&config, progress.as_ref()));
    let (worker, engine) = tokio::select! {
        loaded = loading => loaded.map_err(std::io::Error::other)??,
        () = &mut shutdown => return Ok(front.drain().await?),
    };
    let observed = Arc::new(observe::Observed::new(&worker, &metrics)?);
    let queue = worker.queue();
    let service = Service::new(grpc::WorkerService::new(Arc::new(worker), observed))
        .max_decoding_message_size(limits.request_bytes())
        .max_encoding_message_size(limits.response_bytes());
    front.open(Routes::new(service), Some(queue)).await;
    tracing::info!("steer-worker listening on {address}");
    let clean = tokio::select! {
        () = shutdown => true,
        () = ended(engine) => false,
    };
    front.drain().await?;
    if clean {
        Ok(())
    } else {
        Err(WorkerError::EngineStopped)
    }
}

/// Resolves when the engine's thread has ended.
async fn ended(engine: JoinHandle<()>) {
    // Whether it panicked or returned: it should have done neither.
    let _ = tokio::task::spawn_blocking(move || engine.join()).await;
}
