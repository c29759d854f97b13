//! `steer chat` through a pipe: what it sends turn by turn.

use serde_json::json;
use steering_client::{prompt, v1};

use crate::mock::{Mock, lock};

const ANSWER: &str = "Hello é!";

fn conversation(messages: &[(&str, &str)]) -> Option<v1::Prompt> {
    let messages = messages
        .iter()
        .map(|(role, text)| prompt::message(role, *text));
    Some(prompt::chat(messages.collect(), true))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_turn_has_those_before_it() {
    let mock = Mock::start().await;
    let input = "Hi!\n\n//slash\n/reset\nAgain\n";
    let run = mock
        .steer_with_input(&["chat", "--system", "Be brief."], input)
        .await;
    assert_eq!(run.ok(), format!("{ANSWER}\n").repeat(3));
    let requests = lock(&mock.worker.requests).clone();
    let system = ("system", "Be brief.");
    let expected: [&[(&str, &str)]; 3] = [
        &[system, ("user", "Hi!")],
        &[
            system,
            ("user", "Hi!"),
            ("assistant", ANSWER),
            ("user", "/slash"),
        ],
        &[system, ("user", "Again")],
    ];
    assert_eq!(requests.len(), expected.len());
    for (request, expected) in requests.iter().zip(expected) {
        assert_eq!(request.prompt, conversation(expected));
        assert_eq!(request.variants.len(), 1);
        assert_eq!(request.variants[0].name, "baseline");
    }
    // Once, not at every turn.
    assert_eq!(run.stderr.matches("sibling model").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn steering_changes_in_between() {
    let mock = Mock::start().await;
    let input = "one\n/feature nba=1\n/cav two=2\n/steer\ntwo\n/feature nba=3\n/cav one=1\n\
                 three\n/baseline\n/clear\n/seed 9\nfour\n/seed\nfive\n/quit\nnot said\n";
    let args = ["chat", "--feature", "baseball=300", "--seed", "7"];
    let run = mock.steer_with_input(&args, input).await;
    run.ok();
    let requests = lock(&mock.worker.requests).clone();
    let counts: Vec<usize> = requests
        .iter()
        .map(|request| request.variants[0].interventions.len())
        .collect();
    // "two" acts at two hook points; "nba" is another name of "baseball", whose edit it
    // replaces, as it replaces its own later.
    assert_eq!(counts, [1, 3, 4, 0, 0, 0]);
    assert!(
        run.stderr.contains("feature nba:set=1\ncav two:add=2\n"),
        "{run:?}"
    );
    // The baseline answers the same message, and its answer is not gone on from.
    assert_eq!(requests[3].prompt, requests[2].prompt);
    let Some(v1::prompt::Content::Chat(chat)) = requests[4].prompt.clone().and_then(|p| p.content)
    else {
        panic!("no conversation");
    };
    assert_eq!(chat.messages.len(), 7);
    let seed = |request: &v1::GenerateRequest| request.sampling.as_ref().and_then(|s| s.seed);
    let seeds: Vec<_> = requests.iter().map(seed).collect();
    assert_eq!(seeds, [Some(7), Some(7), Some(7), Some(7), Some(9), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_has_every_turn() {
    let mock = Mock::start().await;
    let input = "Hi!\n/baseline\n";
    let args = ["chat", "--feature", "nba=1", "--probe", "nba", "--json"];
    let document = mock.steer_with_input(&args, input).await.json();
    let turns = document["turns"].as_array().expect("turns");
    assert_eq!(turns.len(), 2);
    assert_eq!(turns[0]["user"], "Hi!");
    assert_eq!(turns[0]["baseline"], false);
    assert_eq!(turns[0]["name"], "steered");
    assert_eq!(turns[0]["text"], ANSWER);
    assert_eq!(turns[0]["probes"], json!(["nba"]));
    assert_eq!(turns[0]["readings"][0]["before"], json!([0.0]));
    assert_eq!(turns[1]["baseline"], true);
    assert_eq!(turns[1]["interventions"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_ends_at_its_first_mistake() {
    let mock = Mock::start().await;
    let cases = [
        ("/feature nba\nHi!\n", "has no value"),
        ("/feature absent=1\nHi!\n", "no feature is labelled"),
        ("/shout\nHi!\n", "no command /shout"),
        ("/baseline\nHi!\n", "no message to answer"),
    ];
    for (input, expected) in cases {
        let run = mock.steer_with_input(&["chat"], input).await;
        run.fails(1, &[expected]);
    }
    assert!(lock(&mock.worker.requests).is_empty());
    mock.steer_with_input(&["chat", "--feature", "absent=1"], "Hi!\n")
        .await
        .fails(1, &["no feature is labelled"]);
}
