//! Feature statistics of the demo, from texts through both services, beside the same computed
//! here from activations that were asked for.

use std::{fs, path::Path};

use serde_json::{Value, json};
use steering_client::{Client, Endpoints, FeatureKey, FeatureSelector, prompt, v1};
use steering_e2e::{
    demo::{Up, demo},
    fixture::path_text,
};
use tokio_stream::iter;

const MAX_TOKENS: u32 = 24;
/// Relative distance from the threshold within which a feature may fire here and not there.
const NEAR: f64 = 1e-3;

/// Sentences of the demo's own topics.
fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for topic in ["ice-hockey", "birds", "space"] {
        let path = demo().join(format!("train/topics/{topic}.txt"));
        let lines = fs::read_to_string(path).expect("a topic");
        let phrases = lines.split(['|', '\n']).map(str::trim);
        let whole = phrases.filter(|p| p.len() > 20 && !p.contains(['/', '{', ':', '=']));
        texts.extend(whole.take(15).map(str::to_owned));
    }
    texts
}

fn write_texts(path: &Path, texts: &[String]) {
    let lines = texts
        .iter()
        .map(|text| json!({ "body": text }).to_string() + "\n");
    fs::write(path, lines.collect::<String>() + "{\"body\": \"\"}\n").expect("file");
}

/// Activations at every token but the special ones, text by text, with the tokens' pieces.
async fn captured(client: &Client, texts: &[String]) -> Vec<Vec<(String, Vec<f64>)>> {
    let config = v1::CaptureConfig {
        hook_name: "blocks.3.hook_resid_post".to_owned(),
        pooling: Some(v1::capture_config::Pooling::PerToken(
            v1::PerTokenPooling {},
        )),
        max_tokens: MAX_TOKENS,
    };
    let sent: Vec<_> = (0..)
        .zip(texts)
        .map(|(id, text)| v1::CaptureText {
            id,
            prompt: Some(prompt::text(text.as_str())),
        })
        .collect();
    let mut stream = client
        .capture_activations(config, iter(sent), 4)
        .await
        .expect("accepted");
    let mut found = Vec::new();
    while let Some(text) = stream.next_in_order().await.expect("goes on") {
        let tokens = client
            .tokenize(prompt::token_ids(text.token_ids))
            .await
            .expect("tokens")
            .tokens;
        let width = text.values.len() / tokens.len();
        let rows = text.values.chunks(width).zip(tokens);
        let rows = rows
            .filter(|(_, token)| !token.special)
            .map(|(row, token)| {
                let row = row.iter().map(|&value| f64::from(value)).collect();
                (token.piece.replace('▁', " "), row)
            });
        found.push(rows.collect());
    }
    found
}

/// f(x) in double precision, and whether x is too near the threshold to tell.
fn activation(feature: &v1::SaeFeature, x: &[f64]) -> (f64, bool) {
    let product: f64 = feature
        .encoder
        .iter()
        .zip(x)
        .map(|(&w, x)| f64::from(w) * x)
        .sum();
    let z = product + f64::from(feature.encoder_bias);
    let Some(v1::sae_feature::Activation::JumpRelu(v1::JumpReluActivation { threshold })) =
        feature.activation
    else {
        panic!("the demo's SAE is a JumpReLU");
    };
    let threshold = f64::from(threshold);
    let f = if z > threshold { z.max(0.0) } else { 0.0 };
    (f, (z - threshold).abs() < NEAR * threshold.max(1.0))
}

