//! Concepts and features through the real `steer` binary and both services: CAVs trained
//! from texts, a text inspected, similar features.

use std::path::Path;

use serde_json::{Value, json};
use steering_client::{prompt, v1};
use steering_e2e::{
    Fixture, Services, WorkerOptions,
    binaries::steer,
    fixture::{SAE, path_text},
};
use tokio_stream::iter;

const HOOK: &str = "blocks.1.hook_resid_post";
const PER_LABEL: usize = 12;

async fn start() -> (Fixture, Services) {
    let fixture = Fixture::load("gemma2");
    let services = Services::with_imports(&fixture, WorkerOptions::default()).await;
    (fixture, services)
}

async fn run(services: &Services, args: &[&str]) -> Value {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    steer(services, &args).await
}

/// Texts of two labels that share no words, and two that have too few tokens.
fn texts() -> Vec<(String, &'static str)> {
    let words = [
        ("sport", ["goal", "ball", "team", "win", "game"]),
        ("space", ["moon", "star", "orbit", "sky", "rocket"]),
    ];
    let mut texts = Vec::new();
    for (label, words) in words {
        for i in 0..PER_LABEL {
            let text = (0..6).map(|j| words[(i * 7 + j * j + i / 5) % words.len()]);
            texts.push((
                text.collect::<Vec<_>>().join(" ") + &"!".repeat(i % 3),
                label,
            ));
        }
    }
    texts.push((String::new(), "sport"));
    texts.push(("a".to_owned(), "space"));
    texts
}

fn write_texts(path: &Path) {
    let lines = texts()
        .into_iter()
        .map(|(text, label)| json!({"text": text, "label_text": label}).to_string() + "\n");
    std::fs::write(path, lines.collect::<String>()).expect("file");
}

fn train<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = [
        "cavs",
        "train",
        file,
        "--hook",
        HOOK,
        "--max-tokens",
        "24",
        "--skip-tokens",
        "3",
    ];
    [&args[..], more].concat()
}

/// Mean activations of the texts that are long enough, asked for over gRPC.
async fn means(services: &Services) -> Vec<(Vec<f64>, &'static str)> {
    let config = v1::CaptureConfig {
        hook_name: HOOK.to_owned(),
        pooling: Some(v1::capture_config::Pooling::Mean(v1::MeanPooling {
            skip_tokens: 3,
        })),
        max_tokens: 24,
    };
    let texts: Vec<_> = texts()
        .into_iter()
        .filter(|(text, _)| text.len() > 1)
        .collect();
    let sent: Vec<_> = (0..)
        .zip(&texts)
        .map(|(id, (text, _))| v1::CaptureText {
            id,
            prompt: Some(prompt::text(text.as_str())),
        })
        .collect();
    let stream = services
        .client
        .capture_activations(config, iter(sent), 4)
        .await;
    let mut stream = stream.expect("accepted");
    let mut means = Vec::new();
    while let Some(text) = stream.next().await.expect("goes on") {
        let values = text.values.into_iter().map(f64::from).collect();
        means.push((values, texts[text.id as usize].1));
    }
    means
}

