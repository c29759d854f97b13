//! Whole SAEs read at once: encoded activations and similar features.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use steering_proto::v1;
use tonic::{Code, Status};

use crate::harness::{HOOK, MODEL, Server, by_index, by_label, field, import_with, options};

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/sae_formats")
}

/// Imports a fixture's SAE under its format's name, if it is one that is served.
async fn import(server: &mut Server, folder: &Path) -> Option<(String, Value)> {
    let expected = std::fs::read(folder.join("expected.json")).expect("expected");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    let name = expected["format"].as_str().expect("format").to_owned();
    let mut options = options(&name);
    let stated = |key: &str| expected[key].is_string();
    options.hook_name = if stated("hook_name") { "" } else { HOOK }.to_owned();
    options.model_id = if stated("model_name") { "" } else { MODEL }.to_owned();
    let path = folder.join(expected["path"].as_str().expect("path"));
    let imported = import_with(&mut server.client, &path, options).await;
    imported.ok().map(|_| (name, expected))
}

async fn encode(
    server: &mut Server,
    sae_id: &str,
    values: &[f32],
    top_k: u32,
) -> Result<v1::EncodeActivationsResponse, Status> {
    let request = v1::EncodeActivationsRequest {
        sae_id: sae_id.to_owned(),
        values: values.to_vec(),
        top_k,
    };
    Ok(server
        .client
        .encode_activations(request)
        .await?
        .into_inner())
}

