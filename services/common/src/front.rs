//! A gRPC server from its first connection to its last: listens at once, serves when
//! the service has loaded, drains when told to stop.

use std::{sync::Arc, time::Duration};

use steering_proto::v1::FILE_DESCRIPTOR_SET;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    config::{Operation, Security},
    door::{Door, Entrance, Own, Phase},
    keys,
    metrics::Metrics,
    ops,
    queue::Queue,
    quota::Quotas,
    span::Spans,
    tls,
};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest set of headers of one request.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How long those who watch the health service have to take notice of the end.
const NOTICE: Duration = Duration::from_millis(100);
/// How long requests are refused on connections that are still open: some clients take
/// a connection that closes for a cancellation, which is not worth another try to them.
const REFUSING: Duration = Duration::from_millis(250);

/// What a server is made from.
#[derive(Debug)]
pub struct FrontConfig<'a> {
    /// What the program is called.
    pub program: &'static str,
    /// Full name of the gRPC service.
    pub name: &'static str,
    /// Where it listens.
    pub listener: TcpListener,
    /// Who may call.
    pub security: &'a Security,
    /// How it is run.
    pub operation: &'a Operation,
    /// Where requests are counted.
    pub metrics: Metrics,
    /// What one connection may do.
    pub connection: Connection,
}

/// What one connection may do.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// Bytes that it may send before they are read.
    pub window_bytes: Option<u32>,
    /// Requests cancelled before they were begun; more at a time end the connection.
    pub reset_streams_max: usize,
    /// Requests handled at the same time; more wait.
    pub requests_max: Option<usize>,
}

/// A running server.
#[derive(Debug)]
pub struct Front {
    name: &'static str,
    door: Arc<Door>,
    phase: watch::Sender<Phase>,
    health: HealthReporter,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    ops: Option<JoinHandle<()>>,
    drain_delay: Duration,
    drain_timeout: Duration,
}

