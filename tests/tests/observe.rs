//! What a worker says it read and did, against what can be worked out from the
//! activations that it captures.

use std::time::Duration;

use steering_client::{
    VariantTranscript, prompt,
    v1::{self, model_worker_service_client::ModelWorkerServiceClient},
};
use steering_e2e::{
    Fixture, Services, WorkerOptions,
    direction::{PROMPT, above, add, config, direction, generate, mean, payload, text, variant},
    request,
};
use tokio_stream::iter;
use tonic::Code;

const NEW: u32 = 12;

async fn start() -> (Fixture, Services) {
    let fixture = Fixture::load("gemma2");
    let services = Services::start(&fixture, WorkerOptions::default()).await;
    (fixture, services)
}

async fn capture(
    services: &Services,
    config: v1::CaptureConfig,
    texts: Vec<v1::CaptureText>,
) -> (Vec<v1::CapturedText>, v1::CaptureSummary) {
    let stream = services.client.capture_activations(config, iter(texts), 4);
    let mut stream = stream.await.expect("accepted");
    let mut captured = Vec::new();
    while let Some(text) = stream.next().await.expect("goes on") {
        captured.push(text);
    }
    captured.sort_by_key(|text| text.id);
    (captured, *stream.summary().expect("ends with a summary"))
}

/// Activations of the prompt, row by row.
async fn rows(services: &Services, ids: &[u32], width: usize) -> Vec<Vec<f32>> {
    let per_token = v1::capture_config::Pooling::PerToken(v1::PerTokenPooling {});
    let (mut texts, _) = capture(services, config(per_token, 0), vec![text(0, ids)]).await;
    let text = texts.remove(0);
    assert_eq!(text.token_ids, ids);
    text.values.chunks(width).map(<[f32]>::to_vec).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * (1.0 + a.abs().max(b.abs()))
}

/// What the probe reads at each prompt token, worked out here.
async fn expected_reads(services: &Services, width: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = rows(services, &PROMPT, width).await;
    let v = direction(width);
    let reads = rows.iter().map(|x| dot(x, &v) + 0.25).collect();
    let norms = rows.iter().map(|x| dot(x, x).sqrt()).collect();
    (reads, norms)
}

