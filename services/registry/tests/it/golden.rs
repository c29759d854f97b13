//! Files made with SAELens, torch, numpy and gguf, against what these compute.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use safetensors::SafeTensors;
use serde_json::Value;
use steering_proto::{
    payload::{InputNormalization, SaeFeature},
    v1,
};
use tonic::Code;

use crate::harness::{HOOK, MODEL, Server, by_index, by_label, import_with, options};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures")
}

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn rows(tensors: &SafeTensors<'_>, name: &str) -> Vec<Vec<f64>> {
    let view = tensors.tensor(name).expect(name);
    let (cells, _) = view.data().as_chunks::<4>();
    let values: Vec<f64> = cells
        .iter()
        .map(|cell| f64::from(f32::from_le_bytes(*cell)))
        .collect();
    values
        .chunks(view.shape()[1])
        .map(<[f64]>::to_vec)
        .collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// n(x), and the factor that takes a delta back.
fn normalize(x: &[f64], normalization: InputNormalization) -> (Vec<f64>, f64) {
    let d = x.len() as f64;
    match normalization {
        InputNormalization::None => (x.to_vec(), 1.0),
        InputNormalization::ConstantNormRescale => {
            let factor = d.sqrt() / norm(x);
            (x.iter().map(|x| x * factor).collect(), 1.0 / factor)
        }
        InputNormalization::LayerNorm => {
            let mean = x.iter().sum::<f64>() / d;
            let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
            let std = norm(&centred) / (d - 1.0).sqrt();
            (centred.iter().map(|x| x / (std + 1e-5)).collect(), std)
        }
    }
}

/// f(x), and x with f taken to `value`, by the formulas of payload.proto.
fn clamp(feature: &SaeFeature, x: &[f64], value: f64) -> (f64, Vec<f64>) {
    let (normalized, back) = normalize(x, feature.input_normalization);
    let dot: f64 = normalized
        .iter()
        .zip(&feature.encoder)
        .map(|(x, &e)| x * f64::from(e))
        .sum();
    let f = f64::from(
        feature
            .activation
            .apply((dot + f64::from(feature.encoder_bias)) as f32),
    );
    let edited = x
        .iter()
        .zip(&feature.decoder)
        .map(|(x, &d)| x + (value - f) * back * f64::from(d));
    (f, edited.collect())
}

fn close(actual: &[f64], expected: &[f64], scale: f64) -> bool {
    actual
        .iter()
        .zip(expected)
        .all(|(a, e)| (a - e).abs() <= 1e-4 * scale.max(1e-3))
}

async fn check_numbers(server: &mut Server, name: &str, folder: &Path, expected: &Value) {
    let bytes = std::fs::read(folder.join("expected.safetensors")).expect("expected");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (x, f, clamped) = (
        rows(&tensors, "x"),
        rows(&tensors, "f"),
        rows(&tensors, "clamped"),
    );
    let ablated = rows(&tensors, "ablated");
    let index = usize::try_from(expected["feature_index"].as_u64().expect("index")).expect("small");
    let value = expected["value"].as_f64().expect("value");
    let all: Vec<_> = (0..f[0].len())
        .map(|i| by_index(name, u32::try_from(i).expect("small")))
        .collect();
    let features = server.features(all).await.expect("features");
    for (i, feature) in features.into_iter().enumerate() {
        let feature = SaeFeature::try_from(feature).expect("a payload that the worker takes");
        for row in 0..x.len() {
            let scale = norm(&x[row]);
            let (actual, edited) = clamp(&feature, &x[row], value);
            // Features near their threshold may fall on either side in another precision.
            if i == index || (f[row][i] > 0.0) == (actual > 0.0) {
                assert!(
                    close(&[actual], &[f[row][i]], scale),
                    "{name} f[{row}, {i}]: {actual} {}",
                    f[row][i]
                );
            }
            if i == index {
                assert!(
                    close(&edited, &clamped[row], scale),
                    "{name} clamped[{row}]"
                );
                let (_, edited) = clamp(&feature, &x[row], 0.0);
                assert!(
                    close(&edited, &ablated[row], scale),
                    "{name} ablated[{row}]"
                );
            }
        }
    }
}

#[tokio::test]
async fn every_sae_format_computes_what_its_reference_computes() {
    let mut server = Server::start().await;
    let mut served = 0;
    let mut digests = BTreeSet::new();
    for entry in std::fs::read_dir(fixtures().join("sae_formats")).expect("fixtures") {
        let folder = entry.expect("entry").path();
        let expected = json(&folder.join("expected.json"));
        let name = expected["format"].as_str().expect("format");
        let mut options = options(name);
        let stated = |key: &str| expected[key].as_str().map(str::to_owned);
        // Where the files tell, they must do so without help.
        options.hook_name = stated("hook_name").map_or(HOOK.to_owned(), |_| String::new());
        options.model_id = stated("model_name").map_or(MODEL.to_owned(), |_| String::new());
        let path = folder.join(expected["path"].as_str().expect("path"));
        let imported = import_with(&mut server.client, &path, options).await;
        match (
            expected["expectation"].as_str().expect("expectation"),
            imported,
        ) {
            ("refused", Err(status)) => {
                let codes = [Code::InvalidArgument, Code::FailedPrecondition];
                assert!(codes.contains(&status.code()), "{name}: {status:?}");
            }
            ("ok" | "ok_or_refused", Ok(sae)) => {
                assert_eq!(
                    u64::from(sae.d_in),
                    expected["d_in"].as_u64().expect("d_in"),
                    "{name}"
                );
                assert_eq!(
                    u64::from(sae.d_sae),
                    expected["d_sae"].as_u64().expect("d_sae"),
                    "{name}"
                );
                assert_eq!(
                    sae.hook_name,
                    stated("hook_name").unwrap_or(HOOK.to_owned()),
                    "{name}"
                );
                assert_eq!(
                    sae.model_id,
                    stated("model_name").unwrap_or(MODEL.to_owned()),
                    "{name}"
                );
                check_numbers(&mut server, name, &folder, &expected).await;
                served += 1;
                digests.insert(sae.digest);
            }
            (expectation, imported) => panic!("{name}: {expectation}, but {imported:?}"),
        }
    }
    assert!(served >= 20, "{served}");
    // Formats that hold the same SAE share its directions.
    assert_eq!(server.files().len(), digests.len());
}

#[tokio::test]
async fn every_cav_format_holds_the_same_vectors() {
    let mut server = Server::start().await;
    let folder = fixtures().join("cavs");
    let expected = json(&folder.join("expected.json"));
    for (file, expected) in expected.as_object().expect("object") {
        let bytes = std::fs::read(folder.join(file)).expect("file");
        let header = v1::CavImportHeader {
            hook_name: if file.ends_with(".gguf") {
                String::new()
            } else {
                HOOK.to_owned()
            },
            model_id: MODEL.to_owned(),
            file_name: file.clone(),
        };
        let imported = server.cavs(&bytes, header).await;
        if expected["expectation"] == "refused" {
            let status = imported.expect_err(file);
            assert_eq!(status.code(), Code::InvalidArgument, "{file}: {status:?}");
            continue;
        }
        let imported = imported.unwrap_or_else(|status| panic!("{file}: {status:?}"));
        let wanted = expected["cavs"].as_array().expect("cavs");
        let mut actual = Vec::new();
        for cav in &imported {
            assert!(
                cav.directions
                    .iter()
                    .all(|direction| direction.vector.is_none())
            );
            let request = v1::GetCavRequest {
                name: format!("{}@{}", cav.name, &cav.digest[..12]),
            };
            let cav = server
                .client
                .get_cav(request)
                .await
                .expect("CAV")
                .into_inner()
                .cav
                .expect("CAV");
            actual.extend(
                cav.directions
                    .into_iter()
                    .map(|direction| (cav.name.clone(), direction)),
            );
        }
        assert_eq!(actual.len(), wanted.len(), "{file}");
        for ((name, direction), wanted) in actual.iter().zip(wanted) {
            assert_eq!(
                name,
                wanted["label"].as_str().unwrap_or("control_vector"),
                "{file}"
            );
            assert_eq!(
                direction.hook_name,
                wanted["hook"].as_str().unwrap_or(HOOK),
                "{file}"
            );
            let values = &direction.vector.as_ref().expect("vector").values;
            let numbers = wanted["cav"].as_array().expect("cav").iter();
            let numbers: Vec<f32> = numbers
                .map(|number| number.as_f64().expect("number") as f32)
                .collect();
            assert_eq!(*values, numbers, "{file} {name}");
        }
    }
}

#[tokio::test]
async fn hostile_files_are_refused_and_leave_nothing() {
    let mut server = Server::start().await;
    let folder = fixtures().join("hostile");
    let good = fixtures().join("sae_formats/gemma_scope_npz_deflated/params.npz");
    server.import(&good, "good").await.expect("a good SAE");
    for (file, expected) in json(&folder.join("expected.json"))
        .as_object()
        .expect("object")
    {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).expect("file");
        let refused = match expected["kind"].as_str().expect("kind") {
            "sae" => server.import(&path, "hostile").await.map(drop),
            "labels" => server.labels("good", &bytes).await.map(drop),
            _ => {
                let header = v1::CavImportHeader {
                    hook_name: HOOK.to_owned(),
                    model_id: MODEL.to_owned(),
                    file_name: file.clone(),
                };
                server.cavs(&bytes, header).await.map(drop)
            }
        };
        let status = refused.expect_err(file);
        let codes = [Code::InvalidArgument, Code::FailedPrecondition];
        assert!(codes.contains(&status.code()), "{file}: {status:?}");
        assert!(status.message().len() > 10, "{file}: {status:?}");
    }
    assert!(!Path::new("steer_golden_canary").exists());
    assert_eq!(server.sae_names().await, ["good"]);
    assert_eq!(server.files().len(), 1);
    let cavs = server
        .client
        .list_cavs(v1::ListCavsRequest::default())
        .await
        .expect("list");
    assert!(cavs.into_inner().cavs.is_empty());
}

