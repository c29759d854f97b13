//! `steer sweep`: the requests it makes, what it measures, what it draws.

use serde_json::json;
use steering_client::v1::{
    feature_edit::Operation, intervention::Edit, prompt::Content, readout::Source,
    score_text_request::Continuation,
};

use crate::{
    mock::{Mock, lock},
    mock_registry::{BASEBALL, feature},
    mock_worker::VARIANTS_MAX,
};

const SWEEP: [&str; 8] = [
    "sweep",
    "hi",
    "--feature",
    "baseball",
    "--to",
    "100",
    "--step",
    "25",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SWEEP.iter().chain(more).copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn strengths_are_variants_of_as_few_requests_as_the_limit_allows() {
    let mock = Mock::start().await;
    let run = mock.steer(&SWEEP).await;
    run.ok();
    assert!(
        run.stderr
            .contains("6 variants, at most 4 a request: 2 requests")
    );
    let requests = lock(&mock.worker.requests).clone();
    let names = |i: usize| -> Vec<&str> {
        requests[i]
            .variants
            .iter()
            .map(|v| v.name.as_str())
            .collect()
    };
    assert_eq!(names(0), ["baseline", "0", "25", "50"]);
    assert_eq!(names(0).len(), VARIANTS_MAX as usize);
    assert_eq!(names(1), ["75", "100"]);
    // The payload is sent once; the first request's seed holds for all.
    assert_eq!(requests[1].features, [feature(BASEBALL)]);
    assert_eq!(
        requests[1].sampling.as_ref().and_then(|s| s.seed),
        Some(4242)
    );
    assert!(requests[0].variants[0].interventions.is_empty());
    let edit = requests[1].variants[1].interventions[0].edit.clone();
    let Some(Edit::Feature(edit)) = edit else {
        panic!("{edit:?} is no feature edit");
    };
    assert_eq!(edit.operation, Some(Operation::Set(100.0)));
    // The swept feature is its own probe.
    let probe = &requests[0].probes[0];
    assert_eq!(probe.name, "baseball");
    let source = probe.readout.clone().and_then(|readout| readout.source);
    assert_eq!(source, Some(Source::Feature(0)));
    assert_eq!(lock(&mock.registry.feature_refs).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_texts_are_scored_once_and_unsteered() {
    let mock = Mock::start().await;
    mock.steer(&with(&["--priority", "batch"])).await.ok();
    let scored = lock(&mock.worker.scored).clone();
    assert_eq!(scored.len(), 1, "every mock text is the same");
    let request = &scored[0];
    assert!(request.variants[0].interventions.is_empty());
    assert_eq!(request.variants.len(), 1);
    assert_eq!(request.priority(), steering_client::v1::Priority::Batch);
    let prompt = request.prompt.clone().and_then(|prompt| prompt.content);
    let Some(Content::TokenIds(ids)) = prompt else {
        panic!("{prompt:?} is not token ids");
    };
    assert_eq!(ids.ids, [2, 5, 7]);
    let Some(Continuation::TokenIds(ids)) = &request.continuation else {
        panic!("{request:?} scores no token ids");
    };
    assert_eq!(ids.ids, [10, 11, 12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_and_the_document() {
    let mock = Mock::start().await;
    let run = mock.steer(&SWEEP).await;
    let lines: Vec<Vec<&str>> = run
        .ok()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let heading = [
        "strength",
        "baseball",
        "perplexity",
        "repetition",
        "tokens",
        "text",
    ];
    assert_eq!(lines[0], heading);
    assert_eq!(lines[1], ["baseline", "10", "1.5", "0", "3", "Hello", "é!"]);
    assert_eq!(lines[2], ["0", "11", "1.5", "0", "3", "Hello", "é!"]);
    assert_eq!(lines.len(), 7);
    let document = mock.steer(&with(&["--seed", "7", "--json"])).await.json();
    assert_eq!(document["seed"], 7);
    assert_eq!(document["swept"], "baseball");
    assert_eq!(document["points"][0]["strength"], json!(null));
    let last = &document["points"][5];
    assert_eq!(last["strength"], 100.0);
    assert_eq!(last["probe_means"], json!([11.0]));
    assert_eq!(last["perplexity"], 1.5);
    assert_eq!(last["repetition"], 0.0);
    assert_eq!(last["name"], "100");
    assert_eq!(last["interventions"][0]["payload_name"], "baseball");
    assert_eq!(document["warnings"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_survive_a_worker_that_cannot_score() {
    let mock = Mock::start().await;
    *lock(&mock.worker.scores_nothing) = true;
    let run = mock.steer(&with(&["--json"])).await;
    assert_eq!(run.json()["points"][1]["perplexity"], json!(null));
    assert!(
        run.stderr.contains("warning: no perplexities: no scores"),
        "{run:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_one_file() {
    let mock = Mock::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.html");
    let path = path.to_str().expect("UTF-8");
    let args = ["sweep", "a <b>", "--cav", "one", "--to", "4", "--step", "2"];
    let args: Vec<&str> = args.into_iter().chain(["--plot", path]).collect();
    mock.steer(&args).await.ok();
    let html = std::fs::read_to_string(path).expect("the chart");
    assert!(html.contains("a &lt;b&gt;") && html.contains("cav:one"));
    assert_eq!(html.matches("class=\"stop\"").count(), 3);
    assert_eq!(html.matches("<tr id=").count(), 4);
    let absent = folder.path().join("absent/out.html");
    let absent = absent.to_str().expect("UTF-8");
    mock.steer(&with(&["--plot", absent]))
        .await
        .fails(1, &["its folder does not exist", "mkdir -p"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_usage() {
    let mock = Mock::start().await;
    mock.steer(&["sweep", "hi"]).await.fails(2, &["--feature"]);
    mock.steer(&["sweep", "hi", "--feature", "nba", "--cav", "one"])
        .await
        .fails(2, &["cannot be used with"]);
    mock.steer(&["sweep", "hi", "--cav", "one", "--from", "-1", "--to", "-2"])
        .await
        .fails(1, &["--to -2 is below --from -1"]);
    mock.steer(&["sweep", "hi", "--cav", "one", "--step", "0"])
        .await
        .fails(1, &["--step is above 0"]);
}
