//! The real programs end when they are told to: at whatever instant, whatever they wait
//! for, and with whoever started them.

use std::{
    fs::File,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use steering_client::{Client, Endpoints, Health, prompt, v1};
use steering_e2e::{Fixture, binaries::binary, request};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tonic::Code;

/// What running requests get here.
const DRAIN_SECONDS: u64 = 5;
/// How much later than that a process may end on a machine that is busy.
const SLACK: Duration = Duration::from_secs(10);
/// Instants at which each service is told to stop, and how far apart they are.
const INSTANTS: u32 = 25;
const STEP: Duration = Duration::from_millis(23);

/// A service as its own process, its log in a file.
struct Service {
    child: Child,
    url: String,
    log: std::path::PathBuf,
}

impl Service {
    async fn start(program: &str, folder: &Path, args: &[String]) -> Self {
        // No connection goes out from this address, so none takes the port in between.
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("port");
        let listen = listener.local_addr().expect("address").to_string();
        drop(listener);
        let log = folder.join("log");
        let child = Command::new(binary(program))
            .args(args)
            .args(["--listen", &listen])
            .arg(format!("--drain-timeout={DRAIN_SECONDS}"))
            .stderr(File::create(&log).expect("log"))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let url = format!("http://{listen}");
        Self { child, url, log }
    }

    fn client(&self) -> Client {
        let endpoints = Endpoints {
            worker: self.url.clone(),
            registry: self.url.clone(),
        };
        Client::connect(&endpoints).expect("a client")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).expect("log")
    }

    /// Sends SIGTERM; how the process ended, and after how long.
    async fn terminate(&mut self, most: Duration) -> (ExitStatus, Duration) {
        signal("TERM", self.child.id()).await;
        let began = Instant::now();
        let ended = timeout(most + SLACK, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("still runs: {}", self.said()));
        (status.expect("ends"), began.elapsed())
    }
}

async fn signal(name: &str, pid: Option<u32>) {
    let pid = pid.expect("runs").to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status().await;
    assert!(sent.expect("kill runs").success());
}

/// Whether a process ended in an orderly way. One that was told before it could listen to
/// signals had nothing to put in order.
fn is_orderly(status: ExitStatus, after: Duration, said: &str) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.code() == Some(0)
        || (status.signal() == Some(15) && after < Duration::from_millis(500) && said.is_empty())
}

