//! `steer status`, with both services up and with one down.

use crate::mock::{Mock, dead_url};

#[tokio::test(flavor = "multi_thread")]
async fn both_up() {
    let mock = Mock::start().await;
    let status = mock.steer(&["status", "--json"]).await.json();
    assert_eq!(status["worker"]["health"], "serving");
    assert_eq!(status["worker"]["model_id"], "mock-model");
    assert_eq!(status["worker"]["hook_points"][0]["width"], 4);
    assert_eq!(status["registry"]["sae_count"], 1);
    assert_eq!(status["registry"]["label_count"], 5);
    assert_eq!(status["registry"]["cav_count"], 3);
    let card = mock.steer(&["status"]).await;
    assert!(
        card.ok().contains("blocks.{L}.hook_resid_post (4)"),
        "{card:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_down() {
    let mock = Mock::start().await;
    let dead = dead_url().await;
    let run = mock.steer(&["status", "--worker", &dead, "--json"]).await;
    run.fails(1, &["not every service is up", "steer up"]);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(status["worker"]["health"], "unreachable");
    assert_eq!(status["registry"]["sae_count"], 1);
    let run = mock.steer(&["status", "--registry", &dead]).await;
    run.fails(1, &["not every service is up"]);
    assert!(run.stdout.contains("mock-model"), "{run:?}");
    assert!(run.stdout.contains("cannot reach the registry"), "{run:?}");
}
