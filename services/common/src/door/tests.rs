use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Body as AxumBody, routing::post};
use bytes::Bytes;
use http_body::Body as _;
use steering_proto::access::{KeyEntry, hex, key_digest};
use tonic::Code;

use super::*;

const GET_MODEL: &str = "/steering.v1.ModelWorkerService/GetModel";
const GENERATE: &str = "/steering.v1.ModelWorkerService/Generate";

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What this thread says from now on.
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// What was said since the last time.
    fn take(&self) -> String {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(std::mem::take(&mut *log)).expect("text")
    }
}

fn door() -> Door {
    Door {
        keys: None,
        quotas: Quotas::default(),
        metrics: Metrics::new("0").expect("metrics"),
        spans: None,
        phase: watch::channel(Phase::Serving).1,
        max_request_time: None,
        common: Routes::default(),
        own: OnceLock::new(),
    }
}

fn request(path: &str) -> Request<Body> {
    let request = Request::post(path).header("authorization", "Bearer secret");
    request.body(Body::empty()).expect("a request")
}

/// Reads a response to its end; its code, in its headers or its trailers.
async fn code(response: Response<Body>) -> Option<Code> {
    let (parts, mut body) = response.into_parts();
    let mut status = Status::from_header_map(&parts.headers);
    while let Some(frame) =
        std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
    {
        let frame = frame.expect("a frame");
        status = status.or(frame.trailers_ref().and_then(Status::from_header_map));
    }
    Some(status?.code())
}

#[tokio::test]
async fn who_is_turned_away_is_named_with_the_reason() {
    let (log, _guard) = Log::listen();
    let entry = KeyEntry {
        id: "alice".to_owned(),
        sha256: hex(&key_digest("secret")),
        scopes: vec![Scope::RegistryRead],
        expires: None,
        requests_per_minute: None,
        concurrent_requests: None,
    };
    let line = serde_json::to_string(&entry).expect("JSON");
    let ring = KeyRing::parse(line.as_bytes()).expect("a key");
    let door = Door {
        keys: Some(watch::channel(Arc::new(ring)).1),
        ..door()
    };
    let refused = code(door.pass(request(GET_MODEL)).await).await;
    assert_eq!(refused, Some(Code::PermissionDenied));
    let log = log.take();
    assert!(log.contains("key=\"alice\""), "{log}");
    assert!(log.contains("reason=\"MISSING_SCOPE\""), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn what_is_cut_by_the_time_limit_says_so_in_the_log() {
    let (log, _guard) = Log::listen();
    let door = Door {
        max_request_time: Some(Duration::from_millis(20)),
        ..door()
    };
    // One never answers, the other never ends.
    let unending =
        || async { AxumBody::from_stream(tokio_stream::pending::<Result<Bytes, io::Error>>()) };
    let router = Router::new()
        .route(GET_MODEL, post(std::future::pending::<AxumBody>))
        .route(GENERATE, post(unending));
    let own = Own {
        routes: router.into(),
        queue: None,
    };
    door.own.set(own).expect("the first");
    for path in [GET_MODEL, GENERATE] {
        let cut = code(door.pass(request(path)).await).await;
        assert_eq!(cut, Some(Code::DeadlineExceeded), "{path}");
        let log = log.take();
        assert!(log.contains("reason=\"REQUEST_TIME\""), "{log}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_what_would_wait_in_it_before_it_is_read() {
    let (log, _guard) = Log::listen();
    let door = door();
    let waiting = Arc::new(AtomicUsize::new(1));
    let refusal = Status::resource_exhausted("2 are waiting");
    let queue = Queue::new(&[GENERATE], waiting.clone(), 2, "QUEUE_FULL", refusal);
    let served = || async { Status::ok("").into_http::<AxumBody>() };
    let router = Router::new()
        .route(GET_MODEL, post(served))
        .route(GENERATE, post(served));
    let own = Own {
        routes: router.into(),
        queue: Some(queue),
    };
    door.own.set(own).expect("the first");
    let ask = async |path| code(door.pass(request(path)).await).await;
    assert_eq!(ask(GENERATE).await, Some(Code::Ok));
    waiting.store(2, Ordering::Release);
    assert_eq!(ask(GET_MODEL).await, Some(Code::Ok));
    log.take();
    let response = door.pass(request(GENERATE)).await;
    let status = Status::from_header_map(response.headers()).expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "2 are waiting");
    assert!(response.headers().contains_key(REQUEST_ID));
    drop(response);
    for _ in 0..100 {
        assert_eq!(ask(GENERATE).await, Some(Code::ResourceExhausted));
    }
    // Few lines, every one counted.
    let log = log.take();
    assert!(log.contains("reason=\"QUEUE_FULL\""), "{log}");
    assert!(log.lines().count() < 50, "{log}");
    let metrics = door.metrics.text().expect("metrics");
    let counted = "steer_requests_refused_total{reason=\"QUEUE_FULL\"} 101";
    assert!(metrics.contains(counted), "{metrics}");
    waiting.store(1, Ordering::Release);
    assert_eq!(ask(GENERATE).await, Some(Code::Ok));
}