async fn similar(
    server: &mut Server,
    query: v1::find_similar_features_request::Query,
    sae_ids: &[&str],
    top_k: u32,
) -> Result<v1::FindSimilarFeaturesResponse, Status> {
    let request = v1::FindSimilarFeaturesRequest {
        query: Some(query),
        sae_ids: sae_ids.iter().map(ToString::to_string).collect(),
        top_k,
    };
    Ok(server
        .client
        .find_similar_features(request)
        .await?
        .into_inner())
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let (cells, _) = tensors.tensor(name).expect(name).data().as_chunks::<4>();
    cells.iter().map(|cell| f32::from_le_bytes(*cell)).collect()
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[tokio::test]
async fn every_format_encodes_as_its_reference_does() {
    let mut server = Server::start().await;
    let mut served = 0;
    for entry in std::fs::read_dir(formats()).expect("fixtures") {
        let folder = entry.expect("entry").path();
        let Some((name, expected)) = import(&mut server, &folder).await else {
            continue;
        };
        served += 1;
        let bytes = std::fs::read(folder.join("expected.safetensors")).expect("expected");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let (x, f) = (floats(&tensors, "x"), floats(&tensors, "f"));
        let width = tensors.tensor("x").expect("x").shape()[1];
        let d_sae = tensors.tensor("f").expect("f").shape()[1];
        let sure = expected["feature_index"].as_u64().expect("index") as usize;
        let rows = encode(&mut server, &name, &x, 1000)
            .await
            .expect("encoded")
            .rows;
        for ((row, x), f) in rows.iter().zip(x.chunks(width)).zip(f.chunks(d_sae)) {
            let mut dense = vec![0.0; d_sae];
            for feature in &row.features {
                dense[feature.feature_index as usize] = feature.activation;
            }
            let fired = row
                .features
                .windows(2)
                .all(|pair| pair[0].activation >= pair[1].activation);
            assert!(
                fired && row.active_count as usize == row.features.len(),
                "{name}"
            );
            let tolerance = 1e-4 * norm(x).max(1e-3);
            for (i, (actual, expected)) in dense.iter().zip(f).enumerate() {
                // Near a threshold a feature may fall on either side in another order of sums.
                let comparable = i == sure || (*actual > 0.0) == (*expected > 0.0);
                let close = f64::from(actual - expected).abs() <= tolerance;
                assert!(!comparable || close, "{name} f[{i}]: {actual} {expected}");
            }
            let differ = dense
                .iter()
                .zip(f)
                .filter(|(a, e)| (**a > 0.0) != (**e > 0.0))
                .count();
            assert!(differ <= 1, "{name}: {differ} features on the other side");
        }
    }
    assert!(served >= 20, "{served}");
    server.stop().await;
}

#[tokio::test]
async fn the_strongest_few_are_named_and_all_are_counted() {
    let mut server = Server::start().await;
    let folder = formats().join("gemma_scope_npz");
    let (name, _) = import(&mut server, &folder).await.expect("imported");
    let bytes = std::fs::read(folder.join("expected.safetensors")).expect("expected");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let x = floats(&tensors, "x");
    let all = encode(&mut server, &name, &x, 1000)
        .await
        .expect("encoded")
        .rows;
    let strongest = all[0].features[0].clone();
    let label = format!("{{\"strongest\": {}}}", strongest.feature_index);
    server
        .labels(&name, label.as_bytes())
        .await
        .expect("labelled");
    let few = encode(&mut server, "", &x, 3).await.expect("encoded");
    assert_eq!(few.sae_id, name);
    for (few, all) in few.rows.iter().zip(&all) {
        assert_eq!(few.active_count, all.active_count);
        let values = |row: &v1::EncodedActivation| -> Vec<(u32, f32)> {
            row.features
                .iter()
                .take(3)
                .map(|f| (f.feature_index, f.activation))
                .collect()
        };
        assert_eq!(values(few), values(all));
    }
    assert_eq!(few.rows[0].features[0].label, "strongest");
    server.stop().await;
}

#[tokio::test]
async fn neighbours_are_those_of_all_cosines() {
    let mut server = Server::start().await;
    let mut names = Vec::new();
    for format in ["gemma_scope_npz", "saelens_v6_gated"] {
        names.push(
            import(&mut server, &formats().join(format))
                .await
                .expect(format)
                .0,
        );
    }
    let d_sae = 40;
    let mut decoders = Vec::new();
    for name in &names {
        let all = (0..d_sae).map(|i| by_index(name, i)).collect();
        let features = server.features(all).await.expect("features");
        decoders.extend(
            features
                .into_iter()
                .map(|f| (name.clone(), f.feature_index, f.decoder)),
        );
    }
    let query = decoders[7].clone();
    let mut expected: Vec<(f64, String, u32)> = decoders
        .iter()
        .map(|(name, index, row)| {
            let dot: f64 = row
                .iter()
                .zip(&query.2)
                .map(|(a, b)| f64::from(a * b))
                .sum();
            (dot / norm(row) / norm(&query.2), name.clone(), *index)
        })
        .collect();
    expected.sort_by(|a, b| b.0.total_cmp(&a.0));

    use v1::find_similar_features_request::Query;
    let scaled = |scale: f32| {
        Query::Vector(v1::Vector {
            name: String::new(),
            values: query.2.iter().map(|v| v * scale).collect(),
        })
    };
    // Their squares overflow, and vanish.
    for scale in [3.0, 1e25, 1e-30] {
        let found = similar(&mut server, scaled(scale), &[], 15)
            .await
            .expect("found");
        assert_eq!(found.compared_count, 80);
        for (found, (cosine, name, index)) in found.features.iter().zip(&expected) {
            assert!(
                (f64::from(found.cosine) - cosine).abs() < 1e-5,
                "{found:?} {cosine} {scale}"
            );
            assert_eq!((&found.sae_id, found.feature_index), (name, *index));
        }
    }
    let vector = scaled(3.0);
    let twice = [names[0].as_str(), &names[0]];
    let twice = similar(&mut server, vector.clone(), &twice, 50)
        .await
        .expect("found");
    assert_eq!(
        (twice.compared_count, twice.features.len()),
        (40, 40),
        "an SAE named twice is looked through once"
    );
    server
        .labels(&names[0], b"{\"seven\": 7}")
        .await
        .expect("labelled");
    let feature = Query::Feature(by_label(&names[0], "seven"));
    let found = similar(&mut server, feature, &[&names[0]], 1000)
        .await
        .expect("found");
    assert_eq!(
        (found.compared_count, found.features.len()),
        (39, 39),
        "not itself"
    );
    let itself = similar(&mut server, vector, &[&names[0]], 1)
        .await
        .expect("found")
        .features;
    assert_eq!(
        (itself[0].label.as_str(), itself[0].feature_index),
        ("seven", 7)
    );
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_compared_or_encoded_is_refused_by_field() {
    use v1::find_similar_features_request::Query;
    let mut server = Server::start().await;
    let (name, _) = import(&mut server, &formats().join("gemma_scope_npz"))
        .await
        .expect("imported");
    let vector = |values: &[f32]| {
        Query::Vector(v1::Vector {
            name: String::new(),
            values: values.to_vec(),
        })
    };
    let cases = [
        (vector(&[0.0; 20]), vec![], 0, "vector"),
        (vector(&[]), vec![], 0, "vector.values"),
        (vector(&[1.0; 3]), vec![], 0, "query"),
        (vector(&[1.0; 3]), vec![name.as_str()], 0, "sae_ids[0]"),
        (vector(&[1.0; 20]), vec![], 1001, "top_k"),
        (vector(&[1.0; 20]), vec![name.as_str(); 65], 0, "sae_ids"),
        (
            Query::Feature(by_index(&name, 40)),
            vec![],
            0,
            "feature.feature_index",
        ),
    ];
    for (query, saes, top_k, expected) in cases {
        let status = similar(&mut server, query, &saes, top_k)
            .await
            .expect_err(expected);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(field(&status), expected, "{status:?}");
    }
    for (values, expected) in [
        (vec![], "values"),
        (vec![1.0; 21], "values"),
        (vec![1.0; 20 * 1025], "values"),
        (vec![f32::INFINITY; 20], "values[0]"),
    ] {
        let status = encode(&mut server, &name, &values, 0)
            .await
            .expect_err(expected);
        assert_eq!(field(&status), expected, "{status:?}");
    }
    let status = encode(&mut server, "absent", &[1.0; 20], 0)
        .await
        .expect_err("absent");
    assert_eq!(status.code(), Code::NotFound);
    server.stop().await;
}
