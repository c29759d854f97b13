//! Slots, queues, shutdown, health, reflection.

use std::time::Duration;

use steering_client::{Error, GenerationStream, generation::Event, prompt, v1};
use steering_e2e::{Fixture, Services, WorkerOptions, request, services::PATIENCE};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::{Code, Status, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

/// Long enough, in a context of 512, with enough variants and with enough said
/// about every token, to fill all buffers and then wait for its reader.
const LONG: u32 = 490;
const VARIANTS: u32 = 8;

async fn start(max_sequences: u32, max_queued: u32) -> Services {
    let options = WorkerOptions {
        max_sequences,
        max_queued,
        context_length: None,
    };
    Services::start(&Fixture::load("gemma2"), options).await
}

fn text(max_new_tokens: u32) -> v1::GenerateRequest {
    let sampling = v1::Sampling {
        ignore_eos: true,
        ..request::greedy(max_new_tokens)
    };
    request::unsteered(prompt::text("Write a haiku."), sampling)
}

/// Starts a generation that takes [`VARIANTS`] slots and is too long for all
/// buffers, and reads until its first token.
async fn begin(services: &Services) -> GenerationStream {
    let mut request = text(LONG);
    request.variants = vec![v1::Variant::default(); VARIANTS as usize];
    request.sampling.as_mut().expect("sampling").top_logprobs = 20;
    let stream = services.client.generate(request).await;
    let mut stream = stream.expect("accepted");
    loop {
        let event = stream.next().await.expect("goes on").expect("not over");
        if matches!(event, Event::Token(_)) {
            return stream;
        }
    }
}

/// The tokens left in a stream, and how it ends.
async fn rest(mut stream: GenerationStream) -> (u32, v1::FinishReason) {
    let mut tokens = 0;
    let mut reason = v1::FinishReason::Unspecified;
    while let Some(event) = stream.next().await.expect("goes on") {
        match event {
            Event::Started(_) => panic!("started twice"),
            Event::Token(_) => tokens += 1,
            Event::Finished(finished) => reason = finished.finish_reason(),
        }
    }
    (tokens, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_free_their_slots() {
    let services = start(2 * VARIANTS, 8).await;
    // Their readers stand still, so neither could ever end by itself.
    let held = [begin(&services).await, begin(&services).await];
    let third = services.client.generate(text(4)).await.expect("accepted");
    let mut third = tokio::spawn(third.collect());
    assert!(
        timeout(Duration::from_millis(500), &mut third)
            .await
            .is_err(),
        "all slots are taken"
    );
    drop(held);
    let third = timeout(Duration::from_secs(5), third).await;
    let third = third
        .expect("served promptly")
        .expect("no panic")
        .expect("whole");
    assert_eq!(third.variants[0].token_ids.len(), 4);
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_slots_all_complete() {
    let services = start(2, 64).await;
    let alone = request::run_one(&services.client, text(20)).await;
    let all: Vec<_> = (0..24)
        .map(|_| {
            let client = services.client.clone();
            tokio::spawn(async move { request::run_one(&client, text(20)).await })
        })
        .collect();
    for one in all {
        let one = timeout(PATIENCE, one)
            .await
            .expect("in time")
            .expect("no panic");
        assert_eq!(one.token_ids, alone.token_ids);
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_says_when_to_retry() {
    // One request alone may not hold every slot.
    let services = start(2 * VARIANTS, 1).await;
    let held = [begin(&services).await, begin(&services).await];
    let mut queued = Vec::new();
    let refused = loop {
        assert!(queued.len() < 8, "the queue has no end");
        match services.client.generate(text(2)).await {
            Ok(stream) => queued.push(stream),
            Err(error) => break status(error),
        }
    };
    assert!(!queued.is_empty(), "one may wait");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(
        refused.message().contains("1 requests are waiting"),
        "{refused}"
    );
    let model = services.client.get_model().await.expect("a card");
    assert_eq!(model.limits.expect("limits").max_queued_requests, 1);
    let retry = refused.get_details_retry_info().expect("RetryInfo");
    assert!(retry.retry_delay.expect("a delay") > Duration::ZERO);
    let info = refused.get_details_error_info().expect("ErrorInfo");
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("QUEUE_FULL", "worker.steering.v1")
    );
    // Before it is read, whatever it says.
    let empty = v1::ScoreTextRequest::default();
    let score = services.client.worker().score_text(empty).await;
    assert_eq!(score.expect_err("refused").message(), refused.message());
    drop(held);
    for stream in queued {
        let answer = timeout(PATIENCE, stream.collect()).await.expect("in time");
        assert_eq!(answer.expect("whole").variants[0].token_ids.len(), 2);
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_running_streams_end_and_then_refuses() {
    let services = start(VARIANTS, 8).await;
    let stream = begin(&services).await;
    let Services { worker, .. } = services;
    let url = worker.url.clone();
    let stopping = worker.begin_stop();
    sleep(Duration::from_millis(200)).await;
    assert!(!stopping.is_finished(), "a stream is still open");
    let rest = timeout(PATIENCE, rest(stream)).await.expect("in time");
    let all = VARIANTS * LONG;
    assert_eq!(rest, (all - 1, v1::FinishReason::MaxNewTokens));
    let ended = timeout(PATIENCE, stopping).await.expect("in time");
    ended.expect("no panic").expect("an orderly end");
    // On a new connection: a call on the old one may meet it while it closes.
    let refused = Channel::from_shared(url).expect("a URL").connect().await;
    assert!(refused.is_err(), "the port is still served");
}

fn status(error: Error) -> Status {
    match error {
        Error::Rpc { status, .. } => *status,
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_the_services() {
    let services = start(1, 1).await;
    for (url, own, other) in [
        (
            &services.worker.url,
            "steering.v1.ModelWorkerService",
            "steering.v1.FeatureRegistryService",
        ),
        (
            &services.registry.url,
            "steering.v1.FeatureRegistryService",
            "steering.v1.ModelWorkerService",
        ),
    ] {
        let names = reflected(url).await;
        for name in [own, "grpc.health.v1.Health"] {
            assert!(names.iter().any(|n| n == name), "{url} {name} {names:?}");
        }
        assert!(
            !names.iter().any(|n| n == other),
            "{other} is not served here: {names:?}"
        );
    }
    services.stop().await;
}

async fn reflected(url: &str) -> Vec<String> {
    let endpoint = Channel::from_shared(url.to_owned()).expect("URL");
    let channel = endpoint.connect().await.expect("connects");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let mut answers = answers.expect("reflection").into_inner();
    let answer = answers.next().await.expect("an answer").expect("no error");
    match answer.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect(),
        other => panic!("{other:?}"),
    }
}
