//! The health port: plain HTTP and gRPC health for orchestrators and Prometheus.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{door::Phase, metrics::Metrics};

#[derive(Debug, Clone)]
struct Ops {
    metrics: Metrics,
    phase: watch::Receiver<Phase>,
}

/// Serves until the task is aborted: it answers to the very end of a drain.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Routes,
    metrics: Metrics,
    phase: watch::Receiver<Phase>,
) {
    let routes = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route_service("/grpc.health.v1.Health/{*method}", health)
        .with_state(Ops { metrics, phase });
    let served = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(Some(64))
        .add_routes(Routes::from(routes))
        .serve_with_incoming(TcpIncoming::from(listener))
        .await;
    if let Err(error) = served {
        tracing::error!("the health port failed: {error}");
    }
}

/// Alive while the process answers at all: never depends on anything else.
async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(ops): State<Ops>) -> (StatusCode, &'static str) {
    match *ops.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
        Phase::Draining | Phase::Refusing | Phase::Stopping => {
            (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        }
    }
}

async fn scrape(State(ops): State<Ops>) -> Result<String, (StatusCode, String)> {
    let internal = |error: prometheus::Error| {
        let text = format!("metrics cannot be written: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, text)
    };
    ops.metrics.text().map_err(internal)
}
