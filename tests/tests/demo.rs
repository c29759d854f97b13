//! The demo: its model is the reference's, and what a newcomer sees is steering.

use std::{collections::HashSet, fs, path::Path, time::Instant};

use serde::Deserialize;
use serde_json::Value;
use steering_e2e::demo::{PATIENCE, Up, demo, steer};
use tokio::time::timeout;

/// demo/reference.json: greedy tokens of transformers with the notebook's hooks.
#[derive(Deserialize)]
struct Reference {
    feature: Feature,
    cav: Cav,
    new_tokens: u32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Feature {
    label: String,
    index: u32,
    value: f32,
}

#[derive(Deserialize)]
struct Cav {
    label: String,
    strength: f32,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    prompt: String,
    prompt_ids: Vec<u32>,
    tokens: Tokens,
}

#[derive(Deserialize)]
struct Tokens {
    baseline: Vec<u32>,
    feature: Vec<u32>,
    cav: Vec<u32>,
}

#[tokio::test]
async fn greedy_tokens_are_the_references() {
    let text = fs::read_to_string(demo().join("reference.json")).expect("reference");
    let reference: Reference = serde_json::from_str(&text).expect("its form");
    let up = Up::start().await;
    let Feature {
        label,
        index,
        value,
    } = &reference.feature;
    // By index: the reference's feature need not have passed its gate.
    let feature = format!("#{index}={value}");
    let cav = format!("{}={}", reference.cav.label, reference.cav.strength);
    let limit = reference.new_tokens.to_string();
    for case in &reference.cases {
        let opening: &[&str] = match case.kind.as_str() {
            "raw" => &["--raw"],
            "chat_with_generation_prompt" => &["--add-generation-prompt"],
            "chat" => &[],
            other => panic!("unknown kind {other}"),
        };
        let edits: [(&[&str], &[u32]); 3] = [
            (&[], &case.tokens.baseline),
            (&["--feature", &feature], &case.tokens.feature),
            (&["--cav", &cav], &case.tokens.cav),
        ];
        for (edit, expected) in edits {
            // The reference's repetition penalty and end-of-sequence are off.
            let mut args = vec!["generate", &case.prompt, "--greedy", "--ignore-eos"];
            args.extend(["--repetition-penalty", "1", "--max-new-tokens", &limit]);
            args.extend(opening.iter().chain(edit));
            let document = up.json(&args).await;
            let ids: Vec<u32> =
                serde_json::from_value(document["prompt_token_ids"].clone()).expect("ids");
            assert_eq!(ids, case.prompt_ids, "{}", case.kind);
            let tokens: Vec<u32> =
                serde_json::from_value(document["variants"][0]["token_ids"].clone()).expect("ids");
            assert_eq!(tokens, expected, "{} {edit:?} ({label})", case.kind);
        }
    }
    up.stop().await;
}

/// Words of a topic's own text that no other topic and no neutral text has.
fn own_words(topic: &str) -> HashSet<String> {
    let train = demo().join("train");
    let topics = fs::read_dir(train.join("topics")).expect("topics");
    let (mut own, mut others) = (HashSet::new(), words_of(&train.join("neutral.txt")));
    for entry in topics {
        let path = entry.expect("entry").path();
        let stem = path.file_stem().expect("name").to_string_lossy();
        if stem == topic {
            own = words_of(&path);
        } else {
            others.extend(words_of(&path));
        }
    }
    assert!(!own.is_empty(), "demo/train has no topic {topic}");
    &own - &others
}

fn words_of(path: &Path) -> HashSet<String> {
    words(&fs::read_to_string(path).expect("text")).collect()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

#[tokio::test]
async fn the_demo_ends_well_and_turns_the_topic() {
    let manifest = fs::read_to_string(demo().join("demo.json")).expect("demo.json");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let started = Instant::now();
    let output = timeout(PATIENCE, steer().args(["demo", "--json"]).output()).await;
    let output = output.expect("in time").expect("steer demo");
    println!("steer demo took {:?}", started.elapsed());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    let text = |variant: usize| {
        document["variants"][variant]["text"]
            .as_str()
            .expect("text")
    };
    for (variant, edit) in [(1, "feature"), (2, "cav")] {
        let edit = manifest["show"][edit].as_str().expect("an edit");
        let topic = edit.split('=').next().expect("a name");
        let own = own_words(topic);
        let of_topic = |text: &str| words(text).filter(|word| own.contains(word)).count();
        let (baseline, steered) = (text(0), text(variant));
        assert_ne!(baseline, steered);
        assert_eq!(of_topic(baseline), 0, "{topic}: {baseline}");
        assert!(of_topic(steered) >= 2, "{topic}: {steered}");
        let report = &document["variants"][variant]["interventions"][0];
        assert!(report["positions_changed"].as_u64() > Some(0), "{report}");
    }
}

#[tokio::test]
async fn people_are_shown_all_three_and_what_to_try_next() {
    let output = steer().arg("demo").output().await.expect("steer demo");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    for expected in [
        "unsteered",
        "--feature ",
        "--cav ",
        "what was done",
        "up --demo",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    let nowhere = steer().args(["demo", "--demo-dir", "/nowhere"]).output();
    let nowhere = nowhere.await.expect("steer demo");
    assert_eq!(nowhere.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&nowhere.stderr);
    assert!(stderr.contains("/nowhere/demo.json"), "{stderr}");
}
