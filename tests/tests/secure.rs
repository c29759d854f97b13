//! A worker that asks for keys over TLS, its limits, its metrics, and its end at SIGTERM,
//! with the real engine and the real programs.

use std::{process::Stdio, time::Duration};

use steering_client::{ApiKey, Client, Credentials, Endpoints, Error, Health, Service, prompt, v1};
use steering_e2e::{
    Fixture, binaries::binary, direction, fixture::path_text, request, services::start_worker_with,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);

fn client(url: &str, credentials: &Credentials) -> Client {
    let endpoints = Endpoints {
        worker: url.to_owned(),
        ..Endpoints::default()
    };
    Client::connect_with(&endpoints, credentials).expect("a client")
}

async fn ready(client: &Client) {
    let serving = async {
        while !matches!(client.health(Service::Worker).await, Ok(Health::Serving)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, serving)
        .await
        .expect("ready in time");
}

fn status(error: &Error) -> &Status {
    error
        .status()
        .unwrap_or_else(|| panic!("no status: {error}"))
}

/// Runs `steer` and returns what it printed.
async fn steer(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(binary("steer"))
        .args(args)
        .env_remove("STEER_API_KEY")
        .output()
        .await
        .expect("steer runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Connections of the tests beside go out from 127.0.0.1, and could take a port of that address
/// before its server does.
const LOOPBACK: &str = if cfg!(target_os = "linux") {
    "127.0.0.2:0"
} else {
    "127.0.0.1:0"
};

async fn free_address() -> String {
    let listener = TcpListener::bind(LOOPBACK).await.expect("port");
    listener.local_addr().expect("address").to_string()
}

async fn get(address: &str, path: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.expect("read");
    answer
}

fn certificate(folder: &TempDir) -> [String; 2] {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let issued = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let files = [
        ("tls.crt", issued.cert.pem()),
        ("tls.key", issued.signing_key.serialize_pem()),
    ];
    files.map(|(name, pem)| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path_text(&path)
    })
}

#[tokio::test]
async fn the_command_line_makes_keys_that_open_a_worker() {
    let (fixture, folder) = (Fixture::load("gemma2"), TempDir::new().expect("folder"));
    let file = |name: &str| path_text(&folder.path().join(name));
    let [cert, key] = certificate(&folder);
    let keys = file("keys.jsonl");
    let (made, secret, _) = steer(&[
        "keys", "new", "--id", "alice", "--scope", "generate", "--days", "1", "--add-to", &keys,
    ])
    .await;
    assert!(
        made && secret.starts_with("steer_") && secret.lines().count() == 1,
        "{secret}"
    );
    let kept = std::fs::read_to_string(&keys).expect("keys");
    assert!(!kept.contains(secret.trim()), "the file has the secret");
    std::fs::write(file("alice.key"), &secret).expect("written");
    let health = free_address().await;
    let worker = start_worker_with(
        &fixture,
        &[
            format!("--tls-cert={cert}"),
            format!("--tls-key={key}"),
            format!("--api-keys={keys}"),
            format!("--health-listen={health}"),
        ],
    )
    .await;
    let url = worker.url.replace("http://", "https://");
    let credentials = Credentials {
        api_key: Some(ApiKey::new(&secret).expect("a key")),
        ca_cert: Some(std::fs::read(&cert).expect("certificate")),
        identity: None,
    };
    let known = client(&url, &credentials);
    ready(&known).await;
    let request = request::unsteered(
        prompt::token_ids(direction::PROMPT.to_vec()),
        request::greedy(3),
    );
    let stream = known.generate(request.clone()).await.expect("let in");
    assert_eq!(stream.collect().await.expect("generated").variants.len(), 1);
    let stranger = client(
        &url,
        &Credentials {
            api_key: None,
            ..credentials.clone()
        },
    );
    let refused = stranger.generate(request).await.expect_err("refused");
    assert_eq!(status(&refused).code(), Code::Unauthenticated);

    let access = [
        "--worker",
        &url,
        "--ca-cert",
        &cert,
        "--api-key-file",
        &file("alice.key"),
    ];
    let tokenize = ["tokenize", "hello", "--raw", "--json"];
    let (ok, out, err) = steer(&[&tokenize[..], &access[..]].concat()).await;
    assert!(ok && out.contains("token_id"), "{out}{err}");
    let (ok, _, err) = steer(&[&tokenize[..], &access[..4]].concat()).await;
    assert!(!ok && err.contains("--api-key-file"), "{err}");
    let (ok, _, err) = steer(&[&tokenize[..], &access[..2]].concat()).await;
    assert!(!ok && err.contains("--ca-cert"), "{err}");

    let metrics = get(&health, "/metrics").await;
    for line in [
        "gen_ai_server_time_to_first_token_seconds_count",
        "gen_ai_server_time_per_output_token_seconds_count",
        "gen_ai_server_request_duration_seconds_count",
    ] {
        let count = metrics.lines().find(|found| found.starts_with(line));
        assert!(
            count.is_some_and(|found| found.ends_with(" 1")),
            "{line}: {count:?}"
        );
    }
    assert!(
        metrics.contains("steer_generated_tokens_total 3"),
        "{metrics}"
    );
    assert!(!metrics.contains("alice"), "{metrics}");
    drop((known, stranger));
    worker.stop().await;
}

/// A request, the field that holds too much, and the limit.
type Case = (
    &'static str,
    v1::GenerateRequest,
    v1::GenerateRequest,
    &'static str,
);

fn cases(width: usize) -> Vec<Case> {
    let many = |n: usize, edit: &dyn Fn(&mut v1::GenerateRequest, usize)| {
        let mut request = direction::generate(width, 2, direction::variant(Vec::new()));
        request.probes.clear();
        edit(&mut request, n);
        request
    };
    let case = |field, most: usize, edit: &dyn Fn(&mut v1::GenerateRequest, usize)| -> Case {
        let limit = if most == 2 { "at most 2" } else { "at most 12" };
        (field, many(most, edit), many(most + 1, edit), limit)
    };
    vec![
        case("variants", 2, &|request, n| {
            request.variants = (0..n)
                .map(|i| v1::Variant {
                    name: format!("v{i}"),
                    ..Default::default()
                })
                .collect();
            request.telemetry = None;
        }),
        case("variants[0].interventions", 2, &|request, n| {
            request.variants[0].interventions = vec![direction::add(1.0, None); n];
        }),
        case("variants[0].stop_when", 2, &|request, n| {
            request.variants[0].stop_when = vec![direction::above(1e9); n];
        }),
        case("features", 2, &|request, n| {
            request.vectors = vec![direction::payload(width); n];
        }),
        case("probes", 2, &|request, n| {
            let probe = v1::Probe {
                name: String::new(),
                readout: Some(direction::readout()),
            };
            request.probes = vec![probe; n];
        }),
        case("sampling.max_new_tokens", 2, &|request, n| {
            request.sampling = Some(request::greedy(n as u32));
        }),
        case("prompt", 12, &|request, n| {
            request.prompt = Some(prompt::token_ids(vec![7; n]));
        }),
    ]
}

#[tokio::test]
async fn every_limit_is_reported_kept_and_named() {
    let fixture = Fixture::load("gemma2");
    let limits = [
        "--max-variants=2",
        "--max-interventions=2",
        "--max-stop-conditions=2",
        "--max-payloads=2",
        "--max-probes=2",
        "--max-new-tokens=2",
        "--max-prompt-tokens=12",
        "--max-request-mib=1",
        "--max-response-mib=2",
        "--max-streams=7",
        "--max-request-time=77",
    ];
    let worker = start_worker_with(&fixture, &limits.map(str::to_owned)).await;
    let client = client(&worker.url, &Credentials::default());
    ready(&client).await;
    let limits = client
        .get_model()
        .await
        .expect("model")
        .limits
        .expect("limits");
    let reported = [
        limits.max_variants,
        limits.max_interventions,
        limits.max_stop_conditions,
        limits.max_payloads,
        limits.max_probes,
        limits.max_new_tokens,
        limits.max_prompt_tokens,
        limits.max_streams_per_connection,
        limits.max_request_seconds,
    ];
    assert_eq!(reported, [2, 2, 2, 2, 2, 2, 12, 7, 77]);
    assert_eq!(
        (limits.max_request_bytes, limits.max_response_bytes),
        (1 << 20, 2 << 20)
    );
    for (field, at_limit, above, most) in cases(fixture.cases.d_model) {
        let served = client.generate(at_limit).await;
        let served = served.unwrap_or_else(|error| panic!("{field}: {error}"));
        served
            .collect()
            .await
            .unwrap_or_else(|error| panic!("{field}: {error}"));
        let Err(error) = client.generate(above).await else {
            panic!("{field}: is served above its limit");
        };
        let status = status(&error);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let message = status.message();
        assert!(
            message.contains(field) && message.contains(most),
            "{field}: {message}"
        );
        assert!(
            message.contains('3') || message.contains("13"),
            "the value: {message}"
        );
    }
    let huge = direction::payload(400_000);
    let request = v1::GenerateRequest {
        vectors: vec![huge],
        ..request::unsteered(prompt::token_ids(vec![7]), request::greedy(1))
    };
    let error = client.generate(request).await.expect_err("refused");
    assert_eq!(status(&error).code(), Code::OutOfRange, "{error}");
    drop(client);
    worker.stop().await;
}

/// A worker as its own process.
async fn spawn(fixture: &Fixture, args: &[&str]) -> (Child, String) {
    let listen = free_address().await;
    let child = Command::new(binary("steer-worker"))
        .arg("--model")
        .arg(fixture.model())
        .args(["--device=cpu", "--log-format=json", "--listen", &listen])
        .args(args)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the worker starts");
    (child, format!("http://{listen}"))
}

#[tokio::test]
async fn at_sigterm_running_streams_end_and_the_exit_code_is_zero() {
    let fixture = Fixture::load("gemma2");
    let (mut worker, url) = spawn(&fixture, &["--max-stall=100"]).await;
    let client = client(&url, &Credentials::default());
    ready(&client).await;
    let request = v1::GenerateRequest {
        sampling: Some(request::sampled(100, 1)),
        ..request::unsteered(prompt::text("secret words"), request::greedy(1))
    };
    let stream = client.generate(request).await.expect("let in");
    let pid = worker.id().expect("runs").to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(killed.expect("kill runs").success());
    let transcript = stream.collect().await.expect("ends in peace");
    assert_eq!(transcript.variants[0].token_ids.len(), 100);
    drop(client);
    let mut log = String::new();
    let mut stderr = worker.stderr.take().expect("piped");
    let ended = async {
        stderr.read_to_string(&mut log).await.expect("log");
        worker.wait().await.expect("ends")
    };
    let status = tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("in time");
    assert_eq!(status.code(), Some(0), "{log}");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let generate = lines
        .iter()
        .find(|line| line["method"] == "Generate")
        .expect("a line");
    assert_eq!(generate["code"], "Ok", "{generate}");
    assert_eq!(
        generate["request_id"].as_str().map(str::len),
        Some(16),
        "{generate}"
    );
    assert!(!log.contains("secret words"), "a prompt is logged: {log}");
}

#[tokio::test]
async fn an_open_address_without_keys_is_refused() {
    let fixture = Fixture::load("gemma2");
    for program in ["steer-worker", "steer-registry"] {
        let folder = TempDir::new().expect("folder");
        let mut command = Command::new(binary(program));
        match program {
            "steer-worker" => command.arg("--model").arg(fixture.model()),
            _ => command.arg("--data").arg(folder.path()),
        };
        let output = command
            .args(["--listen", "0.0.0.0:0"])
            .output()
            .await
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{program}: {text}");
        assert!(
            text.contains("--allow-unauthenticated"),
            "{program}: {text}"
        );
    }
}
