//! Mock services on free ports, and the command run against them.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::Value;
use steering_client::v1::{
    feature_registry_service_server::FeatureRegistryServiceServer,
    model_worker_service_server::ModelWorkerServiceServer,
};
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::{Router, Server};

use crate::{mock_registry::Registry, mock_worker::Worker};

/// State that a mock and a test share.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

pub(crate) fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("no test panicked")
}

/// Both mock services.
pub(crate) struct Mock {
    pub(crate) worker: Worker,
    pub(crate) registry: Registry,
    worker_url: String,
    registry_url: String,
}

/// What a run of `steer` did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The one JSON document of a successful run.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).expect("one JSON document")
    }

    /// Asserts success and returns standard output.
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// Asserts an exit code, and that standard error has these texts.
    pub(crate) fn fails(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in {self:?}");
        }
    }
}

impl Mock {
    pub(crate) async fn start() -> Self {
        let (worker, registry) = (Worker::default(), Registry::default());
        let (_, health) = tonic_health::server::health_reporter();
        let worker_server = Server::builder()
            .add_service(health)
            .add_service(ModelWorkerServiceServer::new(worker.clone()));
        let (_, health) = tonic_health::server::health_reporter();
        let registry_server = Server::builder()
            .add_service(health)
            .add_service(FeatureRegistryServiceServer::new(registry.clone()));
        Self {
            worker,
            registry,
            worker_url: serve(worker_server).await,
            registry_url: serve(registry_server).await,
        }
    }

    pub(crate) fn worker_url(&self) -> String {
        self.worker_url.clone()
    }

    /// Runs `steer` with these arguments.
    pub(crate) async fn steer(&self, args: &[&str]) -> Run {
        self.steer_with_input(args, "").await
    }

    /// The same with text on standard input.
    pub(crate) async fn steer_with_input(&self, args: &[&str], input: &str) -> Run {
        run(self.command(args), input).await
    }

    /// `steer` with these arguments, not yet started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(env!("CARGO_BIN_EXE_steer"));
        command
            .args(args)
            .env("STEER_WORKER", &self.worker_url)
            .env("STEER_REGISTRY", &self.registry_url);
        command
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}

/// A URL that nobody listens at.
pub(crate) async fn dead_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

/// The program without what this environment may say about it.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in [
        "STEER_WORKER",
        "STEER_REGISTRY",
        "STEER_WORKER_MODEL",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command, input: impl AsRef<[u8]>) -> Run {
    let mut child = command.spawn().expect("steer starts");
    let mut stdin = child.stdin.take().expect("piped");
    // It may not want any input.
    let _ = stdin.write_all(input.as_ref()).await;
    drop(stdin);
    let output = child.wait_with_output().await.expect("steer ends");
    Run {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
