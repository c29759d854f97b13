//! Start, restart, failure, end.

use futures::StreamExt;
use steering_proto::v1;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    harness::{Server, by_index, by_label, delete, options},
    sources::{gemma_scope, npz, write_npz},
};

const SERVICE: &str = "steering.v1.FeatureRegistryService";

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    let sae = server.import(&path, "a").await.expect("import");
    server.labels("a", br#"{"x": 3}"#).await.expect("labels");
    let before = server.feature(by_label("a", "x")).await;
    let data = server.stop().await;
    // What a process killed in the middle of things leaves behind.
    std::fs::create_dir_all(data.path().join("objects/staging")).expect("folder");
    std::fs::write(data.path().join("objects/staging/half#1"), b"x").expect("write");
    std::fs::write(data.path().join("staging/half"), b"x").expect("write");
    let mut server = Server::start_with(data, Vec::new()).await;
    assert_eq!(server.feature(by_label("a", "x")).await, before);
    assert_eq!(before.sae_digest, sae.digest);
    assert_eq!(server.files().len(), 1, "{:?}", server.files());
}

#[tokio::test]
async fn equal_saes_share_their_directions_until_the_last_is_purged() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    let deflated = server.data.path().join("b.npz");
    std::fs::write(&deflated, npz(&gemma_scope(0), true)).expect("write");
    let a = server.import(&path, "a").await.expect("import");
    let b = server.import(&deflated, "b").await.expect("import");
    assert_eq!(a.digest, b.digest);
    let other = write_npz(server.data.path(), "c.npz", 1);
    assert_ne!(
        server.import(&other, "c").await.expect("import").digest,
        a.digest
    );
    assert_eq!(server.sae_names().await, ["a", "b", "c"]);
    let delete = |name: &str| delete(name, true);
    server.labels("a", br#"{"x": 3}"#).await.expect("labels");
    server.client.delete_sae(delete("a")).await.expect("delete");
    assert_eq!(server.files().len(), 2);
    server.feature(by_index("b", 0)).await;
    server.client.delete_sae(delete("b")).await.expect("delete");
    assert_eq!(server.files().len(), 1);
    let status = server
        .client
        .delete_sae(delete("b"))
        .await
        .expect_err("gone");
    assert_eq!(status.code(), Code::NotFound);
    let status = server
        .features(vec![by_index("a", 0)])
        .await
        .expect_err("gone");
    assert_eq!(status.code(), Code::NotFound);
    // Labels went with their SAE.
    server.import(&path, "a").await.expect("import again");
    assert_eq!(server.feature(by_index("a", 3)).await.label, "");
}

#[tokio::test]
async fn an_import_that_nobody_waits_for_leaves_nothing() {
    let mut server = Server::start().await;
    let path = server.data.path().join("big.npz");
    let (d_in, d_sae) = (64, 20_000);
    let arrays = [
        ("W_enc", vec![d_in, d_sae], vec![0.5; d_in * d_sae]),
        ("W_dec", vec![d_sae, d_in], vec![0.5; d_in * d_sae]),
        ("b_enc", vec![d_sae], vec![0.5; d_sae]),
        ("b_dec", vec![d_in], vec![0.5; d_in]),
        ("threshold", vec![d_sae], vec![0.5; d_sae]),
    ];
    std::fs::write(&path, npz(&arrays, true)).expect("write");
    let source = v1::import_sae_request::Source::Path(path.display().to_string());
    let request = v1::ImportSaeRequest {
        source: Some(source),
        options: Some(options("big")),
    };
    let mut events = server
        .client
        .import_sae(request)
        .await
        .expect("start")
        .into_inner();
    events.next().await.expect("progress").expect("progress");
    drop(events);
    for _ in 0..200 {
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        let done = server.sae_names().await;
        if server.files().is_empty() && done.is_empty() {
            break;
        }
    }
    // Either it was cut off, or it was done before anybody noticed.
    assert_eq!(
        server.files().len(),
        server.sae_names().await.len(),
        "{:?}",
        server.files()
    );
    server
        .import(&write_npz(server.data.path(), "a.npz", 0), "a")
        .await
        .expect("goes on");
}

#[tokio::test]
async fn one_process_at_a_time_uses_a_folder() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    health
        .check(HealthCheckRequest::default())
        .await
        .expect("running");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("port");
    let second =
        steering_registry::run(server.data.config(), listener, std::future::pending()).await;
    assert!(
        second
            .expect_err("locked")
            .to_string()
            .contains("another steer-registry")
    );
}

#[tokio::test]
async fn health_is_served_and_the_end_is_orderly() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in ["", SERVICE] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let status = health
            .check(request)
            .await
            .expect("health")
            .into_inner()
            .status;
        assert_eq!(status, 1, "{service:?} SERVING");
    }
    let watch = HealthCheckRequest {
        service: SERVICE.to_owned(),
    };
    let mut statuses = health.watch(watch).await.expect("watch").into_inner();
    assert_eq!(
        statuses.next().await.expect("first").expect("first").status,
        1
    );
    let ended = tokio::spawn(server.stop());
    assert_eq!(
        statuses
            .next()
            .await
            .expect("second")
            .expect("second")
            .status,
        2,
        "NOT_SERVING"
    );
    assert!(
        statuses.next().await.is_none(),
        "a watcher does not hold the end up"
    );
    ended.await.expect("ended");
}

#[tokio::test]
async fn reflection_tells_the_whole_contract() {
    let server = Server::start().await;
    let mut reflection = ServerReflectionClient::new(server.channel.clone());
    let mut ask = async |message| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let responses = reflection
            .server_reflection_info(tokio_stream::once(request))
            .await;
        let mut responses = responses.expect("reflection").into_inner();
        responses
            .next()
            .await
            .expect("response")
            .expect("response")
            .message_response
    };
    let Some(MessageResponse::ListServicesResponse(list)) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(names.contains(&SERVICE.to_owned()), "{names:?}");
    assert!(
        !names.iter().any(|name| name.contains("ModelWorker")),
        "{names:?}"
    );
    for symbol in [
        SERVICE,
        "google.protobuf.Timestamp",
        "steering.v1.SaeFeature",
        "grpc.health.v1.Health",
    ] {
        let answer = ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
        assert!(
            matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))),
            "{symbol}: {answer:?}"
        );
    }
}
