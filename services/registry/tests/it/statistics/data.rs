//! Texts with activations, and calls about their statistics.

use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use steering_proto::v1::{self, compute_feature_statistics_request::Message};
use tokio_stream::iter;
use tonic::Status;

use crate::harness::{MODEL, Server, import_with, options};

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/sae_formats")
}

/// Imports a fixture's SAE of 40 features, 20 wide, under its folder's name.
pub(super) async fn import(server: &mut Server, folder: &str) {
    let expected = std::fs::read(formats().join(folder).join("expected.json")).expect("expected");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    let mut options = options(folder);
    if expected["hook_name"].is_string() {
        // These files name both.
        (options.hook_name, options.model_id) = (String::new(), String::new());
    }
    let path = expected["path"].as_str().expect("a path");
    let path = formats().join(folder).join(path);
    let sae = import_with(&mut server.client, &path, options)
        .await
        .expect(folder);
    assert_eq!((sae.d_in, sae.d_sae), (20, 40));
}

/// A text's tokens, and an activation at each.
#[derive(Clone)]
pub(crate) struct Text {
    pub(crate) tokens: Vec<v1::TextToken>,
    pub(crate) rows: Vec<Vec<f32>>,
}

/// Texts of 1 to 30 random tokens, behind a special one of large activation.
pub(super) fn texts(seed: u64, count: usize) -> Vec<Text> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let text = |_| {
        let len = rng.random_range(2..=31);
        let mut row = |i: usize| {
            let scale = if i == 0 {
                100.0
            } else {
                rng.random_range(0.5_f32..6.0)
            };
            (0..20)
                .map(|_| scale * rng.random_range(-1.0_f32..1.0))
                .collect()
        };
        let rows: Vec<Vec<f32>> = (0..len).map(&mut row).collect();
        let token = |i| v1::TextToken {
            text: if i == 0 {
                "<bos>".to_owned()
            } else {
                format!(" w{}", rng.random_range(0..500))
            },
            special: i == 0,
        };
        Text {
            tokens: (0..len).map(token).collect(),
            rows,
        }
    };
    (0..count).map(text).collect()
}

pub(crate) fn config(sae_id: &str) -> v1::FeatureStatisticsConfig {
    v1::FeatureStatisticsConfig {
        sae_id: sae_id.to_owned(),
        source: Some(v1::CorpusSource {
            origin: "posts.jsonl".to_owned(),
            data_digest: "d".repeat(64),
            model_id: MODEL.to_owned(),
            model_digest: "m".repeat(64),
            max_tokens: 32,
        }),
        include_special_tokens: false,
    }
}

/// The messages of a computation; rows come a few at a time.
pub(crate) fn messages(config: v1::FeatureStatisticsConfig, texts: &[Text]) -> Vec<Message> {
    let mut messages = vec![Message::Config(config)];
    for text in texts {
        let tokens = text.tokens.clone();
        messages.push(Message::Text(v1::TextTokens { tokens }));
        for rows in text.rows.chunks(7) {
            let values = rows.concat();
            messages.push(Message::Rows(v1::ActivationRows { values }));
        }
    }
    messages.push(Message::End(v1::FeatureStatisticsEnd {
        text_count: texts.len() as u64,
        dropped_count: 3,
    }));
    messages
}

pub(super) fn request(message: Message) -> v1::ComputeFeatureStatisticsRequest {
    v1::ComputeFeatureStatisticsRequest {
        message: Some(message),
    }
}

pub(crate) async fn compute(
    server: &Server,
    messages: Vec<Message>,
) -> Result<v1::FeatureStatisticsVersion, Status> {
    let mut client = server.client.clone();
    let messages: Vec<_> = messages.into_iter().map(request).collect();
    let response = client.compute_feature_statistics(iter(messages)).await?;
    Ok(response.into_inner().version.expect("a version"))
}

pub(super) async fn listed(
    server: &Server,
    sae_id: &str,
    digest: &str,
) -> Vec<v1::FeatureStatistics> {
    let mut client = server.client.clone();
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListFeatureStatisticsRequest {
            sae_id: sae_id.to_owned(),
            digest: digest.to_owned(),
            page_size: 7,
            page_token,
        };
        let page = client
            .list_feature_statistics(request)
            .await
            .expect("page")
            .into_inner();
        found.extend(page.statistics);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

pub(crate) async fn versions(server: &Server, sae_id: &str) -> Vec<v1::FeatureStatisticsVersion> {
    let request = v1::ListFeatureStatisticsVersionsRequest {
        sae_id: sae_id.to_owned(),
        ..Default::default()
    };
    let mut client = server.client.clone();
    let listed = client.list_feature_statistics_versions(request).await;
    listed.expect("versions").into_inner().versions
}

/// Activations of each feature at the tokens that count: the text, the token, the activation.
pub(super) async fn encoded(
    server: &Server,
    sae_id: &str,
    texts: &[Text],
) -> Vec<Vec<(usize, usize, f32)>> {
    let mut found = vec![Vec::new(); 40];
    for (text_number, text) in texts.iter().enumerate() {
        let request = v1::EncodeActivationsRequest {
            sae_id: sae_id.to_owned(),
            values: text.rows[1..].concat(),
            top_k: 40,
        };
        let encoded = server.client.clone().encode_activations(request).await;
        for (i, row) in encoded
            .expect("encoded")
            .into_inner()
            .rows
            .iter()
            .enumerate()
        {
            for feature in &row.features {
                let place = (text_number, i + 1, feature.activation);
                found[feature.feature_index as usize].push(place);
            }
        }
    }
    found
}
