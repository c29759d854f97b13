//! Connections to the two services.

use std::time::Duration;

use steering_proto::v1::{
    feature_registry_service_client::FeatureRegistryServiceClient,
    model_worker_service_client::ModelWorkerServiceClient,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    Credentials, Error, Service,
    credentials::{Headers, Transport},
};

/// Largest answer accepted: a page of features of a wide model fits many times.
const DECODED_BYTES_MAX: usize = 256 << 20;
/// Unread bytes of one stream before its sender has to wait.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Unread bytes of all streams. So large because HTTP/2 closes a connection whose
/// unread small frames, and tokens are small frames, weigh more than half of this.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// Calls ended early that a connection remembers for a second, by when what was on its way
/// has come. Of 50, which is usual, a client that ends many calls forgets some too early; it
/// then takes what comes for errors, and closes the connection with all its calls after 1,024.
const RESET_STREAMS: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the services are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// URL of the model worker.
    pub worker: String,
    /// URL of the feature registry.
    pub registry: String,
}

impl Endpoints {
    /// Where a worker listens by default.
    pub const DEFAULT_WORKER: &str = "http://127.0.0.1:50051";
    /// Where a registry listens by default.
    pub const DEFAULT_REGISTRY: &str = "http://127.0.0.1:50052";
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            worker: Self::DEFAULT_WORKER.to_owned(),
            registry: Self::DEFAULT_REGISTRY.to_owned(),
        }
    }
}

/// What a service says about itself through `grpc.health.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Ready for requests.
    Serving,
    /// Up, but starting or stopping.
    NotServing,
}

/// Both services. Cheap to clone; connects on first use and again when needed.
#[derive(Debug, Clone)]
pub struct Client {
    endpoints: Endpoints,
    worker: Channel,
    registry: Channel,
    headers: Headers,
}

impl Client {
    /// Prepares connections; nothing is sent until the first call.
    ///
    /// # Errors
    /// If a URL is not of the form `http://host:port` or `https://host:port`.
    pub fn connect(endpoints: &Endpoints) -> Result<Self, Error> {
        Self::connect_with(endpoints, &Credentials::default())
    }

    /// As [`Client::connect`], with an API key or certificates.
    ///
    /// # Errors
    /// If a URL or a certificate cannot be used.
    pub fn connect_with(endpoints: &Endpoints, credentials: &Credentials) -> Result<Self, Error> {
        Ok(Self {
            endpoints: endpoints.clone(),
            worker: channel(&endpoints.worker, credentials)?,
            registry: channel(&endpoints.registry, credentials)?,
            headers: credentials.headers(),
        })
    }

    /// Makes all requests part of a trace: the services' spans become children of this
    /// one, in W3C's form `00-TRACE-SPAN-FLAGS`. What is no such header is left out.
    #[must_use]
    pub fn within_trace(mut self, traceparent: &str) -> Self {
        self.headers.traceparent = traceparent.parse().ok();
        self
    }

    /// Where the services are.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The generated client of the worker, for calls this library does not wrap. A call
    /// whose requests are a stream goes on until they end, even when its answers are
    /// dropped: [`tonic::Request::cancellation_handle`] ends it.
    pub fn worker(&self) -> ModelWorkerServiceClient<Transport> {
        ModelWorkerServiceClient::with_interceptor(self.worker.clone(), self.headers.clone())
            .max_decoding_message_size(DECODED_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    }

    /// The generated client of the registry, for calls this library does not wrap.
    pub fn registry(&self) -> FeatureRegistryServiceClient<Transport> {
        FeatureRegistryServiceClient::with_interceptor(self.registry.clone(), self.headers.clone())
            .max_decoding_message_size(DECODED_BYTES_MAX)
            .max_encoding_message_size(usize::MAX)
    }

    /// Asks a service whether it is ready.
    ///
    /// # Errors
    /// If it cannot be reached within five seconds.
    pub async fn health(&self, service: Service) -> Result<Health, Error> {
        let channel = match service {
            Service::Worker => self.worker.clone(),
            Service::Registry => self.registry.clone(),
        };
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.set_timeout(HEALTH_TIMEOUT);
        let response = HealthClient::new(channel)
            .check(request)
            .await
            .map_err(|status| self.failed(service, status))?;
        Ok(match response.into_inner().status() {
            ServingStatus::Serving => Health::Serving,
            _ => Health::NotServing,
        })
    }

    pub(crate) fn failed(&self, service: Service, status: Status) -> Error {
        let url = match service {
            Service::Worker => &self.endpoints.worker,
            Service::Registry => &self.endpoints.registry,
        };
        tracing::debug!(%service, url, code = ?status.code(), "call failed");
        Error::Rpc {
            service,
            url: url.clone(),
            status: Box::new(status),
        }
    }

    pub(crate) fn worker_failed(&self, status: Status) -> Error {
        self.failed(Service::Worker, status)
    }

    pub(crate) fn registry_failed(&self, status: Status) -> Error {
        self.failed(Service::Registry, status)
    }
}

/// Checks a service URL; `host:port` becomes `http://host:port`.
///
/// # Errors
/// If it is not of that form.
pub fn service_url(url: &str) -> Result<String, Error> {
    let bare = !url.contains("://") && url.contains(':');
    let url = if bare {
        format!("http://{url}")
    } else {
        url.to_owned()
    };
    endpoint(&url).map(|_| url)
}

fn channel(url: &str, credentials: &Credentials) -> Result<Channel, Error> {
    let mut endpoint = endpoint(url)?;
    if endpoint.uri().scheme_str() == Some("https") {
        endpoint = endpoint
            .tls_config(credentials.tls())
            .map_err(|error| Error::Tls {
                reason: root_cause(&error),
            })?;
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_concurrent_reset_streams(RESET_STREAMS)
        .connect_lazy())
}

/// The innermost error, which names the reason.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let invalid = |reason: &str| Error::InvalidUrl {
        url: url.to_owned(),
        reason: reason.to_owned(),
    };
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| invalid("write it as http://host:port"))?;
    match endpoint.uri().scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(invalid("write it as http://host:port or https://host:port")),
    }
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(invalid("has no host; write http://host:port"));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(url: &str) -> String {
        endpoint(url).expect_err(url).to_string()
    }

    #[test]
    fn urls_are_checked_before_use() {
        for url in ["", "localhost", "ftp://host:1", "http://", "http:// space"] {
            assert!(error_of(url).contains("http://host:port"), "{url}");
        }
        assert!(endpoint("https://host:1").is_ok());
    }

    #[test]
    fn the_scheme_may_be_left_out() {
        let url = service_url("localhost:50051").expect("valid");
        assert_eq!(url, "http://localhost:50051");
        assert!(service_url("localhost").is_err());
    }

    #[tokio::test]
    async fn the_defaults_are_valid() {
        let client = Client::connect(&Endpoints::default()).expect("valid");
        assert_eq!(client.endpoints().worker, "http://127.0.0.1:50051");
    }
}
