//! Limits that are not about what one request asks for: messages, streams, time. Each is
//! reported by `GetModel`, kept, and named with its value. (Those of one request are in
//! `secure.rs`, the queue's in `streams.rs`.)

use std::time::{Duration, Instant};

use prost::Message;
use steering_client::{Client, Endpoints, Error, GenerationBuilder, prompt, v1};
use steering_e2e::{
    Fixture, direction, request,
    services::{Running, start_worker_with},
};
use tokio::time::timeout;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// A worker with these limits, and a client, once it serves.
async fn start(flags: &[&str]) -> (Running, Client, v1::Limits) {
    let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
    let worker = start_worker_with(&Fixture::load("gemma2"), &flags).await;
    let endpoints = Endpoints {
        worker: worker.url.clone(),
        ..Endpoints::default()
    };
    let client = Client::connect(&endpoints).expect("a client");
    let began = Instant::now();
    let limits = loop {
        match client.get_model().await {
            Ok(model) => break model.limits.expect("limits"),
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    (worker, client, limits)
}

fn status(error: Error) -> Status {
    match error {
        Error::Rpc { status, .. } => *status,
        other => panic!("not a status: {other}"),
    }
}

fn names(status: &Status, numbers: &[usize]) {
    for number in numbers {
        let text = number.to_string();
        assert!(status.message().contains(&text), "{text}: {status}");
    }
}

/// A request of exactly this many bytes: its text is too long, which is another matter.
fn of_bytes(bytes: usize) -> v1::TokenizeRequest {
    let of_text = |n: usize| v1::TokenizeRequest {
        prompt: Some(prompt::text("a".repeat(n))),
    };
    let around = of_text(bytes).encoded_len() - bytes;
    let request = of_text(bytes - around);
    assert_eq!(request.encoded_len(), bytes);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_message_may_have_its_bytes_and_not_one_more() {
    let (worker, client, limits) = start(&["--max-request-mib=1"]).await;
    assert_eq!(limits.max_request_bytes, MIB as u64);
    let tokenize = async |bytes| {
        let answer = client.worker().tokenize(of_bytes(bytes)).await;
        answer.expect_err("is too long in any case")
    };
    assert_eq!(tokenize(MIB).await.code(), Code::InvalidArgument);
    let refused = tokenize(MIB + 1).await;
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    names(&refused, &[MIB, MIB + 1]);
    drop(client);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_message_above_its_bytes_is_not_sent() {
    let flags = [
        "--max-response-mib=1",
        "--max-sequences=700",
        "--max-variants=700",
    ];
    let (worker, client, limits) = start(&flags).await;
    assert_eq!(limits.max_response_bytes, MIB as u64);
    // Four bytes for each token and variant, and a few around them.
    let score = async |variants: usize| {
        let request = v1::ScoreTextRequest {
            prompt: Some(prompt::token_ids(vec![2])),
            continuation: Some(v1::score_text_request::Continuation::TokenIds(
                v1::TokenIds { ids: vec![7; 450] },
            )),
            variants: (0..variants)
                .map(|i| v1::Variant {
                    name: format!("v{i}"),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        timeout(PATIENCE, client.score_text(request))
            .await
            .expect("in time")
    };
    let served = score(500).await.expect("900 kB");
    assert_eq!(served.scores.len(), 500);
    let refused = status(score(700).await.expect_err("1.3 MB"));
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    names(&refused, &[MIB]);
    drop(client);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_of_a_prompt_that_fit_no_message_are_refused_at_the_door() {
    let flags = ["--max-response-mib=1", "--max-probes=400"];
    let (worker, client, _) = start(&flags).await;
    let generate = async |prompt_len: usize| {
        let mut builder = GenerationBuilder::new(prompt::token_ids(vec![7; prompt_len]));
        builder.sampling(request::greedy(1));
        let mut request = builder.build();
        request.vectors.push(v1::Vector {
            name: String::new(),
            values: vec![1.0; 48],
        });
        let direction = v1::DirectionReadout {
            hook_name: "blocks.0.hook_resid_post".to_owned(),
            ..Default::default()
        };
        let probe = v1::Probe {
            name: String::new(),
            readout: Some(v1::Readout {
                source: Some(v1::readout::Source::Direction(direction)),
            }),
        };
        request.probes = vec![probe; 400];
        request.telemetry = Some(v1::Telemetry {
            prompt_readings: true,
            ..Default::default()
        });
        client.generate(request).await?.collect().await
    };
    // 8 bytes for each token and probe, and a few around them.
    let served = generate(280).await.expect("900 kB");
    assert_eq!(served.variants[0].readings.len(), 280);
    let refused = status(
        generate(300)
            .await
            .expect_err("more than is left for numbers"),
    );
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().starts_with("telemetry.prompt_readings"));
    names(&refused, &[300, MIB]);
    drop(client);
    worker.stop().await;
}

/// A capture whose texts never come: it runs for as long as it may.
fn open_capture(client: &Client) -> tokio::task::JoinHandle<Result<(), Status>> {
    let config = v1::CaptureActivationsRequest {
        message: Some(v1::capture_activations_request::Message::Config(
            direction::config(direction::mean(0), 0),
        )),
    };
    let client = client.clone();
    tokio::spawn(async move {
        let requests = tokio_stream::once(config);
        let requests = tokio_stream::StreamExt::chain(requests, tokio_stream::pending());
        let answers = client.worker().capture_activations(requests).await?;
        let mut answers = answers.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_its_streams_and_the_next_call_waits() {
    let (worker, client, limits) = start(&["--max-streams=2"]).await;
    assert_eq!(limits.max_streams_per_connection, 2);
    let capture = async || {
        let config = direction::config(direction::mean(0), 0);
        let begun = client.capture_activations(config, tokio_stream::pending(), 1);
        let begun = timeout(PATIENCE, begun).await.expect("in time");
        begun.expect("accepted")
    };
    let first = capture().await;
    timeout(PATIENCE, client.get_model())
        .await
        .expect("in time")
        .expect("two are allowed");
    let second = capture().await;
    let third = timeout(Duration::from_millis(500), client.get_model()).await;
    assert!(third.is_err(), "a third stream on a connection of two");
    let elsewhere = Client::connect(client.endpoints()).expect("a client");
    let another = timeout(PATIENCE, elsewhere.get_model()).await;
    another
        .expect("in time")
        .expect("another connection has its own");
    drop(second);
    timeout(PATIENCE, client.get_model())
        .await
        .expect("in time: a capture that is dropped gives its stream back")
        .expect("two are allowed");
    drop((first, client, elsewhere));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_time_whatever_it_waits_for() {
    let (worker, client, limits) = start(&["--max-request-time=1"]).await;
    assert_eq!(limits.max_request_seconds, 1);
    let began = Instant::now();
    let ended = timeout(PATIENCE, open_capture(&client))
        .await
        .expect("in time");
    let refused = ended.expect("no panic").expect_err("its time is over");
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    drop(client);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_tokens_hold_whatever_the_call() {
    let flags = ["--max-prompt-tokens=32", "--max-new-tokens=16"];
    let (worker, client, limits) = start(&flags).await;
    assert_eq!((limits.max_prompt_tokens, limits.max_new_tokens), (32, 16));
    // The default would be 128.
    let sampling = v1::Sampling {
        max_new_tokens: None,
        ignore_eos: true,
        ..request::greedy(1)
    };
    let request = request::unsteered(prompt::token_ids(vec![2, 7]), sampling);
    let stream = client.generate(request).await.expect("accepted");
    let written = stream.collect().await.expect("written");
    assert_eq!(written.variants[0].token_ids.len(), 16);

    let too_long = v1::ScoreTextRequest {
        prompt: Some(prompt::token_ids(vec![2])),
        continuation: Some(v1::score_text_request::Continuation::TokenIds(
            v1::TokenIds { ids: vec![7; 48] },
        )),
        variants: vec![v1::Variant::default()],
        ..Default::default()
    };
    let refused = status(client.score_text(too_long).await.expect_err("49 tokens"));
    names(&refused, &[48, 49]);

    let config = direction::config(direction::mean(0), 33);
    let refused = client.capture_activations(config, tokio_stream::pending(), 1);
    let Err(refused) = refused.await else {
        panic!("33 tokens");
    };
    names(&status(refused), &[32, 33]);
    drop(client);
    worker.stop().await;
}
