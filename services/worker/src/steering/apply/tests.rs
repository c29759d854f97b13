use std::sync::Arc;

use super::*;
use crate::steering::math::mean_and_std;
use proptest::prelude::*;
use steering_proto::{
    HookPoint, Site,
    payload::{Activation, InputNormalization, Vector},
};

const D: usize = 19;

fn feature(normalization: InputNormalization, encoder: &[f32], decoder: &[f32]) -> Arc<SaeFeature> {
    Arc::new(SaeFeature {
        sae_id: String::new(),
        feature_index: 0,
        label: String::new(),
        model_id: String::new(),
        hook: HookPoint {
            layer: 0,
            site: Site::ResidPost,
        },
        encoder: encoder.to_vec(),
        encoder_bias: 0.25,
        decoder: decoder.to_vec(),
        activation: Activation::JumpRelu { threshold: 0.1 },
        input_normalization: normalization,
    })
}

fn edited(edit: &Edit, x: &[f32]) -> Vec<f32> {
    let mut delta = vec![0.0; x.len()];
    Row::new(edit).add_delta(x, &mut delta);
    x.iter().zip(&delta).map(|(x, d)| x + d).collect()
}

fn vector() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-4.0f32..4.0, D)
}

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-3 * (1.0 + a.abs().max(b.abs()))
}

/// The reference: a whole SAE whose other features are anything at all.
fn whole_sae(x: &[f32], features: &[Arc<SaeFeature>], clamp: Option<(usize, f32)>) -> Vec<f32> {
    let encode = |feature: &SaeFeature| {
        let z: f64 = x
            .iter()
            .zip(&feature.encoder)
            .map(|(x, e)| f64::from(*x) * f64::from(*e))
            .sum();
        feature.activation.apply(z as f32 + feature.encoder_bias)
    };
    let decode = |clamp: Option<(usize, f32)>| {
        let mut out = vec![0.0f64; x.len()];
        for (i, feature) in features.iter().enumerate() {
            let f = match clamp {
                Some((clamped, value)) if clamped == i => value,
                _ => encode(feature),
            };
            for (o, d) in out.iter_mut().zip(&feature.decoder) {
                *o += f64::from(f) * f64::from(*d);
            }
        }
        out
    };
    let (plain, clamped) = (decode(None), decode(clamp));
    x.iter()
        .zip(plain.iter().zip(&clamped))
        .map(|(&x, (p, c))| (f64::from(x) - p + c) as f32)
        .collect()
}

proptest! {
    #[test]
    fn a_clamp_equals_the_whole_sae(
        x in vector(),
        directions in prop::collection::vec((vector(), vector()), 1..6),
        value in -10.0f32..50.0,
    ) {
        let features: Vec<_> = directions
            .iter()
            .map(|(e, d)| feature(InputNormalization::None, e, d))
            .collect();
        let edit = Edit::Feature {
            feature: features[0].clone(),
            operation: FeatureOperation::Set(value),
        };
        let ours = edited(&edit, &x);
        let reference = whole_sae(&x, &features, Some((0, value)));
        for (a, b) in ours.iter().zip(&reference) {
            prop_assert!(close(*a, *b), "{a} {b}");
        }
    }

    #[test]
    fn ablation_leaves_no_projection(x in vector(), v in vector()) {
        prop_assume!(norm(&v) > 0.1);
        let vector = Arc::new(Vector { name: String::new(), values: v.clone() });
        let ablated = edited(&Edit::Ablate { vector: vector.clone() }, &x);
        prop_assert!(dot(&ablated, &unit(&v)).abs() < 1e-3);
        let clamped = edited(&Edit::ClampProjection { vector, lower: 1.0, upper: 2.0 }, &x);
        let p = dot(&clamped, &unit(&v));
        prop_assert!((0.999..=2.001).contains(&p), "{p}");
    }

    #[test]
    fn normalised_features_read_what_was_set(x in vector(), e in vector()) {
        // With the decoder along the encoder, reading back shows the clamp.
        prop_assume!(norm(&e) > 1.0 && mean_and_std(&x).1 > 0.5);
        let scale = dot(&e, &e);
        let d: Vec<f32> = e.iter().map(|v| v / scale).collect();
        let f = feature(InputNormalization::ConstantNormRescale, &e, &d);
        let before = dot(&x, &e);
        let edit = Edit::Feature { feature: f.clone(), operation: FeatureOperation::Add(3.0) };
        let after = dot(&edited(&edit, &x), &e);
        let scale = (D as f32).sqrt() / norm(&x);
        prop_assert!(close((after - before) * scale, 3.0));
    }
}

#[test]
fn operations_change_the_activation_as_named() {
    let mut e = vec![0.0; D];
    e[0] = 1.0;
    let f = feature(InputNormalization::None, &e, &e);
    let mut x = vec![0.0; D];
    x[0] = 1.75; // f = 2
    let read = |operation| {
        let edit = Edit::Feature {
            feature: f.clone(),
            operation,
        };
        edited(&edit, &x)[0] + 0.25
    };
    assert_eq!(read(FeatureOperation::Set(5.0)), 5.0);
    assert_eq!(read(FeatureOperation::Set(0.0)), 0.0);
    assert_eq!(read(FeatureOperation::Min(5.0)), 5.0);
    assert_eq!(read(FeatureOperation::Min(1.0)), 2.0);
    assert_eq!(read(FeatureOperation::Max(1.0)), 1.0);
    assert_eq!(read(FeatureOperation::Scale(0.5)), 1.0);
    assert_eq!(read(FeatureOperation::Add(1.5)), 3.5);
}

#[test]
fn additions_are_raw_or_relative() {
    let v = Arc::new(Vector {
        name: String::new(),
        values: vec![1.0, 0.0, 2.0],
    });
    let x = [3.0, 4.0, 0.0];
    let add = |strength, unit| {
        edited(
            &Edit::Add {
                vector: v.clone(),
                strength,
                unit,
            },
            &x,
        )
    };
    assert_eq!(add(2.0, StrengthUnit::Raw), [5.0, 4.0, 4.0]);
    assert_eq!(add(0.5, StrengthUnit::FractionOfNorm), [5.5, 4.0, 5.0]);
}