/// Checks one feature; whether it could be checked.
fn check(
    own: &v1::SaeFeature,
    found: &v1::FeatureStatistics,
    texts: &[Vec<(String, Vec<f64>)>],
) -> bool {
    let (mut all, mut strongest, mut count) = (Vec::new(), Vec::new(), 0);
    for text in texts {
        let mut best: Option<(f64, &str)> = None;
        for (piece, x) in text {
            count += 1;
            let (f, near) = activation(own, x);
            if near {
                return false;
            }
            if f > 0.0 {
                all.push(f);
                if best.is_none_or(|(most, _)| f > most) {
                    best = Some((f, piece));
                }
            }
        }
        strongest.extend(best);
    }
    assert_eq!(
        found.active_count,
        all.len() as u64,
        "#{}",
        own.feature_index
    );
    assert!((found.density - all.len() as f64 / f64::from(count)).abs() < 1e-12);
    if all.is_empty() {
        assert_eq!((found.max_activation, found.top_contexts.len()), (0.0, 0));
        return true;
    }
    all.sort_by(f64::total_cmp);
    let close = |own: f32, expected: f64, share: f64| {
        assert!(
            (f64::from(own) / expected - 1.0).abs() <= share,
            "{own} {expected}"
        );
    };
    close(found.max_activation, all[all.len() - 1], 1e-4);
    close(
        found.mean_activation,
        all.iter().sum::<f64>() / all.len() as f64,
        1e-4,
    );
    let percentile = |share: f64| all[(share * all.len() as f64).ceil() as usize - 1];
    close(found.p50_activation, percentile(0.5), 0.0201);
    close(found.p90_activation, percentile(0.9), 0.0201);
    close(found.p99_activation, percentile(0.99), 0.0201);
    strongest.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert_eq!(found.top_contexts.len(), strongest.len().min(5));
    for (context, (f, _)) in found.top_contexts.iter().zip(&strongest) {
        close(context.activation, *f, 1e-4);
    }
    // Where the strongest is clearly so, it is the same token.
    if strongest
        .get(1)
        .is_none_or(|second| second.0 < 0.999 * strongest[0].0)
    {
        assert_eq!(found.top_contexts[0].token, strongest[0].1);
    }
    true
}

#[tokio::test]
async fn statistics_of_the_demo_are_those_of_its_activations() {
    let up = Up::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("texts.jsonl");
    let texts = texts();
    write_texts(&file, &texts);
    let file = path_text(&file);
    let tokens = MAX_TOKENS.to_string();
    let args = [
        "features",
        "stats",
        &file,
        "--text",
        "body",
        "--max-tokens",
        &tokens,
    ];
    let computed = up.json(&args).await;
    let version = &computed["version"];
    assert_eq!(
        (&version["text_count"], &version["dropped_count"]),
        (&json!(45), &json!(1))
    );
    assert_eq!(version["source"]["origin"], "texts.jsonl");
    assert_eq!(version["source"]["max_tokens"], MAX_TOKENS);
    // The same texts give the same version, bit for bit.
    let again = up.json(&args).await;
    assert_eq!(again["version"]["digest"], version["digest"]);
    let versions = up.json(&["features", "stats"]).await;
    assert_eq!(versions["versions"].as_array().map(Vec::len), Some(1));

    let client = Client::connect(&Endpoints {
        worker: up.worker.clone(),
        registry: up.registry.clone(),
    });
    let client = client.expect("URLs");
    let rows = captured(&client, &texts).await;
    let counted: usize = rows.iter().map(Vec::len).sum();
    assert_eq!(version["token_count"], json!(counted));
    let mut checked = 0;
    for first in (0..512).step_by(128) {
        let select = |index| FeatureSelector {
            sae: None,
            key: FeatureKey::Index(index),
        };
        let refs = (first..first + 128)
            .map(|index| select(index).to_ref(None))
            .collect();
        let features = client
            .get_features_with_statistics(refs)
            .await
            .expect("features");
        for (feature, statistics) in &features {
            checked += usize::from(check(feature, statistics, &rows));
        }
    }
    assert!(checked > 400, "{checked}");
    used_and_shown(&up, "ice-hockey").await;
    up.stop().await;
}

/// A strength of the maximum is one of the measured maximum, which is shown.
async fn used_and_shown(up: &Up, label: &str) {
    let shown = up.json(&["features", "show", label]).await;
    let statistics = &shown["statistics"];
    let max = statistics["max_activation"].as_f64().expect("a number");
    assert_eq!(shown["feature"]["max_activation"].as_f64(), Some(max));
    let stated = shown["labels"][0]["max_activation"]
        .as_f64()
        .expect("a number");
    assert!(stated != max, "the label's source saw other texts");
    let contexts = statistics["top_contexts"].as_array().expect("contexts");
    assert!((1..=5).contains(&contexts.len()));
    assert_eq!(contexts[0]["activation"].as_f64(), Some(max));
    assert_eq!(shown["logits"]["top"].as_array().map(Vec::len), Some(8));
    assert_eq!(statistics["version"]["source"]["origin"], "texts.jsonl");

    let generate = async |amount: &str| {
        let feature = format!("{label}={amount}");
        let args = [
            "generate",
            "Write a haiku.",
            "--greedy",
            "--max-new-tokens",
            "8",
        ];
        let document = up
            .json(&[&args[..], &["--feature", &feature]].concat())
            .await;
        document["variants"][0]["logprobs"].clone()
    };
    let half: Value = generate("0.5max").await;
    assert_eq!(half, generate(&(0.5 * max as f32).to_string()).await);
    assert_ne!(half, generate(&(0.5 * stated as f32).to_string()).await);
}
