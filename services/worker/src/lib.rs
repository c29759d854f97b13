//! The model worker: hooked generation with per-request steering.
//!
//! [`run`] serves one model over gRPC. The synchronous parts, [`model`],
//! [`steering`] and the engine's scheduler, know nothing of tokio or tonic.

mod config;
pub mod engine;
mod error;
mod grpc;
pub mod model;
pub mod source;
mod startup;
pub mod steering;
pub mod text;
mod worker;

use std::{future::Future, sync::Arc, time::Duration};

use steering_proto::v1::{
    FILE_DESCRIPTOR_SET, model_worker_service_server::ModelWorkerServiceServer,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

pub use config::Config;
pub use error::WorkerError;

/// Bytes of one response message.
const MAX_RESPONSE_BYTES: usize = 32 << 20;
/// What a connection may send ahead: texts to capture are small frames, and
/// HTTP/2's budget for those that wait unread is a part of this window.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Time that streams get to end once shutdown has begun.
const DRAIN: Duration = Duration::from_secs(30);

/// Serves a model until `shutdown` resolves; then answers NOT_SERVING, refuses
/// new connections, lets streams end (30 seconds at most) and returns.
///
/// Connections made while the model loads wait until it is there.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WorkerError> {
    let progress = source::terminal_progress();
    let loading = tokio::task::spawn_blocking(move || startup::load(&config, progress.as_ref()));
    let (worker, engine) = loading.await.map_err(std::io::Error::other)??;

    let (health, health_service) = tonic_health::server::health_reporter();
    let service = ModelWorkerServiceServer::new(grpc::WorkerService::new(Arc::new(worker)))
        .max_decoding_message_size(startup::MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES);
    health
        .set_serving::<ModelWorkerServiceServer<grpc::WorkerService>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The descriptors know the registry's service too, which is not served here.
            .with_service_name("steering.v1.ModelWorkerService")
            .with_service_name("grpc.health.v1.Health")
            .with_service_name("grpc.reflection.v1.ServerReflection")
            .with_service_name("grpc.reflection.v1alpha.ServerReflection")
    };
    let reflection_v1 = reflection().build_v1().map_err(std::io::Error::other)?;
    let reflection_v1alpha = reflection()
        .build_v1alpha()
        .map_err(std::io::Error::other)?;

    let address = listener.local_addr()?;
    tracing::info!("steer-worker listening on {address}");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut draining = stopped.clone();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(1024)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_pending_accept_reset_streams(Some(128))
        .add_service(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            async move {
                // An error means that the sender is gone: stop as well.
                let _ = draining.wait_for(|stop| *stop).await;
            },
        );
    let engine_ended = tokio::task::spawn_blocking(move || engine.join().is_ok());
    let trigger = async move {
        let clean = tokio::select! {
            () = shutdown => true,
            _ = engine_ended => false,
        };
        health
            .set_not_serving::<ModelWorkerServiceServer<grpc::WorkerService>>()
            .await;
        health
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        stop.send_replace(true);
        clean
    };
    let drained = async {
        let mut stopped = stopped.clone();
        let _ = stopped.wait_for(|stop| *stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    let (clean, served) = tokio::join!(trigger, async {
        tokio::select! {
            served = server => served.map_err(WorkerError::from),
            () = drained => {
                tracing::warn!("streams still open after {} s are cut", DRAIN.as_secs());
                Ok(())
            }
        }
    });
    served?;
    if clean {
        Ok(())
    } else {
        Err(WorkerError::EngineStopped)
    }
}