/// The notebook's own set: an archive, labels with two names for one feature, CAVs.
#[tokio::test]
async fn a_model_familys_fixture_is_served_whole() {
    let mut server = Server::start().await;
    let folder = fixtures().join("gemma2");
    let cases = json(&folder.join("cases.json"));
    let hook = cases["sae"]["hook"].as_str().expect("hook");
    let mut options = options("gemma");
    hook.clone_into(&mut options.hook_name);
    let path = folder.join(cases["sae"]["path"].as_str().expect("path"));
    import_with(&mut server.client, &path, options)
        .await
        .expect("SAE");
    let labels = std::fs::read(folder.join("labels.json")).expect("labels");
    let stored = server.labels("gemma", &labels).await.expect("labels");
    let labels: BTreeMap<String, u32> = serde_json::from_slice(&labels).expect("labels");
    let distinct: BTreeSet<_> = labels.values().collect();
    assert_eq!(
        (stored.label_count, stored.feature_count),
        (labels.len() as u64, distinct.len() as u64)
    );
    assert!(distinct.len() < labels.len());
    for (label, index) in labels {
        let feature = server.feature(by_label("", &label)).await;
        assert_eq!(
            (feature.feature_index, feature.label.as_str()),
            (index, label.as_str())
        );
        assert_eq!(feature.hook_name, hook);
    }
    let bytes =
        std::fs::read(folder.join(cases["cavs"]["path"].as_str().expect("path"))).expect("CAVs");
    let header = v1::CavImportHeader {
        hook_name: cases["cavs"]["hook"].as_str().expect("hook").to_owned(),
        model_id: MODEL.to_owned(),
        file_name: "cavs.pt".to_owned(),
    };
    let cavs = server.cavs(&bytes, header).await.expect("CAVs");
    assert_eq!(
        cavs.len(),
        cases["cavs"]["labels"].as_array().expect("labels").len()
    );
}
