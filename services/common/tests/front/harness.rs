//! A front without a service, and clients of every kind.

use std::{error::Error, net::SocketAddr, path::Path, time::Duration};

use prost::Message;
use steering_proto::{
    access::{KeyEntry, Scope, hex, key_digest},
    v1::FILE_DESCRIPTOR_SET,
};
use steering_service::{Connection, Front, FrontConfig, FrontError, Metrics, Operation, Security};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::{MetadataKey, MetadataValue},
    service::Routes,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

use crate::certs::Issued;

pub(crate) const WORKER: &str = "steering.v1.ModelWorkerService";
pub(crate) const GET_MODEL: &str = "/steering.v1.ModelWorkerService/GetModel";
pub(crate) const LIST_SAES: &str = "/steering.v1.FeatureRegistryService/ListSaes";
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/Check";
pub(crate) const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Long enough for what takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A front under test.
pub(crate) struct Tried {
    pub(crate) front: Front,
    pub(crate) address: SocketAddr,
}

impl Tried {
    /// Open for requests.
    pub(crate) async fn start(security: &Security, operation: &Operation) -> Self {
        let tried = Self::try_start(security, operation).await.expect("starts");
        tried.front.open(Routes::default(), None).await;
        tried
    }

    /// Not open yet.
    pub(crate) async fn try_start(
        security: &Security,
        operation: &Operation,
    ) -> Result<Self, FrontError> {
        Self::on("127.0.0.1:0", security, operation).await
    }

    pub(crate) async fn on(
        listen: &str,
        security: &Security,
        operation: &Operation,
    ) -> Result<Self, FrontError> {
        let listener = TcpListener::bind(listen).await.expect("port");
        let address = listener.local_addr().expect("address");
        let front = Front::start(FrontConfig {
            program: "steer-test",
            name: WORKER,
            listener,
            security,
            operation,
            metrics: Metrics::new("test").expect("metrics"),
            connection: Connection {
                window_bytes: None,
                reset_streams_max: 32,
                requests_max: None,
            },
        })
        .await?;
        Ok(Self { front, address })
    }

    pub(crate) fn plain(&self) -> Channel {
        let url = format!("http://{}", self.address);
        Endpoint::from_shared(url).expect("URL").connect_lazy()
    }

    /// Over TLS, by the name `localhost`.
    pub(crate) fn tls(&self, ca: &str, identity: Option<&Issued>) -> Channel {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some(Issued { cert, key }) = identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        let url = format!("https://localhost:{}", self.address.port());
        let endpoint = Endpoint::from_shared(url).expect("URL");
        endpoint.tls_config(tls).expect("TLS").connect_lazy()
    }
}

/// Calls an RPC with an empty message and these headers.
pub(crate) async fn call(
    channel: &Channel,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<(), Status> {
    let mut request = Request::new(tokio_stream::once(()));
    for (name, value) in headers {
        let value = MetadataValue::try_from(value.as_bytes()).expect("value");
        request
            .metadata_mut()
            .append(MetadataKey::from_static(name), value);
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let path = path.parse().expect("path");
    let answered = async {
        let response = grpc.streaming(request, path, ProstCodec::<(), ()>::default());
        let mut messages = response.await?.into_inner();
        while messages.message().await?.is_some() {}
        Ok(())
    };
    let answer = tokio::time::timeout(PATIENCE, answered).await;
    answer.expect("answered in time").map_err(|status: Status| {
        // A connection that fails is not an answer, whatever the client calls it.
        match status.source() {
            Some(error) => Status::unavailable(format!("no answer: {error:?}")),
            None => status,
        }
    })
}

/// The same, with a key.
pub(crate) async fn call_with(channel: &Channel, path: &str, key: &str) -> Code {
    code(
        call(
            channel,
            path,
            &[("authorization", &format!("Bearer {key}"))],
        )
        .await,
    )
}

pub(crate) fn code(result: Result<(), Status>) -> Code {
    result.map_or_else(|status| status.code(), |()| Code::Ok)
}

/// Paths of all RPCs of the contract.
pub(crate) fn rpcs() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    let services = files.file.iter().flat_map(|file| {
        let package = file.package().to_owned();
        file.service
            .iter()
            .map(move |service| (package.clone(), service))
    });
    services
        .flat_map(|(package, service)| {
            let path = move |method: &prost_types::MethodDescriptorProto| {
                format!("/{package}.{}/{}", service.name(), method.name())
            };
            service.method.iter().map(path)
        })
        .collect()
}

/// An entry for the key `{id}-secret`.
pub(crate) fn entry(id: &str, scopes: &[Scope]) -> KeyEntry {
    KeyEntry {
        id: id.to_owned(),
        sha256: hex(&key_digest(&secret(id))),
        scopes: scopes.to_vec(),
        expires: None,
        requests_per_minute: None,
        concurrent_requests: None,
    }
}

pub(crate) fn secret(id: &str) -> String {
    format!("{id}-secret")
}

pub(crate) fn lines(entries: &[KeyEntry]) -> String {
    let lines = entries
        .iter()
        .map(|entry| serde_json::to_string(entry).expect("JSON") + "\n");
    lines.collect()
}

/// A folder with a file of keys, and settings that ask for them.
pub(crate) fn with_keys(entries: &[KeyEntry]) -> (TempDir, Security) {
    let folder = tempfile::tempdir().expect("folder");
    let file = crate::certs::write(folder.path(), "keys.jsonl", &lines(entries));
    let security = Security {
        api_keys: Some(file),
        ..Security::default()
    };
    (folder, security)
}

/// Settings for TLS with files in a folder.
pub(crate) fn with_tls(folder: &Path, server: &Issued, client_ca: Option<&str>) -> Security {
    let write = |name: &str, text: &str| crate::certs::write(folder, name, text);
    Security {
        tls_cert: Some(write("tls.crt", &server.cert)),
        tls_key: Some(write("tls.key", &server.key)),
        tls_client_ca: client_ca.map(|pem| write("ca.crt", pem)),
        ..Security::default()
    }
}

/// Waits until a call answers as it should: files are looked at every second.
pub(crate) async fn until(wanted: Code, mut call: impl AsyncFnMut() -> Code) {
    let reached = async {
        while call().await != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, reached).await;
    in_time.unwrap_or_else(|_| panic!("never answers {wanted:?}"));
}
