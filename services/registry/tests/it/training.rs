//! CAVs trained from activations: against scikit-learn, and over gRPC.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use steering_proto::v1;
use steering_registry::concept::{Config, Examples, Method, Training, train};
use tonic::{Code, Status};

use crate::harness::{HOOK, MODEL, Server, field};

struct Golden {
    x: Vec<f32>,
    width: usize,
    labels: Vec<u32>,
    label_count: usize,
    svm: Vec<f64>,
    logistic: Vec<f64>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/cav_training");
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).expect(name);
        let tensors = SafeTensors::deserialize(&bytes).expect(name);
        let tensor = |name: &str, dtype| {
            let tensor = tensors.tensor(name).expect(name);
            assert_eq!(tensor.dtype(), dtype, "{name}");
            (tensor.data().to_vec(), tensor.shape().to_vec())
        };
        let doubles = |name| {
            let (data, _) = tensor(name, Dtype::F64);
            data.as_chunks::<8>()
                .0
                .iter()
                .map(|cell| f64::from_le_bytes(*cell))
                .collect()
        };
        let (x, shape) = tensor("x", Dtype::F32);
        let (labels, _) = tensor("labels", Dtype::I32);
        Self {
            x: x.as_chunks::<4>()
                .0
                .iter()
                .map(|cell| f32::from_le_bytes(*cell))
                .collect(),
            width: shape[1],
            labels: labels
                .as_chunks::<4>()
                .0
                .iter()
                .map(|cell| u32::from_le_bytes(*cell))
                .collect(),
            label_count: tensors.tensor("svm").expect("svm").shape()[0],
            svm: doubles("svm"),
            logistic: doubles("logistic"),
        }
    }

    fn train(&self, method: Method, null_trials: u32) -> Training {
        let examples = Examples {
            values: &self.x,
            width: self.width,
            labels: &self.labels,
            label_count: self.label_count,
        };
        let config = Config {
            method,
            held_out: 0.2,
            null_trials,
            seed: 0,
        };
        train(examples, &config, &|| false).expect("trained")
    }

    fn examples(&self) -> Vec<v1::LabelledActivation> {
        let rows = self.x.chunks(self.width).zip(&self.labels);
        rows.map(|(row, label)| example(&format!("label {label}"), row))
            .collect()
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn directions_are_scikit_learns() {
    for name in ["wide", "tall", "like_a_model", "noise"] {
        let golden = Golden::load(name);
        for (method, expected) in [
            (Method::Svm, &golden.svm),
            (Method::Logistic, &golden.logistic),
        ] {
            let trained = golden.train(method, 0);
            for (label, expected) in expected.chunks(golden.width).enumerate() {
                let cosine = cosine(&trained.concepts[label].direction, expected);
                println!(
                    "{name} {method:?} {label}: 1 - cosine = {:.1e}",
                    1.0 - cosine
                );
                assert!(cosine >= 0.999_999, "{name} {method:?} {label}: {cosine}");
            }
        }
    }
}

#[test]
fn mean_differences_are_what_they_say() {
    let golden = Golden::load("tall");
    let trained = golden.train(Method::MeanDifference, 0);
    let mean = |own: bool| -> Vec<f64> {
        let rows = golden.x.chunks(golden.width).zip(&golden.labels);
        let rows: Vec<&[f32]> = rows
            .filter(|(_, l)| (**l == 2) == own)
            .map(|(row, _)| row)
            .collect();
        let sum = |i: usize| rows.iter().map(|row| f64::from(row[i])).sum::<f64>();
        (0..golden.width)
            .map(|i| sum(i) / rows.len() as f64)
            .collect()
    };
    let difference: Vec<f64> = mean(true)
        .iter()
        .zip(mean(false))
        .map(|(a, b)| a - b)
        .collect();
    assert!(cosine(&trained.concepts[2].direction, &difference) > 1.0 - 1e-9);
}

#[test]
fn signal_is_called_signal_and_noise_noise() {
    for method in [Method::Svm, Method::MeanDifference, Method::Logistic] {
        let signal = Golden::load("tall").train(method, 20);
        assert!(signal.accuracy.low > signal.null_accuracy.max, "{signal:?}");
        for concept in &signal.concepts {
            assert!(
                !concept.noise && concept.auc.value > concept.null_auc.max,
                "{concept:?}"
            );
            assert!(concept.p_value.is_some_and(|p| p <= 0.05));
        }
        let noise = Golden::load("noise").train(method, 20);
        for concept in &noise.concepts {
            assert!(
                concept.noise && concept.p_value.is_some_and(|p| p > 0.05),
                "{concept:?}"
            );
            assert!((concept.null_auc.mean - 0.5).abs() < 0.15, "{concept:?}");
        }
    }
}

/// 60 random activations with random labels, five times each.
#[test]
fn copies_of_noise_are_noise() {
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let width = 64;
    let rows: Vec<f32> = (0..60 * width).map(|_| random()).collect();
    let labels: Vec<u32> = (0..60).map(|_| u32::from(random() > 0.0)).collect();
    let (values, labels) = (rows.repeat(5), labels.repeat(5));
    for seed in 0..5 {
        let examples = Examples {
            values: &values,
            width,
            labels: &labels,
            label_count: 2,
        };
        let config = Config {
            method: Method::Svm,
            held_out: 0.2,
            null_trials: 20,
            seed,
        };
        let trained = train(examples, &config, &|| false).expect("trained");
        assert!((60..=65).contains(&trained.held_out), "{trained:?}");
        for concept in &trained.concepts {
            assert!(concept.noise && concept.auc.value < 0.95, "{concept:?}");
        }
    }
}

fn example(label: &str, values: &[f32]) -> v1::LabelledActivation {
    v1::LabelledActivation {
        label: label.to_owned(),
        values: values.to_vec(),
    }
}

fn config() -> v1::CavTrainingConfig {
    v1::CavTrainingConfig {
        hook_name: HOOK.to_owned(),
        model_id: MODEL.to_owned(),
        method: v1::CavMethod::Svm.into(),
        source: Some(v1::CavDataSource {
            origin: "posts.jsonl".to_owned(),
            text_count: 210,
            ..v1::CavDataSource::default()
        }),
        ..v1::CavTrainingConfig::default()
    }
}

async fn train_over_grpc(
    server: &mut Server,
    config: v1::CavTrainingConfig,
    examples: Vec<v1::LabelledActivation>,
) -> Result<v1::TrainCavsResponse, Status> {
    use v1::train_cavs_request::Message;
    let messages =
        std::iter::once(Message::Config(config)).chain(examples.into_iter().map(Message::Example));
    let messages: Vec<_> = messages
        .map(|message| v1::TrainCavsRequest {
            message: Some(message),
        })
        .collect();
    let response = server
        .client
        .train_cavs(tokio_stream::iter(messages))
        .await?;
    Ok(response.into_inner())
}

#[tokio::test]
async fn trained_cavs_are_stored_with_how_they_were_trained() {
    let golden = Golden::load("tall");
    let mut server = Server::start().await;
    let cavs = train_over_grpc(&mut server, config(), golden.examples())
        .await
        .expect("trained")
        .cavs;
    let names: Vec<&str> = cavs.iter().map(|cav| cav.name.as_str()).collect();
    assert_eq!(names, ["label 0", "label 1", "label 2", "label 3"]);
    let data = server.stop().await;

    let mut server = Server::start_with(data, Vec::new()).await;
    let request = v1::GetCavRequest {
        name: "label 2".to_owned(),
    };
    let stored = server
        .client
        .get_cav(request)
        .await
        .expect("stored")
        .into_inner();
    let stored = stored.cav.expect("a CAV");
    assert_eq!(stored.origin, "posts.jsonl");
    let values = &stored.directions[0]
        .vector
        .as_ref()
        .expect("a vector")
        .values;
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    assert!(cosine(&values, &golden.svm[2 * golden.width..3 * golden.width]) > 0.999_999);
    assert!((stored.directions[0].norm - 1.0).abs() < 1e-5);
    let training = stored.training.expect("a training");
    assert_eq!(Some(&training), cavs[2].training.as_ref());
    assert_eq!(training.method(), v1::CavMethod::Svm);
    assert_eq!((training.example_count, training.positive_count), (200, 50));
    assert_eq!(
        (training.held_out_count, training.held_out_positive_count),
        (40, 10)
    );
    assert_eq!(training.source.expect("a source").text_count, 210);
    assert_eq!(training.activations_digest.len(), 64);
    assert_eq!(training.null_auc.expect("a null").trial_count, 20);
    server.stop().await;
}

#[tokio::test]
async fn bad_examples_are_refused_by_field_and_store_nothing() {
    let mut server = Server::start().await;
    let good = |label: &str| {
        (0..5)
            .map(|i| example(label, &[i as f32, 1.0]))
            .collect::<Vec<_>>()
    };
    let with = |extra: v1::LabelledActivation| {
        let mut examples = good("a");
        examples.extend(good("b"));
        examples.push(extra);
        examples
    };
    let cases = [
        (good("a"), "example"),
        (with(example("c", &[1.0, 2.0])), "example"),
        (with(example("", &[1.0, 2.0])), "example[10].label"),
        (with(example("a", &[1.0])), "example[10].values"),
        (
            with(example("a", &[1.0, f32::NAN])),
            "example[10].values[1]",
        ),
        (
            with(example("a@0123abcd", &[1.0, 1.0])),
            "example[10].label",
        ),
    ];
    for (examples, expected) in cases {
        let status = train_over_grpc(&mut server, config(), examples)
            .await
            .expect_err(expected);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(field(&status), expected);
    }
    let alike = ["a", "b"].map(|label| vec![example(label, &[1.0, 2.0]); 5]);
    let status = train_over_grpc(&mut server, config(), alike.concat())
        .await
        .expect_err("the same");
    assert!(status.message().contains("two different"), "{status:?}");
    // Means are 2 of four each, exactly.
    let means = [("a", [0.0, 1.0, 3.0, 4.0]), ("b", [-1.0, -2.0, 5.0, 6.0])];
    let means = means.map(|(label, values)| values.map(|value| example(label, &[value])));
    let means = [means.concat(), means.concat()].concat();
    let config_of_means = v1::CavTrainingConfig {
        method: v1::CavMethod::MeanDifference.into(),
        ..config()
    };
    let status = train_over_grpc(&mut server, config_of_means, means)
        .await
        .expect_err("the same means");
    assert!(status.message().contains("no direction"), "{status:?}");
    let bad = v1::CavTrainingConfig {
        null_trials: Some(3),
        ..config()
    };
    let status = train_over_grpc(&mut server, bad, good("a"))
        .await
        .expect_err("trials");
    assert_eq!(field(&status), "config.null_trials");
    let listed = server
        .client
        .list_cavs(v1::ListCavsRequest::default())
        .await;
    assert!(listed.expect("list").into_inner().cavs.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_version_keeps_what_its_first_training_said() {
    let golden = Golden::load("tall");
    let mut server = Server::start().await;
    let mut train = async |seed| {
        let config = v1::CavTrainingConfig {
            seed: Some(seed),
            ..config()
        };
        let trained = train_over_grpc(&mut server, config, golden.examples());
        trained.await.expect("trained")
    };
    let first = train(1).await;
    assert!(first.trained_before.is_empty(), "{first:?}");
    let same = train(1).await;
    assert!(same.trained_before.is_empty(), "{same:?}");
    // Directions are of all examples, whatever the seed of the statistics.
    let other = train(2).await;
    let names: Vec<&String> = other.cavs.iter().map(|cav| &cav.name).collect();
    assert_eq!(other.trained_before.iter().collect::<Vec<_>>(), names);
    assert_eq!(other.cavs, first.cavs);
    server.stop().await;
}
