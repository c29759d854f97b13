//! `steer score`, `steer project`, and the library's captures.

use futures::stream;
use serde_json::json;
use steering_client::{Client, Endpoints, prompt, v1};

use crate::{
    mock::{Mock, lock},
    mock_registry::{BASEBALL, cav, feature},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_is_scored_unsteered_and_steered() {
    let mock = Mock::start().await;
    let args = ["score", "a", "-b", "--raw", "--feature", "nba=3"];
    let run = mock.steer(&args).await;
    let lines: Vec<Vec<&str>> = run
        .ok()
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["token", "piece", "baseline", "steered"]);
    assert_eq!(lines[1], ["10", "<bos>", "-0.5", "-0.5"]);
    assert_eq!(lines[3], ["perplexity", "1.5", "1.5"]);
    let request = lock(&mock.worker.scored)[0].clone();
    assert_eq!(request.features, [feature(BASEBALL)]);
    let counts: Vec<usize> = request
        .variants
        .iter()
        .map(|v| v.interventions.len())
        .collect();
    assert_eq!(counts, [0, 1]);
    let text = v1::score_text_request::Continuation::Text("-b".to_owned());
    assert_eq!(request.continuation, Some(text));
    let document = mock.steer(&["score", "a", "b", "--json"]).await.json();
    assert_eq!(
        document["variants"],
        json!([{"name": "baseline", "logprobs": [-0.5, -0.5], "perplexity": 1.5,
                "interventions": []}])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_is_projected() {
    let mock = Mock::start().await;
    let document = mock
        .steer(&["project", "nba", "--top", "3", "--json"])
        .await
        .json();
    let expected = json!({
        "direction": "nba",
        "hook_name": "blocks.1.hook_resid_post",
        "top": [{"token_id": 7, "text": " ball", "logit": 2.5}],
        "bottom": [{"token_id": 9, "text": " sea", "logit": -1.5}],
    });
    assert_eq!(document, expected);
    let run = mock
        .steer(&["project", "cav:two", "--hook", "blocks.0.hook_resid_post"])
        .await;
    assert!(run.ok().contains("\" ball\""));
    let requests = lock(&mock.worker.projected).clone();
    let values = |i: usize| requests[i].vector.clone().map(|vector| vector.values);
    assert_eq!(values(0), Some(feature(BASEBALL).decoder));
    assert_eq!(
        values(1),
        cav("two").directions[0].vector.clone().map(|v| v.values)
    );
    assert_eq!(requests[0].top_k, 3);
    mock.steer(&["project", "cav:two"])
        .await
        .fails(1, &["--hook"]);
    mock.steer(&["project", "nba", "--top", "0"])
        .await
        .fails(2, &["1..=1000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_answered_text_by_text() {
    let mock = Mock::start().await;
    let client = Client::connect(&Endpoints {
        worker: mock.worker_url(),
        ..Endpoints::default()
    })
    .expect("a URL");
    let text = |id| v1::CaptureText {
        id,
        prompt: Some(prompt::text("a")),
    };
    // More texts than may be under way at once.
    let texts = stream::iter((0..20).map(text));
    let config = v1::CaptureConfig::default();
    let mut captured = client
        .capture_activations(config, texts, 3)
        .await
        .expect("a stream");
    let mut ids = Vec::new();
    while let Some(text) = captured.next().await.expect("an answer") {
        assert_eq!(text.values, [text.id as f32]);
        ids.push(text.id);
    }
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    assert!(captured.summary().is_some());
}
