//! Start, health, metrics, drain.

use std::{net::SocketAddr, time::Duration};

use steering_proto::access::Scope;
use steering_service::{Operation, Security};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, service::Routes, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_types::StatusExt;

use crate::harness::{GET_MODEL, PATIENCE, Tried, WORKER, call, call_with, code, entry, with_keys};

/// A free port for the health listener.
async fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    listener.local_addr().expect("address")
}

/// Status line and body of an HTTP/1.1 answer.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut tcp = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (
        head.lines().next().unwrap_or_default().to_owned(),
        body.to_owned(),
    )
}

async fn health(address: SocketAddr, service: &str) -> ServingStatus {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .expect("URL")
        .connect_lazy();
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel)
        .check(request)
        .await
        .expect("answered");
    answer.into_inner().status()
}

#[tokio::test]
async fn while_it_loads_it_says_so_everywhere() {
    let operation = Operation {
        health_listen: Some(free().await),
        ..Operation::default()
    };
    let probes = operation.health_listen.expect("address");
    let tried = Tried::try_start(&Security::default(), &operation)
        .await
        .expect("starts");
    let status = call(&tried.plain(), GET_MODEL, &[])
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.get_details_error_info().expect("info").reason,
        "LOADING"
    );
    assert!(status.get_details_retry_info().is_some());
    for service in ["", WORKER] {
        assert_eq!(
            health(tried.address, service).await,
            ServingStatus::NotServing
        );
        assert_eq!(health(probes, service).await, ServingStatus::NotServing);
    }
    assert_eq!(get(probes, "/livez").await.0, "HTTP/1.1 200 OK");
    assert_eq!(
        get(probes, "/readyz").await.0,
        "HTTP/1.1 503 Service Unavailable"
    );
    tried.front.open(Routes::default(), None).await;
    assert_eq!(
        code(call(&tried.plain(), GET_MODEL, &[]).await),
        Code::Unimplemented
    );
    for service in ["", WORKER] {
        assert_eq!(health(tried.address, service).await, ServingStatus::Serving);
        assert_eq!(health(probes, service).await, ServingStatus::Serving);
    }
    assert_eq!(get(probes, "/readyz").await.0, "HTTP/1.1 200 OK");
    assert_eq!(get(probes, "/none").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn metrics_count_requests_and_name_nobody() {
    let (_folder, security) = with_keys(&[entry("alice", &[Scope::RegistryRead])]);
    let operation = Operation {
        health_listen: Some(free().await),
        ..Operation::default()
    };
    let tried = Tried::start(&security, &operation).await;
    let channel = tried.plain();
    call_with(&channel, GET_MODEL, "alice-secret").await;
    call_with(&channel, "/made.Up/Label", "alice-secret").await;
    let (status, text) = get(operation.health_listen.expect("address"), "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "rpc_server_duration_seconds_count{rpc_grpc_status_code=\"7\",rpc_method=\"GetModel\",\
         rpc_service=\"steering.v1.ModelWorkerService\"} 1",
        "rpc_server_duration_seconds_count{rpc_grpc_status_code=\"7\",rpc_method=\"other\",\
         rpc_service=\"other\"} 1",
        "rpc_server_active_requests 0",
        "steer_requests_refused_total{reason=\"MISSING_SCOPE\"} 2",
        "steer_build_info{version=\"test\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(
        !text.contains("alice") && !text.contains("made.Up"),
        "{text}"
    );
}

#[tokio::test]
async fn answers_carry_the_request_id() {
    let tried = Tried::start(&Security::default(), &Operation::default()).await;
    let headers = [("x-request-id", "my-id-1")];
    let status = call(&tried.plain(), GET_MODEL, &headers)
        .await
        .expect_err("unimplemented");
    assert_eq!(
        status.metadata().get("x-request-id").expect("id"),
        "my-id-1"
    );
    let status = call(&tried.plain(), GET_MODEL, &[])
        .await
        .expect_err("unimplemented");
    assert_eq!(status.metadata().get("x-request-id").expect("id").len(), 16);
}

#[tokio::test]
async fn a_drain_refuses_new_requests_and_lets_running_ones_end() {
    let operation = Operation {
        drain_delay: 1,
        health_listen: Some(free().await),
        ..Operation::default()
    };
    let probes = operation.health_listen.expect("address");
    let tried = Tried::start(&Security::default(), &operation).await;
    let channel = tried.plain();
    // Reflection answers for as long as its stream of requests is open.
    let (keep, requests) = tokio::sync::mpsc::channel(1);
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let running = reflection
        .server_reflection_info(ReceiverStream::new(requests))
        .await;
    let mut running = running.expect("let in").into_inner();
    let Tried { front, address } = tried;
    let drain = tokio::spawn(front.drain());
    // For the drain delay it says NOT_SERVING and serves on.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(health(address, "").await, ServingStatus::NotServing);
    assert_eq!(
        get(probes, "/readyz").await.0,
        "HTTP/1.1 503 Service Unavailable"
    );
    assert_eq!(
        code(call(&channel, GET_MODEL, &[]).await),
        Code::Unimplemented
    );
    // Then it takes no more.
    let status = loop {
        let status = call(&channel, GET_MODEL, &[]).await.expect_err("an error");
        if status.code() != Code::Unimplemented {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(
        status.get_details_error_info().expect("info").reason,
        "STOPPING"
    );
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(get(probes, "/livez").await.0, "HTTP/1.1 200 OK");
    assert!(!drain.is_finished(), "a request still runs");
    drop(keep);
    assert!(running.message().await.expect("ends in peace").is_none());
    let ended = tokio::time::timeout(PATIENCE, drain)
        .await
        .expect("in time");
    ended.expect("task").expect("an orderly end");
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let operation = Operation {
        drain_timeout: 1,
        ..Operation::default()
    };
    let tried = Tried::start(&Security::default(), &operation).await;
    let (_keep, requests) = tokio::sync::mpsc::channel(1);
    let mut reflection = ServerReflectionClient::new(tried.plain());
    let running = reflection
        .server_reflection_info(ReceiverStream::new(requests))
        .await;
    running.expect("let in");
    let drain = tokio::time::timeout(Duration::from_secs(5), tried.front.drain()).await;
    drain.expect("in time").expect("an orderly end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_slows_nobody() {
    // Takes connections, and says nothing.
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = collector.local_addr().expect("address");
    let operation = Operation {
        otlp_endpoint: Some(format!("http://{address}")),
        ..Operation::default()
    };
    let tried = Tried::start(&Security::default(), &operation).await;
    let channel = tried.plain();
    // More than the queue holds.
    for _ in 0..2200 {
        let answer = code(call(&channel, GET_MODEL, &[]).await);
        assert_eq!(answer, Code::Unimplemented);
    }
    let ended = tokio::time::timeout(PATIENCE, tried.front.drain()).await;
    ended.expect("in time").expect("an orderly end");
}

#[tokio::test]
async fn watchers_of_health_hold_no_drain_up() {
    let tried = Tried::start(&Security::default(), &Operation::default()).await;
    let mut client = HealthClient::new(tried.plain());
    let watch = client
        .watch(HealthCheckRequest::default())
        .await
        .expect("watching");
    let mut watch = watch.into_inner();
    let first = watch.message().await.expect("first").expect("first");
    assert_eq!(first.status(), ServingStatus::Serving);
    let drain = tokio::spawn(tried.front.drain());
    let second = watch.message().await.expect("second").expect("second");
    assert_eq!(second.status(), ServingStatus::NotServing);
    let ended = tokio::time::timeout(Duration::from_secs(5), drain).await;
    ended
        .expect("in time")
        .expect("task")
        .expect("an orderly end");
}

#[tokio::test]
async fn old_connections_are_told_to_go_and_new_ones_serve() {
    let operation = Operation {
        max_connection_age: Some(1),
        ..Operation::default()
    };
    let tried = Tried::start(&Security::default(), &operation).await;
    let channel = tried.plain();
    for _ in 0..25 {
        assert_eq!(
            code(call(&channel, GET_MODEL, &[]).await),
            Code::Unimplemented
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
