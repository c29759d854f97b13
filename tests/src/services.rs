//! Both services in this process, on free ports.

use std::{future::Future, sync::Arc, time::Duration};

use clap::Parser;
use steering_client::{Client, Endpoints, Health, ImportEvent, Service, files::OnBytes, v1};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::fixture::{Fixture, MODEL, SAE, path_text};

/// Longest wait for something that takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Command-line options of the worker that tests change.
#[derive(Debug, Clone, Copy)]
pub struct WorkerOptions {
    /// Sequences decoded at the same time.
    pub max_sequences: u32,
    /// Requests that may wait.
    pub max_queued: u32,
    /// Longest prompt + generation.
    pub context_length: Option<u32>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            max_sequences: 64,
            max_queued: 256,
            context_length: None,
        }
    }
}

/// A running service.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub url: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), String>>,
}

impl Running {
    /// Tells it to stop, without waiting.
    pub fn begin_stop(self) -> JoinHandle<Result<(), String>> {
        self.stop.send(()).expect("the service is running");
        self.task
    }

    /// Stops it in an orderly way.
    pub async fn stop(self) {
        let ended = tokio::time::timeout(PATIENCE, self.begin_stop()).await;
        let ended = ended.expect("stops in time").expect("no panic");
        ended.expect("an orderly end");
    }
}

/// A worker with a fixture's model, a registry in a temporary folder, a client.
#[derive(Debug)]
pub struct Services {
    /// Talks to both.
    pub client: Client,
    /// The worker.
    pub worker: Running,
    /// The registry.
    pub registry: Running,
    _data: TempDir,
}

impl Services {
    /// Starts both and waits until they are healthy.
    pub async fn start(fixture: &Fixture, options: WorkerOptions) -> Self {
        let data = TempDir::new().expect("temporary folder");
        let worker = start_worker(fixture, options).await;
        let registry = start_registry(&data).await;
        let client = Client::connect(&Endpoints {
            worker: worker.url.clone(),
            registry: registry.url.clone(),
        })
        .expect("URLs");
        ready(&client, Service::Worker).await;
        Self {
            client,
            worker,
            registry,
            _data: data,
        }
    }

    /// Starts both with the fixture's SAE, labels and CAVs imported over gRPC.
    pub async fn with_imports(fixture: &Fixture, options: WorkerOptions) -> Self {
        let services = Self::start(fixture, options).await;
        let client = &services.client;
        import_sae(client, fixture).await;
        let labels = fixture.file(&fixture.cases.sae.labels);
        let header = v1::LabelImportHeader {
            sae_id: SAE.to_owned(),
            source: String::new(),
            shared_names: false,
        };
        let labels = client
            .import_labels(header, labels.as_ref(), silent())
            .await;
        labels.expect("labels imported");
        let cavs = fixture.file(&fixture.cases.cavs.path);
        let header = v1::CavImportHeader {
            hook_name: fixture.cases.cavs.hook.clone(),
            model_id: MODEL.to_owned(),
            file_name: fixture.cases.cavs.path.clone(),
        };
        let cavs = client.import_cavs(header, cavs.as_ref(), silent()).await;
        cavs.expect("CAVs imported");
        services
    }

    /// Stops both.
    pub async fn stop(self) {
        drop(self.client);
        self.worker.stop().await;
        self.registry.stop().await;
    }
}

/// Waits until a service says that it is ready.
async fn ready(client: &Client, service: Service) {
    let serving = async {
        while client.health(service).await.expect("reachable") != Health::Serving {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, serving).await;
    in_time.unwrap_or_else(|_| panic!("the {service} is not ready in time"));
}

/// Progress that nobody watches.
fn silent() -> OnBytes {
    Arc::new(|_| {})
}

async fn import_sae(client: &Client, fixture: &Fixture) {
    let request = v1::ImportSaeRequest {
        source: Some(v1::import_sae_request::Source::Path(
            fixture.file(&fixture.cases.sae.path),
        )),
        options: Some(v1::SaeImportOptions {
            sae_id: SAE.to_owned(),
            hook_name: fixture.cases.sae.hook.clone(),
            model_id: MODEL.to_owned(),
            activation_scale: None,
            provenance: None,
            new_version: false,
        }),
    };
    let mut import = client.import_sae(request).await.expect("import begins");
    let mut done = false;
    while let Some(event) = import.next().await.expect("import goes on") {
        done = matches!(event, ImportEvent::Done(_));
    }
    assert!(done, "the import ends with the SAE");
}

/// Starts a worker with a fixture's model and more options.
pub async fn start_worker_with(fixture: &Fixture, more: &[String]) -> Running {
    let model = format!("--model={}", path_text(&fixture.model()));
    let args = ["steer-worker", "--device=cpu", &model];
    let args = args.into_iter().chain(more.iter().map(String::as_str));
    let config = steering_worker::Config::parse_from(args);
    let (listener, url) = listen().await;
    running(url, |shutdown| async move {
        let ended = steering_worker::run(config, listener, shutdown).await;
        ended.map_err(|error| error.to_string())
    })
}

/// Starts a worker with a fixture's model.
pub async fn start_worker(fixture: &Fixture, options: WorkerOptions) -> Running {
    let mut args = vec![
        format!("--max-sequences={}", options.max_sequences),
        format!("--max-queued={}", options.max_queued),
    ];
    args.extend(
        options
            .context_length
            .map(|n| format!("--context-length={n}")),
    );
    start_worker_with(fixture, &args).await
}

/// Starts a registry over a folder and waits until it is healthy.
pub async fn start_registry(data: &TempDir) -> Running {
    let data = format!("--data={}", path_text(data.path()));
    let config = steering_registry::Config::parse_from(["steer-registry", &data]);
    let (listener, url) = listen().await;
    let running = running(url.clone(), |shutdown| async move {
        let ended = steering_registry::run(config, listener, shutdown).await;
        ended.map_err(|error| error.to_string())
    });
    let client = Client::connect(&Endpoints {
        worker: url.clone(),
        registry: url,
    })
    .expect("URLs");
    ready(&client, Service::Registry).await;
    running
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("address");
    (listener, format!("http://{address}"))
}

fn running<F, R>(url: String, serve: F) -> Running
where
    F: FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> R,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = Box::pin(async move {
        // An error means that the test is over: stop as well.
        let _ = stopped.await;
    });
    let task = tokio::spawn(serve(shutdown));
    Running { url, stop, task }
}