/// Why a server does not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A flag that cannot be honoured.
    #[error("{0}")]
    Config(String),
    /// From the operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// From the gRPC server.
    #[error("gRPC server: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// From reflection.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Front {
    /// Listens; health says NOT_SERVING, and requests are refused as worth another try.
    ///
    /// # Errors
    /// If the configuration cannot be honoured.
    pub async fn start(config: FrontConfig<'_>) -> Result<Self, FrontError> {
        let FrontConfig {
            program,
            name,
            listener,
            security,
            operation,
            metrics,
            connection,
        } = config;
        let address = listener.local_addr()?;
        security
            .check_exposure(address)
            .map_err(FrontError::Config)?;
        let tls = tls::configured(security).map_err(FrontError::Config)?;
        let keys = security.api_keys.clone().map(keys::configured);
        let keys = keys.transpose().map_err(FrontError::Config)?;
        if keys.is_some() && tls.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                "API keys are asked for without TLS: they cross the network in the clear"
            );
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        not_serving(&health, name).await;
        let health_routes = Routes::new(health_service);
        let (phase, phases) = watch::channel(Phase::Loading);
        let spans = operation.otlp_endpoint.as_deref();
        let spans = spans.map(|endpoint| Spans::to(endpoint, program));
        let door = Arc::new(Door {
            keys,
            quotas: Quotas::default(),
            metrics: metrics.clone(),
            spans: spans.transpose().map_err(FrontError::Config)?,
            phase: phases.clone(),
            max_request_time: operation.max_request_time(),
            common: with_reflection(health_routes.clone(), name)?,
            own: std::sync::OnceLock::new(),
        });
        let ops = match operation.health_listen {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await.map_err(|error| {
                    FrontError::Config(format!(
                        "--health-listen: cannot listen on {address}: {error}"
                    ))
                })?;
                Some(tokio::spawn(ops::serve(
                    listener,
                    health_routes,
                    metrics,
                    phases.clone(),
                )))
            }
        };
        let server = builder(operation, connection);
        let entrance = Entrance(door.clone());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stop = stopping(phases);
        let server = match tls {
            None => tokio::spawn(server.serve_with_incoming_shutdown(entrance, incoming, stop)),
            Some(tls) => {
                let incoming = tls::accept(incoming, tls);
                tokio::spawn(server.serve_with_incoming_shutdown(entrance, incoming, stop))
            }
        };
        Ok(Self {
            name,
            door,
            phase,
            health,
            server,
            ops,
            drain_delay: operation.drain_delay(),
            drain_timeout: operation.drain_timeout(),
        })
    }

    /// Serves requests from now on; health says SERVING. Calls that wait in `queue` are
    /// refused while it is full.
    pub async fn open(&self, service: Routes, queue: Option<Queue>) {
        let own = Own {
            routes: service.prepare(),
            queue,
        };
        // A second call would find the first one's service: there is none.
        let _ = self.door.own.set(own);
        self.phase.send_replace(Phase::Serving);
        self.set_health(ServingStatus::Serving).await;
    }

    /// Says NOT_SERVING, serves on for the drain delay, then refuses requests and sends
    /// GOAWAY, and waits until running ones have ended; cuts them at the drain timeout.
    ///
    /// # Errors
    /// If the server failed.
    pub async fn drain(mut self) -> Result<(), FrontError> {
        let before = self.phase.send_replace(Phase::Draining);
        self.set_health(ServingStatus::NotServing).await;
        // Nobody sends requests to what was never ready.
        let delay = match before {
            Phase::Loading => NOTICE,
            _ => self.drain_delay.max(NOTICE),
        };
        tokio::time::sleep(delay).await;
        // Whoever still watches the health service would hold the end up.
        for service in ["", self.name] {
            self.health.clear_service_status(service).await;
        }
        self.phase.send_replace(Phase::Refusing);
        tokio::time::sleep(REFUSING).await;
        self.phase.send_replace(Phase::Stopping);
        let ended = tokio::time::timeout(self.drain_timeout, &mut self.server).await;
        if let Some(spans) = &self.door.spans {
            spans.flush().await;
        }
        if let Some(ops) = &self.ops {
            ops.abort();
        }
        match ended {
            Ok(Ok(served)) => Ok(served?),
            Ok(Err(panicked)) => Err(std::io::Error::other(panicked).into()),
            Err(_) => {
                let seconds = self.drain_timeout.as_secs();
                tracing::warn!("requests that still run after {seconds} s are cut");
                self.server.abort();
                Ok(())
            }
        }
    }

    async fn set_health(&self, status: ServingStatus) {
        for service in ["", self.name] {
            self.health.set_service_status(service, status).await;
        }
    }
}

async fn not_serving(health: &HealthReporter, name: &'static str) {
    for service in ["", name] {
        health
            .set_service_status(service, ServingStatus::NotServing)
            .await;
    }
}

/// Resolves when requests are refused. An error means that the server is gone.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
}

fn builder(operation: &Operation, connection: Connection) -> Server {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(connection.reset_streams_max))
        .http2_max_header_list_size(Some(HEADER_BYTES_MAX))
        .initial_connection_window_size(connection.window_bytes)
        .max_concurrent_streams(Some(operation.max_streams));
    if let Some(most) = connection.requests_max {
        server = server.concurrency_limit_per_connection(most);
    }
    if let Some(seconds) = operation.max_connection_age {
        // No grace: with one, tonic would cut connections instead of sending GOAWAY.
        server = server.max_connection_age(Duration::from_secs(seconds.into()));
    }
    server
}

/// Health, and reflection of what is served here: the descriptors know both services.
fn with_reflection(health: Routes, name: &'static str) -> Result<Routes, FrontError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(name)
            .with_service_name("grpc.health.v1.Health")
            .with_service_name("grpc.reflection.v1.ServerReflection")
            .with_service_name("grpc.reflection.v1alpha.ServerReflection")
    };
    let mut routes = RoutesBuilder::from(health);
    routes.add_service(reflection().build_v1()?);
    routes.add_service(reflection().build_v1alpha()?);
    Ok(routes.routes().prepare())
}
