//! What the mock registry holds.

use std::collections::HashMap;

use steering_client::v1::{self, feature_ref::Feature};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The mock's SAE.
pub(crate) const SAE: &str = "l1";
/// Index behind "baseball" and "nba"; the notebook has such a pair.
pub(crate) const BASEBALL: u32 = 20175;
pub(super) const LABELS: [(&str, u32); 5] = [
    ("baseball", BASEBALL),
    ("nba", BASEBALL),
    ("ice hockey", 7),
    ("std::vector", 8),
    ("cooking", 9),
];
pub(crate) fn feature(index: u32) -> v1::SaeFeature {
    v1::SaeFeature {
        sae_id: SAE.to_owned(),
        feature_index: index,
        label: LABELS
            .iter()
            .find(|(_, i)| *i == index)
            .map_or(String::new(), |(label, _)| (*label).to_owned()),
        hook_name: "blocks.1.hook_resid_post".to_owned(),
        model_id: "mock-model".to_owned(),
        encoder: vec![0.1, 0.2, 0.3, 0.4],
        decoder: vec![1.0, 2.0, 3.0, 4.0],
        activation: Some(v1::sae_feature::Activation::JumpRelu(
            v1::JumpReluActivation { threshold: 0.5 },
        )),
        input_normalization: v1::InputNormalization::None.into(),
        max_activation: (index == BASEBALL).then_some(1000.0),
        ..v1::SaeFeature::default()
    }
}

/// "one" has a direction at one hook point, "two" at two, "bare" lacks its vector.
pub(crate) fn cav(name: &str) -> v1::Cav {
    let hooks: &[&str] = match name {
        "two" => &["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
        _ => &["blocks.1.hook_resid_post"],
    };
    let direction = |(i, hook): (usize, &&str)| v1::CavDirection {
        hook_name: (*hook).to_owned(),
        width: 4,
        norm: 1.0,
        vector: (name != "bare").then(|| v1::Vector {
            name: name.to_owned(),
            values: vec![i as f32, 0.0, 0.25, 1.0],
        }),
    };
    v1::Cav {
        name: name.to_owned(),
        digest: "0123456789abcdef".to_owned(),
        model_id: "mock-model".to_owned(),
        directions: hooks.iter().enumerate().map(direction).collect(),
        origin: "cavs.pt".to_owned(),
        created_at: None,
        training: None,
        delete_time: None,
    }
}

pub(crate) fn sae() -> v1::Sae {
    v1::Sae {
        sae_id: SAE.to_owned(),
        hook_name: "blocks.1.hook_resid_post".to_owned(),
        model_id: "mock-model".to_owned(),
        d_in: 4,
        d_sae: 65536,
        architecture: "jumprelu".to_owned(),
        input_normalization: v1::InputNormalization::None.into(),
        label_count: LABELS.len() as u64,
        ..v1::Sae::default()
    }
}

pub(super) fn labels() -> impl Iterator<Item = v1::FeatureLabel> {
    LABELS.iter().map(|(label, index)| v1::FeatureLabel {
        sae_id: SAE.to_owned(),
        feature_index: *index,
        label: (*label).to_owned(),
        source: "manual".to_owned(),
        ..v1::FeatureLabel::default()
    })
}

pub(super) fn not_found(reason: &str, message: String) -> Status {
    let metadata = HashMap::from([("suggestions".to_owned(), r#"["baseball"]"#.to_owned())]);
    let details = ErrorDetails::with_error_info(reason, "mock", metadata);
    Status::with_error_details(Code::NotFound, message, details)
}

pub(super) fn found(reference: v1::FeatureRef) -> Result<v1::SaeFeature, Status> {
    match reference.feature {
        Some(Feature::FeatureIndex(index)) => Ok(feature(index)),
        Some(Feature::Label(label)) => match LABELS.iter().find(|(known, _)| *known == label) {
            Some((_, index)) => Ok(feature(*index)),
            None => Err(not_found(
                "LABEL_NOT_FOUND",
                format!("no feature is labelled {label:?}"),
            )),
        },
        None => Err(Status::invalid_argument("no feature")),
    }
}
