//! Every kind of edit.

use std::sync::Arc;

use steering_proto::{
    HookPoint, Site,
    intervention::{Edit, FeatureOperation, Intervention, Positions, StrengthUnit},
    payload::{Activation, InputNormalization, SaeFeature, Vector},
};
use steering_worker::model::Model;

use super::vector;

/// Every kind of edit, at every site.
pub(super) fn edits(model: &Model) -> Vec<Intervention> {
    let mut all = Vec::new();
    let mut seed = 0;
    for site in [
        Site::ResidPre,
        Site::Z,
        Site::AttnOut,
        Site::MlpOut,
        Site::ResidPost,
    ] {
        let hook = HookPoint { layer: 1, site };
        let width = model.width(site);
        for (i, edit) in kinds(hook, width, seed).into_iter().enumerate() {
            seed += 1;
            all.push(Intervention {
                hook: HookPoint { layer: i % 2, site },
                edit,
                positions: Positions::all(),
                gate: None,
            });
        }
    }
    all
}

fn kinds(hook: HookPoint, width: usize, seed: usize) -> Vec<Edit> {
    let direction = |i| {
        Arc::new(Vector {
            name: String::new(),
            values: vector(width, 100 * seed + i),
        })
    };
    let feature = |i: usize, activation, input_normalization, operation| Edit::Feature {
        feature: Arc::new(SaeFeature {
            sae_id: String::new(),
            feature_index: (100 * seed + i) as u32,
            label: String::new(),
            model_id: String::new(),
            hook: HookPoint {
                layer: (i + 4) % 2,
                ..hook
            },
            encoder: vector(width, 200 * seed + i),
            encoder_bias: 0.25,
            decoder: vector(width, 300 * seed + i),
            activation,
            input_normalization,
        }),
        operation,
    };
    let gated = Activation::Gated {
        gate_bias: 0.1,
        magnitude_scale: 1.5,
        magnitude_bias: 0.2,
    };
    let jump = Activation::JumpRelu { threshold: 0.1 };
    use FeatureOperation as Op;
    use InputNormalization as Norm;
    vec![
        Edit::Add {
            vector: direction(0),
            strength: 0.5,
            unit: StrengthUnit::Raw,
        },
        Edit::Add {
            vector: direction(1),
            strength: 0.1,
            unit: StrengthUnit::FractionOfNorm,
        },
        Edit::Ablate {
            vector: direction(2),
        },
        Edit::ClampProjection {
            vector: direction(3),
            lower: -0.1,
            upper: 0.2,
        },
        feature(4, jump, Norm::None, Op::Set(2.0)),
        feature(5, Activation::Relu, Norm::ConstantNormRescale, Op::Min(1.0)),
        feature(6, gated, Norm::LayerNorm, Op::Max(0.1)),
        feature(7, Activation::Relu, Norm::None, Op::Scale(1.5)),
        feature(8, gated, Norm::None, Op::Add(1.0)),
    ]
}