/// Asks without a pause; what becomes of it is not this test's matter.
async fn ask_on(client: Client) {
    loop {
        let request = v1::GenerateRequest {
            sampling: Some(request::sampled(60, 1)),
            ..request::unsteered(prompt::token_ids(vec![7, 8, 9]), request::greedy(1))
        };
        match client.generate(request).await {
            Ok(stream) => drop(stream.collect().await),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_at_whatever_instant_it_is_told_to() {
    let fixture = Fixture::load("gemma2");
    let folder = TempDir::new().expect("folder");
    let args = [
        "--device=cpu".to_owned(),
        format!("--model={}", fixture.model().display()),
    ];
    for instant in 0..INSTANTS {
        let mut worker = Service::start("steer-worker", folder.path(), &args).await;
        let load: Vec<_> = (0..4)
            .map(|_| tokio::spawn(ask_on(worker.client())))
            .collect();
        let after = STEP * instant;
        sleep(after).await;
        let (status, took) = worker.terminate(Duration::from_secs(DRAIN_SECONDS)).await;
        let said = worker.said();
        assert!(
            is_orderly(status, after, &said),
            "{after:?}: {status}: {said}"
        );
        // These requests take milliseconds: nothing has to be waited for.
        assert!(took < SLACK, "{after:?}: took {took:?}: {said}");
        load.into_iter().for_each(|task| task.abort());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_ends_at_whatever_instant_it_is_told_to() {
    let folder = TempDir::new().expect("folder");
    let args = [format!("--data={}", folder.path().join("data").display())];
    for instant in 0..INSTANTS {
        let mut registry = Service::start("steer-registry", folder.path(), &args).await;
        let client = registry.client();
        let load = tokio::spawn(async move {
            loop {
                let request = v1::ListSaesRequest::default();
                let _ = client.registry().list_saes(request).await;
                sleep(Duration::from_millis(1)).await;
            }
        });
        let after = STEP * instant;
        sleep(after).await;
        let (status, took) = registry.terminate(Duration::from_secs(DRAIN_SECONDS)).await;
        let said = registry.said();
        assert!(
            is_orderly(status, after, &said),
            "{after:?}: {status}: {said}"
        );
        assert!(took < SLACK, "{after:?}: took {took:?}: {said}");
        load.abort();
    }
}

#[tokio::test]
async fn a_caller_that_never_ends_is_cut_after_the_drain_timeout() {
    let fixture = Fixture::load("gemma2");
    let folder = TempDir::new().expect("folder");
    let args = [
        "--device=cpu".to_owned(),
        format!("--model={}", fixture.model().display()),
    ];
    let mut worker = Service::start("steer-worker", folder.path(), &args).await;
    let client = worker.client();
    let texts = tokio_stream::pending::<v1::CaptureActivationsRequest>();
    let open = tokio::spawn(async move { client.worker().capture_activations(texts).await });
    let until = Instant::now() + SLACK;
    while !worker.said().contains("listening on") {
        assert!(Instant::now() < until, "{}", worker.said());
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(300)).await;
    let (status, _) = worker.terminate(Duration::from_secs(DRAIN_SECONDS)).await;
    assert_eq!(status.code(), Some(0), "{}", worker.said());
    open.abort();
}

#[tokio::test]
async fn a_download_that_stands_still_holds_no_end_up() {
    let folder = TempDir::new().expect("folder");
    // Takes connections, and never answers.
    let hub = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = hub.local_addr().expect("address");
    let mut worker = Command::new(binary("steer-worker"))
        .args(["--model=owner/name", "--listen=127.0.0.1:0"])
        .env("HF_ENDPOINT", format!("http://{address}"))
        .env("HF_HOME", folder.path())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let asked = timeout(SLACK, hub.accept()).await.expect("in time");
    let _connection = asked.expect("the hub is asked");
    signal("TERM", worker.id()).await;
    let ended = timeout(SLACK, worker.wait()).await.expect("in time");
    assert_eq!(ended.expect("ends").code(), Some(0));
}

#[tokio::test]
async fn a_database_that_does_not_answer_holds_no_end_up() {
    let folder = TempDir::new().expect("folder");
    // Takes connections, and never answers.
    let database = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = database.local_addr().expect("address");
    let args = [
        format!("--data={}", folder.path().join("data").display()),
        format!("--database=postgres://user:password@{address}/steer"),
        // For balancers to take notice; none has heard of it.
        "--drain-delay=60".to_owned(),
    ];
    let mut registry = Service::start("steer-registry", folder.path(), &args).await;
    let asked = timeout(SLACK, database.accept()).await.expect("in time");
    let _connection = asked.expect("the database is asked");
    // Until then it says what it waits for.
    let client = registry.client();
    let health = client.health(steering_client::Service::Registry).await;
    assert_eq!(health.expect("answers"), Health::NotServing);
    let mut stub = client.registry();
    let refused = stub.list_saes(v1::ListSaesRequest::default());
    let refused = refused.await.expect_err("loading");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let (status, took) = registry.terminate(Duration::ZERO).await;
    assert_eq!(status.code(), Some(0), "{}", registry.said());
    // It waits for the database no longer than that, whether told to stop or not.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn services_end_with_a_steer_up_that_is_killed() {
    let fixture = Fixture::load("gemma2");
    let folder = TempDir::new().expect("folder");
    let mut up = Command::new(binary("steer"))
        .args(["up", "--json", "--device=cpu", "--model"])
        .arg(fixture.model())
        .args([
            "--worker-listen=127.0.0.1:0",
            "--registry-listen=127.0.0.1:0",
        ])
        .arg("--data")
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let mut stdout = BufReader::new(up.stdout.take().expect("piped"));
    let read = timeout(SLACK, stdout.read_line(&mut line)).await;
    read.expect("ready in time").expect("a line");
    let running: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    signal("KILL", up.id()).await;
    up.wait().await.expect("ends");
    for service in ["worker", "registry"] {
        let url = running[service]["url"].as_str().expect("URL");
        let address = url.trim_start_matches("http://");
        let gone = async {
            while TcpStream::connect(address).await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = timeout(SLACK, gone).await;
        assert!(ended.is_ok(), "the {service} is left behind");
    }
}

#[tokio::test]
async fn a_variable_that_is_set_to_nothing_is_not_set() {
    let output = Command::new(binary("steer-worker"))
        .args(["--model=m", "--print-config"])
        .env("STEER_WORKER_QUANTIZE", "")
        .env("STEER_API_KEYS", "")
        .env("STEER_ALLOW_UNAUTHENTICATED", "")
        .env("STEER_HEALTH_LISTEN", "")
        .output()
        .await
        .expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    for name in ["quantize", "api-keys", "health-listen"] {
        let line = format!("# {name} is not set");
        assert!(printed.contains(&line), "{printed}");
    }
}