async fn run(services: &Services, request: v1::GenerateRequest) -> VariantTranscript {
    request::run_one(&services.client, request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_and_reports_are_what_the_activations_say() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let (reads, norms) = expected_reads(&services, width).await;
    let v = direction(width);
    let squared = dot(&v, &v);
    let strength = 1.5;
    let request = generate(width, 1, variant(vec![add(strength, None)]));
    let answer = run(&services, request).await;
    assert_eq!(answer.readings.len(), PROMPT.len());
    let mut doses = 0.0;
    for (i, reading) in answer.readings.iter().enumerate() {
        assert_eq!((reading.position, reading.token_id), (i as u32, PROMPT[i]));
        let before = f64::from(reading.before[0]);
        let after = f64::from(reading.after[0]);
        assert!(close(before, reads[i]), "{before} is not {}", reads[i]);
        assert!(close(after, reads[i] + f64::from(strength) * squared));
        let dose = f64::from(strength) * squared.sqrt() / norms[i];
        let [norm] = reading.edit_norms[..] else {
            panic!("one hook point is edited");
        };
        assert!(close(f64::from(norm.relative_norm), dose));
        doses += dose;
    }
    let report = &answer.interventions[0];
    assert_eq!(report.positions_touched, PROMPT.len() as u64);
    assert_eq!(report.positions_changed, PROMPT.len() as u64);
    assert!(close(
        f64::from(report.mean_relative_delta),
        doses / PROMPT.len() as f64
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_open_where_the_condition_fires() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let (reads, _) = expected_reads(&services, width).await;
    let mut sorted = reads.clone();
    sorted.sort_by(f64::total_cmp);
    let threshold = f64::midpoint(sorted[5], sorted[6]) as f32;
    let fires: Vec<bool> = reads
        .iter()
        .map(|&read| read > f64::from(threshold))
        .collect();
    let first = fires.iter().position(|&f| f).expect("half of them fire");
    let open_for = |n: usize| {
        let open = |i: usize| fires[i.saturating_sub(n - 1)..=i].contains(&true);
        (0..fires.len()).filter(|&i| open(i)).count()
    };
    let cases = [
        (v1::GateMode::While, 0, 6),
        (v1::GateMode::Once, 0, fires.len() - first),
        (v1::GateMode::ForTokens, 2, open_for(2)),
    ];
    for (mode, tokens, open) in cases {
        let gate = v1::Gate {
            condition: Some(above(threshold)),
            mode: mode.into(),
            tokens,
        };
        // The edit is small: the reads of later tokens stay what they were.
        let request = generate(width, 1, variant(vec![add(1e-6, Some(gate))]));
        let report = run(&services, request).await.interventions.remove(0);
        assert_eq!(report.gate_firings, Some(6), "{mode:?}");
        assert_eq!(report.positions_touched, open as u64, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_condition_ends_at_the_token_that_fires() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let free = run(&services, generate(width, NEW, variant(Vec::new()))).await;
    let generated: Vec<&v1::Reading> = free
        .readings
        .iter()
        .filter(|reading| reading.position as usize >= PROMPT.len())
        .collect();
    assert_eq!(
        generated.len(),
        NEW as usize - 1,
        "the last one is not read"
    );
    let values: Vec<f32> = generated.iter().map(|r| r.before[0]).collect();
    // The first token that reads higher than all before it, but for the first.
    let index = (1..values.len())
        .find(|&i| values[..i].iter().all(|&v| v < values[i]))
        .expect("values differ");
    let threshold = values[..index].iter().copied().fold(f32::MIN, f32::max);
    let stopping = v1::Variant {
        stop_when: vec![above(1e9), above(threshold)],
        ..variant(Vec::new())
    };
    let stopped = run(&services, generate(width, NEW, stopping)).await;
    assert_eq!(stopped.finish_reason, v1::FinishReason::Condition);
    assert_eq!(stopped.stop_condition, Some(1));
    assert_eq!(stopped.token_ids, free.token_ids[..=index]);
    assert_eq!(stopped.readings.last(), Some(generated[index]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_the_log_probabilities_of_the_generation() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let steered = variant(vec![add(1.5, None)]);
    let answer = run(&services, generate(width, NEW, steered.clone())).await;
    let score = v1::ScoreTextRequest {
        prompt: Some(prompt::token_ids(PROMPT.to_vec())),
        continuation: Some(v1::score_text_request::Continuation::TokenIds(
            v1::TokenIds {
                ids: answer.token_ids.clone(),
            },
        )),
        vectors: vec![payload(width)],
        variants: vec![steered, v1::Variant::default()],
        ..Default::default()
    };
    let scores = services
        .client
        .score_text(score)
        .await
        .expect("scored")
        .scores;
    assert_eq!(scores[0].logprobs, answer.logprobs, "bit for bit");
    assert_ne!(
        scores[1].logprobs, answer.logprobs,
        "the unsteered model differs"
    );
    let mean: f64 = answer.logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / f64::from(NEW);
    assert!(close(scores[0].perplexity, (-mean).exp()));
}

/// Scores of every single token, under the variants given.
async fn distributions(
    services: &Services,
    width: usize,
    vocab: u32,
    variants: &[v1::Variant],
) -> Vec<Vec<f64>> {
    let mut all = vec![Vec::new(); variants.len()];
    for id in 0..vocab {
        let score = v1::ScoreTextRequest {
            prompt: Some(prompt::token_ids(PROMPT.to_vec())),
            continuation: Some(v1::score_text_request::Continuation::TokenIds(
                v1::TokenIds { ids: vec![id] },
            )),
            vectors: vec![payload(width)],
            variants: variants.to_vec(),
            ..Default::default()
        };
        let scores = services
            .client
            .score_text(score)
            .await
            .expect("scored")
            .scores;
        for (all, score) in all.iter_mut().zip(scores) {
            all.push(f64::from(score.logprobs[0]));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn divergence_is_that_of_the_two_distributions() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let steered = variant(vec![add(1.5, None)]);
    let answer = run(&services, generate(width, 3, steered.clone())).await;
    let variants = [steered, v1::Variant::default()];
    let vocab = fixture.cases.vocab_size;
    let all = distributions(&services, width, vocab, &variants).await;
    let terms = all[0].iter().zip(&all[1]).map(|(p, q)| p.exp() * (p - q));
    let expected: f64 = terms.sum();
    let got = f64::from(answer.kl_divergence[0]);
    assert!(
        expected > 1e-3 && close(got, expected),
        "{got} is not {expected}"
    );
    let unsteered = run(&services, generate(width, 3, variant(Vec::new()))).await;
    assert_eq!(unsteered.kl_divergence, [0.0; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn means_skip_the_bos_and_short_texts_are_dropped() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let rows = rows(&services, &PROMPT, width).await;
    let texts = vec![text(7, &PROMPT), text(8, &PROMPT[..4])];
    let (captured, summary) = capture(&services, config(mean(3), 10), texts).await;
    // Ten tokens are read: BOS and three more are left out.
    for (i, &value) in captured[0].values.iter().enumerate() {
        let expected: f64 = rows[4..10].iter().map(|row| f64::from(row[i])).sum::<f64>() / 6.0;
        assert!(close(f64::from(value), expected));
    }
    assert_eq!(captured[0].n_tokens, 10);
    assert_eq!(captured[1].dropped(), v1::CaptureDrop::TooShort);
    assert_eq!((summary.captured, summary.dropped_too_short), (1, 1));
    assert_eq!((summary.tokens, summary.width), (14, width as u32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_the_request_and_frees_its_slot() {
    let (_, services) = start().await;
    let worker = ModelWorkerServiceClient::connect(services.worker.url.clone()).await;
    let mut worker = worker.expect("a connection");
    let sampling = v1::Sampling {
        ignore_eos: true,
        ..request::greedy(490)
    };
    let wire = request::unsteered(prompt::token_ids(PROMPT.to_vec()), sampling);
    let mut request = tonic::Request::new(wire);
    // Only as a header: the client itself would cancel.
    request
        .metadata_mut()
        .insert("grpc-timeout", "20m".parse().expect("a header"));
    let ended = match worker.generate(request).await {
        Err(status) => status,
        Ok(response) => {
            let mut stream = response.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Ok(None) => panic!("ended in order"),
                    Err(status) => break status,
                }
            }
        }
    };
    assert!(
        matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{ended}"
    );
    for _ in 0..500 {
        let model = services.client.get_model().await.expect("a card");
        if model.load.expect("load").running_sequences == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the slot did not come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_observed_is_refused() {
    let (fixture, services) = start().await;
    let width = fixture.cases.d_model;
    let refused = async |request: v1::GenerateRequest| {
        let error = services
            .client
            .generate(request)
            .await
            .expect_err("refused");
        error.to_string()
    };
    let ahead = v1::Gate {
        condition: Some(above(0.0)),
        mode: v1::GateMode::While.into(),
        tokens: 0,
    };
    let mut early = add(1.0, Some(ahead));
    if let Some(v1::intervention::Edit::VectorAdd(edit)) = &mut early.edit {
        edit.hook_name = "blocks.1.hook_resid_post".to_owned();
    }
    let error = refused(generate(width, 1, variant(vec![early]))).await;
    assert!(error.contains("gate.condition.readout"), "{error}");

    let mut wide = generate(width, 1, variant(Vec::new()));
    wide.vectors[0].values.push(1.0);
    let error = refused(wide).await;
    assert!(
        error.contains("probes[0].readout.direction.vector"),
        "{error}"
    );

    let mut many = generate(width, 1, variant(Vec::new()));
    many.probes = (0..65).map(|_| many.probes[0].clone()).collect();
    let error = refused(many).await;
    assert!(error.contains("at most 64"), "{error}");

    let mut unknown = generate(width, 1, variant(Vec::new()));
    unknown.priority = Some(9);
    let error = refused(unknown).await;
    assert!(error.contains("priority"), "{error}");

    let no_text = config(mean(600), 10);
    let error = services
        .client
        .capture_activations(no_text, iter(Vec::new()), 1)
        .await
        .expect_err("refused")
        .to_string();
    assert!(error.contains("skip_tokens"), "{error}");
}
