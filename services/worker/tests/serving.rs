//! The worker over gRPC, in process, on a fixture.

mod support;

use std::time::Duration;

use clap::Parser;
use steering_proto::v1::{self, model_worker_service_client::ModelWorkerServiceClient};
use steering_worker::Config;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tokio_stream::StreamExt;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;

type Client = ModelWorkerServiceClient<Channel>;

struct Served {
    client: Client,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), steering_worker::WorkerError>>,
}

async fn serve(family: &str, flags: &[&str]) -> Served {
    let model = support::folder(family).join("model");
    let model = model.to_str().expect("path");
    let arguments = ["steer-worker", "--model", model]
        .into_iter()
        .chain(flags.iter().copied());
    let config = Config::parse_from(arguments);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    let ended = tokio::spawn(steering_worker::run(config, listener, shutdown));
    let client = Client::connect(format!("http://{address}"))
        .await
        .expect("connects");
    Served {
        client,
        stop,
        ended,
    }
}

fn text(text: &str) -> Option<v1::Prompt> {
    let content = v1::prompt::Content::Text(text.to_owned());
    Some(v1::Prompt {
        content: Some(content),
    })
}

fn request(max_new_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: text("Once upon a time"),
        sampling: Some(v1::Sampling {
            max_new_tokens: Some(max_new_tokens),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn add(hook_name: &str, strength: f32, positions: Option<v1::Positions>) -> v1::Intervention {
    v1::Intervention {
        edit: Some(v1::intervention::Edit::VectorAdd(v1::VectorAdd {
            vector: 0,
            hook_name: hook_name.to_owned(),
            strength,
            unit: v1::StrengthUnit::Raw.into(),
        })),
        positions,
    }
}

fn steered(max_new_tokens: u32, interventions: Vec<v1::Intervention>) -> v1::GenerateRequest {
    let vector = v1::Vector {
        name: "v".to_owned(),
        values: (0..48).map(|i| (i % 5) as f32 - 2.0).collect(),
    };
    v1::GenerateRequest {
        vectors: vec![vector],
        variants: vec![v1::Variant {
            name: "steered".to_owned(),
            interventions,
        }],
        ..request(max_new_tokens)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    prompt_tokens: usize,
    tokens: Vec<Vec<u32>>,
    logprobs: Vec<Vec<f32>>,
    finished: Vec<v1::VariantFinished>,
}

async fn generate(client: &mut Client, request: v1::GenerateRequest) -> Result<Answer, Status> {
    use v1::generate_response::Event;
    let mut stream = client.generate(request).await?.into_inner();
    let mut answer = Answer::default();
    while let Some(message) = stream.next().await {
        match message?.event.expect("an event") {
            Event::Started(started) => {
                answer.prompt_tokens = started.prompt_token_ids.len();
                answer.tokens = vec![Vec::new(); started.variant_names.len()];
                answer.logprobs = answer.tokens.iter().map(|_| Vec::new()).collect();
            }
            Event::Token(token) => {
                answer.tokens[token.variant as usize].push(token.token_id);
                answer.logprobs[token.variant as usize].push(token.logprob);
            }
            Event::Finished(finished) => answer.finished.push(finished),
        }
    }
    Ok(answer)
}

#[tokio::test]
async fn reports_count_the_positions_that_were_asked_for() {
    let mut served = serve("gemma2", &[]).await;
    let scope = |scope: v1::PositionScope| v1::Positions {
        scope: scope.into(),
        ..Default::default()
    };
    let window = v1::Positions {
        window: Some(v1::PositionWindow {
            start: 1,
            end: Some(4),
        }),
        ..scope(v1::PositionScope::All)
    };
    let plain = v1::Positions {
        skip_special_tokens: true,
        ..scope(v1::PositionScope::Prompt)
    };
    let positions = [
        None,
        Some(scope(v1::PositionScope::Prompt)),
        Some(scope(v1::PositionScope::Generated)),
        Some(window),
        Some(plain),
    ];
    let hooks = [
        "hook_resid_pre",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_resid_post",
    ];
    for hook in hooks {
        let hook = format!("blocks.1.{hook}");
        let interventions = positions
            .iter()
            .map(|p| add(&hook, 0.5, p.clone()))
            .collect();
        let answer = generate(&mut served.client, steered(6, interventions))
            .await
            .expect("answers");
        let n = answer.prompt_tokens as u64;
        let touched: Vec<u64> = answer.finished[0]
            .interventions
            .iter()
            .map(|report| report.positions_touched)
            .collect();
        // The last token is never read; BOS is the one special token.
        assert_eq!(touched, [n + 5, n, 5, 3, n - 1], "{hook}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_in_the_batch_change_nothing() {
    let served = serve("gemma2", &["--prompt-chunk", "3"]).await;
    let requests: Vec<_> = (0..12u8)
        .map(|i| {
            let hook = format!("blocks.{}.hook_resid_post", i % 5);
            let mut request = steered(12, vec![add(&hook, f32::from(i) - 4.0, None)]);
            request.variants.push(v1::Variant::default());
            let sampling = request.sampling.get_or_insert_default();
            sampling.seed = Some(7);
            sampling.temperature = Some(f32::from(i % 3) * 0.6);
            request
        })
        .collect();
    let mut alone = Vec::new();
    for request in &requests {
        let answer = generate(&mut served.client.clone(), request.clone()).await;
        alone.push(answer.expect("answers"));
    }
    let together = requests.into_iter().map(|request| {
        let mut client = served.client.clone();
        tokio::spawn(async move { generate(&mut client, request).await.expect("answers") })
    });
    for (task, alone) in together.collect::<Vec<_>>().into_iter().zip(&alone) {
        let answer = task.await.expect("no panic");
        assert_eq!(answer.tokens, alone.tokens);
        assert_eq!(answer.logprobs, alone.logprobs, "bit for bit");
    }
    // The edits did something, and the unsteered variants are all the same.
    assert_ne!(alone[11].tokens[0], alone[11].tokens[1]);
    assert_eq!(alone[0].logprobs[1], alone[3].logprobs[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_frees_its_slots() {
    let mut served = serve("llama_rope3", &["--max-sequences", "2"]).await;
    for _ in 0..20 {
        let mut long = request(400);
        long.variants = vec![
            v1::Variant::default(),
            v1::Variant {
                name: "b".to_owned(),
                interventions: vec![],
            },
        ];
        let mut stream = served
            .client
            .generate(long)
            .await
            .expect("accepted")
            .into_inner();
        assert!(stream.next().await.is_some());
        drop(stream);
    }
    let answer = timeout(
        Duration::from_secs(20),
        generate(&mut served.client, request(4)),
    )
    .await;
    assert_eq!(
        answer.expect("in time").expect("answers").tokens[0].len(),
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_the_door_and_says_when_to_come_back() {
    let mut served = serve(
        "llama_rope3",
        &["--max-sequences", "1", "--max-queued", "1"],
    )
    .await;
    // Nobody reads these streams, so the first parks in its slot.
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..8 {
        match served.client.generate(request(400)).await {
            Ok(stream) => held.push(stream),
            Err(status) => refused = Some(status),
        }
    }
    let refused = refused.expect("the queue is bounded");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    drop(held);
    let answer = timeout(Duration::from_secs(20), async {
        loop {
            match generate(&mut served.client, request(2)).await {
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    });
    assert!(answer.await.expect("in time").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_running_streams_end() {
    let mut served = serve("gemma2", &[]).await;
    let mut client = served.client.clone();
    let running = tokio::spawn(async move { generate(&mut client, request(200)).await });
    let first = served.client.generate(request(1)).await.expect("accepted");
    drop(first);
    tokio::time::sleep(Duration::from_millis(20)).await;
    served.stop.send(()).expect("running");
    let answer = running.await.expect("no panic").expect("ends normally");
    assert_eq!(answer.tokens[0].len(), 200);
    drop(served.client);
    timeout(Duration::from_secs(10), served.ended)
        .await
        .expect("stops")
        .expect("no panic")
        .expect("clean");
}

#[tokio::test]
async fn bad_input_is_named_and_the_worker_goes_on() {
    let mut served = serve("gemma2", &[]).await;
    type Spoil = fn(&mut v1::GenerateRequest);
    let cases: [(&str, Spoil); 9] = [
        ("prompt.text", |r| r.prompt = text("")),
        ("prompt", |r| r.prompt = text(&"long ".repeat(2000))),
        ("prompt.token_ids.ids[1]", |r| {
            let ids = v1::TokenIds {
                ids: vec![1, 1 << 20],
            };
            r.prompt = Some(v1::Prompt {
                content: Some(v1::prompt::Content::TokenIds(ids)),
            });
        }),
        ("variants[0].interventions[0].payload", |r| {
            r.vectors[0].values.pop();
        }),
        ("vectors[0].values[2]", |r| {
            r.vectors[0].values[2] = f32::NAN;
        }),
        ("variants[0].interventions[0].hook_name", |r| {
            r.variants[0].interventions[0] = add("blocks.5.hook_resid_post", 1.0, None);
        }),
        ("variants[0].interventions[0].vector_add.hook_name", |r| {
            r.variants[0].interventions[0] = add("blocks.0.hook_nowhere", 1.0, None);
        }),
        ("variants[0].interventions[0].positions.scope", |r| {
            r.variants[0].interventions[0].positions = Some(v1::Positions::default());
        }),
        ("variants", |r| {
            r.variants = (0..65).map(|_| v1::Variant::default()).collect();
        }),
    ];
    for (field, spoil) in cases {
        let mut bad = steered(2, vec![add("blocks.1.hook_resid_post", 1.0, None)]);
        spoil(&mut bad);
        let status = generate(&mut served.client, bad).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let details = status.get_details_bad_request().expect("details");
        assert_eq!(details.field_violations[0].field, field, "{status}");
        let good = steered(2, vec![add("blocks.1.hook_resid_post", 1.0, None)]);
        assert!(
            generate(&mut served.client, good).await.is_ok(),
            "after {field}"
        );
    }
}