fn unit(x: &[f64]) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter().map(|x| x / norm).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cavs_are_trained_from_texts_resumed_and_used() {
    let (_, services) = start().await;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("texts.jsonl");
    write_texts(&file);
    let file = path_text(&file);
    let first = run(&services, &train(&file, &[])).await;
    assert_eq!(
        (&first["text_count"], &first["dropped_count"]),
        (&json!(26), &json!(2))
    );
    let names: Vec<_> = first["cavs"]
        .as_array()
        .expect("CAVs")
        .iter()
        .map(|cav| &cav["name"])
        .collect();
    assert_eq!(names, ["space", "sport"]);
    let training = &first["cavs"][0]["training"];
    assert_eq!(training["method"], "svm");
    assert_eq!(training["positive_count"], json!(PER_LABEL));
    assert_eq!(training["source"]["origin"], "texts.jsonl");
    assert_eq!(training["source"]["dropped_count"], json!(2));
    assert_eq!(
        training["auc"]["value"],
        json!(1.0),
        "the labels share no words"
    );

    // Cut off in the middle of a line: the rest is read again, to the same result.
    let work = first["work_file"].as_str().expect("a work file");
    let bytes = std::fs::read(work).expect("work file");
    std::fs::write(work, &bytes[..bytes.len() / 2]).expect("work file");
    let again = run(&services, &train(&file, &[])).await;
    assert_eq!(again["cavs"][0]["digest"], first["cavs"][0]["digest"]);

    let means = means(&services).await;
    run(&services, &train(&file, &["--method", "mean-difference"])).await;
    let shown = run(&services, &["cavs", "show", "space", "--vectors"]).await;
    assert_eq!(shown["cav"]["training"]["method"], "mean-difference");
    let values = shown["cav"]["directions"][0]["values"]
        .as_array()
        .expect("values");
    let mean = |label: &str, i: usize| {
        let own: Vec<f64> = means
            .iter()
            .filter(|(_, l)| *l == label)
            .map(|(x, _)| x[i])
            .collect();
        own.iter().sum::<f64>() / own.len() as f64
    };
    let difference: Vec<f64> = (0..values.len())
        .map(|i| mean("space", i) - mean("sport", i))
        .collect();
    for (value, expected) in values.iter().zip(unit(&difference)) {
        assert!((value.as_f64().expect("number") - expected).abs() < 1e-4);
    }
    let generated = run(
        &services,
        &[
            "generate",
            "x",
            "--raw",
            "--cav",
            "space=30",
            "--max-new-tokens",
            "2",
        ],
    )
    .await;
    let report = &generated["variants"][0]["interventions"][0];
    assert_eq!(report["payload_name"], "space");
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_inspected_and_its_features_have_neighbours() {
    let (fixture, services) = start().await;
    let folder = tempfile::tempdir().expect("folder");
    let picture = path_text(&folder.path().join("picture.html"));
    let text = "the goal of the game";
    let inspected = run(
        &services,
        &["inspect", text, "--top", "1000", "--html", &picture],
    )
    .await;
    assert_eq!(inspected["sae_id"], SAE);
    assert_eq!(inspected["hook_name"], json!(fixture.cases.sae.hook));
    let tokens = inspected["tokens"].as_array().expect("tokens");
    let page = std::fs::read_to_string(&picture).expect("picture");
    assert!(page.starts_with("<!doctype html>") && page.contains("</html>"));

    // What a probe of the worker reads of a feature is what the registry encodes.
    let strongest = &tokens.last().expect("a token")["features"][0];
    let index = strongest["feature_index"].as_u64().expect("one fires");
    let probe = format!("#{index}");
    let generated = [
        "generate",
        text,
        "--raw",
        "--probe",
        &probe,
        "--max-new-tokens",
        "1",
    ];
    let generated = run(&services, &generated).await;
    let readings = generated["variants"][0]["readings"]
        .as_array()
        .expect("readings");
    assert!(!readings.is_empty(), "the last prompt token is read");
    for reading in readings {
        let position = reading["position"].as_u64().expect("a position");
        let token = &tokens[position as usize];
        let read = reading["before"][0].as_f64().expect("number");
        let own = token["features"]
            .as_array()
            .expect("features")
            .iter()
            .find(|f| f["feature_index"] == index);
        let encoded = own.map_or(0.0, |f| f["activation"].as_f64().expect("number"));
        assert!(
            (read - encoded).abs() <= 1e-4 * (1.0 + read.abs()),
            "{read} {encoded}"
        );
    }

    let found = run(&services, &["features", "similar", &probe, "--top", "5"]).await;
    let features = found["features"].as_array().expect("features");
    assert_eq!(features.len(), 5);
    assert!(
        features.iter().all(|f| f["feature_index"] != index),
        "not itself"
    );
    let cav = run(&services, &["cavs", "list"]).await["cavs"][0]["name"].clone();
    let cav = format!("cav:{}", cav.as_str().expect("a name"));
    let found = run(&services, &["features", "similar", &cav, "--top", "2"]).await;
    assert_eq!(found["features"].as_array().map(Vec::len), Some(2));
    services.stop().await;
}
