//! The demo: its model is the reference's, and what a newcomer sees is steering.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use steering_e2e::binaries::binary;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

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

fn steer() -> Command {
    let mut steer = Command::new(binary("steer"));
    steer
        .env("STEER_DEMO_DIR", demo())
        .env_remove("STEER_WORKER_MODEL")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    steer
}

/// `steer up --demo` on free ports.
struct Up {
    child: Child,
    worker: String,
    registry: String,
}

impl Up {
    async fn start() -> Self {
        let mut child = steer()
            .args(["up", "--demo", "--json", "--dtype", "f32"])
            .args(["--worker-listen", "127.0.0.1:0"])
            .args(["--registry-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("steer up");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.as_mut().expect("piped"));
        let read = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        read.expect("ready in time").expect("read");
        let ready: Value = serde_json::from_str(&line).expect("a document");
        let url = |name: &str| ready[name]["url"].as_str().expect("a URL").to_owned();
        Self {
            worker: url("worker"),
            registry: url("registry"),
            child,
        }
    }

    /// As Ctrl-C does: killed outright, it would leave its services behind.
    async fn stop(mut self) {
        let id = self.child.id().expect("it runs").to_string();
        let told = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(told.expect("kill").success());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("stops in time").expect("waited for");
        assert_eq!(status.code(), Some(0));
    }

    async fn json(&self, args: &[&str]) -> Value {
        let output = steer()
            .args(args)
            .args(["--json", "--worker", &self.worker])
            .args(["--registry", &self.registry])
            .output()
            .await
            .expect("steer runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "steer {args:?}: {stderr}");
        serde_json::from_slice(&output.stdout).expect("one document")
    }
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
