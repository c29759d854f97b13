//! What a sequence says does not depend on what else is in the batch.

use std::collections::HashMap;

use steering_client::{Client, GenerationBuilder, VariantTranscript, v1};
use steering_e2e::{Fixture, Services, WorkerOptions, fixture::Case, request};

const FAMILY: &str = "gemma2";

async fn start() -> (Fixture, Services) {
    let fixture = Fixture::load(FAMILY);
    let services = Services::with_imports(&fixture, WorkerOptions::default()).await;
    (fixture, services)
}

async fn alone(
    client: &Client,
    fixture: &Fixture,
    sampling: &v1::Sampling,
) -> Vec<VariantTranscript> {
    let mut answers = Vec::new();
    for case in fixture.steered() {
        let request = request::of_case(client, case, sampling.clone()).await;
        answers.push(request::run_one(client, request).await);
    }
    answers
}

async fn together(
    client: &Client,
    fixture: &Fixture,
    sampling: &v1::Sampling,
) -> Vec<VariantTranscript> {
    let mut running = Vec::new();
    for case in fixture.steered() {
        let request = request::of_case(client, case, sampling.clone()).await;
        running.push((client.clone(), request));
    }
    let running: Vec<_> = running
        .into_iter()
        .map(|(client, request)| {
            tokio::spawn(async move { request::run_one(&client, request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in running {
        answers.push(answer.await.expect("no panic"));
    }
    answers
}

/// Equal to the last bit: tokens, text, log-probabilities, reports.
fn assert_same(a: &VariantTranscript, b: &VariantTranscript) {
    let (left, right) = (request::without_sharing(a), request::without_sharing(b));
    assert_eq!(left, right, "{}", a.name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_are_bit_identical_to_those_alone() {
    let (fixture, services) = start().await;
    let sampling = request::greedy(fixture.cases.n_new);
    let alone = alone(&services.client, &fixture, &sampling).await;
    for _ in 0..3 {
        let together = together(&services.client, &fixture, &sampling).await;
        assert_eq!(alone.len(), together.len());
        alone
            .iter()
            .zip(&together)
            .for_each(|(a, b)| assert_same(a, b));
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants_of_one_request_are_bit_identical_to_those_alone() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let sampling = request::greedy(fixture.cases.n_new);
    for cases in by_prompt(&fixture).into_values() {
        let mut builder = GenerationBuilder::new(cases[0].to_prompt());
        builder.sampling(sampling.clone());
        for case in &cases {
            let edits = request::interventions(client, case, &mut builder).await;
            builder.variant(&case.name, edits);
        }
        let transcript = request::run(client, builder.build()).await;
        assert_eq!(transcript.variants.len(), cases.len());
        for (case, variant) in cases.iter().zip(&transcript.variants) {
            let request = request::of_case(client, case, sampling.clone()).await;
            assert_same(&request::run_one(client, request).await, variant);
            assert_eq!(variant.token_ids, case.token_ids, "{}", case.name);
        }
    }
    services.stop().await;
}

/// All cases, baselines too, by prompt.
fn by_prompt(fixture: &Fixture) -> HashMap<Vec<u32>, Vec<&Case>> {
    let mut groups: HashMap<_, Vec<_>> = HashMap::new();
    for case in &fixture.cases.cases {
        let prompt = case.prompt_token_ids.clone();
        groups.entry(prompt).or_default().push(case);
    }
    assert!(groups.values().any(|group| group.len() > 2));
    groups
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_gives_the_same_tokens_alone_and_in_a_crowd() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let sampling = request::sampled(24, 7);
    let first = alone(client, &fixture, &sampling).await;
    let second = together(client, &fixture, &sampling).await;
    first
        .iter()
        .zip(&second)
        .for_each(|(a, b)| assert_same(a, b));
    let other = alone(client, &fixture, &request::sampled(24, 8)).await;
    for (a, b) in first.iter().zip(&other) {
        assert_ne!(a.token_ids, b.token_ids, "{}: another seed", a.name);
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsteered_variant_is_bit_identical_beside_steered_ones() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let sampling = request::greedy(fixture.cases.n_new);
    for case in fixture.steered() {
        // Batches of one shape: two rows, with and without edits.
        let mut plain = GenerationBuilder::new(case.to_prompt());
        plain.sampling(sampling.clone());
        plain
            .variant("baseline", Vec::new())
            .variant("other", Vec::new());
        let plain = request::run(client, plain.build()).await;
        let mut beside = GenerationBuilder::new(case.to_prompt());
        let edits = request::interventions(client, case, &mut beside).await;
        beside.sampling(sampling.clone());
        beside
            .variant("baseline", Vec::new())
            .variant("steered", edits);
        let beside = request::run(client, beside.build()).await;
        assert_same(&plain.variants[0], &beside.variants[0]);
        assert_eq!(
            beside.variants[1].token_ids, case.token_ids,
            "{}",
            case.name
        );
        let alone = request::unsteered(case.to_prompt(), sampling.clone());
        let alone = request::run_one(client, alone).await;
        assert_same(&alone, &beside.variants[0]);
    }
    services.stop().await;
}
