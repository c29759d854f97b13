//! One direction, read and written at one hook point: requests whose answers
//! can be worked out by hand.

use steering_client::{prompt, v1};

use crate::request;

/// Where it is read and written.
pub const HOOK: &str = "blocks.2.hook_resid_post";
/// A prompt within every fixture's vocabulary.
pub const PROMPT: [u32; 12] = [2, 40, 51, 62, 73, 84, 95, 106, 117, 128, 139, 150];

/// A direction that is no axis and no multiple of another test's.
pub fn direction(width: usize) -> Vec<f32> {
    (0..width)
        .map(|i| ((i * 7 % 11) as f32 - 5.0) / 5.0)
        .collect()
}

/// The direction as a payload.
pub fn payload(width: usize) -> v1::Vector {
    v1::Vector {
        name: "v".to_owned(),
        values: direction(width),
    }
}

/// x · v + 0.25.
pub fn readout() -> v1::Readout {
    let direction = v1::DirectionReadout {
        vector: 0,
        hook_name: HOOK.to_owned(),
        bias: 0.25,
    };
    v1::Readout {
        source: Some(v1::readout::Source::Direction(direction)),
    }
}

/// Fires where the readout is above a threshold.
pub fn above(threshold: f32) -> v1::Condition {
    v1::Condition {
        readout: Some(readout()),
        comparison: Some(v1::condition::Comparison::Above(threshold)),
    }
}

/// x + strength · v, perhaps gated.
pub fn add(strength: f32, gate: Option<v1::Gate>) -> v1::Intervention {
    let edit = v1::intervention::Edit::VectorAdd(v1::VectorAdd {
        vector: 0,
        hook_name: HOOK.to_owned(),
        strength,
        unit: v1::StrengthUnit::Raw.into(),
    });
    v1::Intervention {
        edit: Some(edit),
        gate,
        ..Default::default()
    }
}

/// A variant with these interventions.
pub fn variant(interventions: Vec<v1::Intervention>) -> v1::Variant {
    v1::Variant {
        name: "v".to_owned(),
        interventions,
        ..Default::default()
    }
}

/// Greedy, with everything reported.
pub fn generate(width: usize, new: u32, variant: v1::Variant) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(prompt::token_ids(PROMPT.to_vec())),
        vectors: vec![payload(width)],
        variants: vec![variant],
        sampling: Some(v1::Sampling {
            ignore_eos: true,
            ..request::greedy(new)
        }),
        probes: vec![v1::Probe {
            name: String::new(),
            readout: Some(readout()),
        }],
        telemetry: Some(v1::Telemetry {
            edit_norms: true,
            kl_divergence: true,
            prompt_readings: true,
        }),
        ..Default::default()
    }
}

/// What to capture at the hook point.
pub fn config(pooling: v1::capture_config::Pooling, max_tokens: u32) -> v1::CaptureConfig {
    v1::CaptureConfig {
        hook_name: HOOK.to_owned(),
        pooling: Some(pooling),
        max_tokens,
    }
}

/// A mean without the first tokens.
pub fn mean(skip_tokens: u32) -> v1::capture_config::Pooling {
    v1::capture_config::Pooling::Mean(v1::MeanPooling { skip_tokens })
}

/// A text given as tokens.
pub fn text(id: u64, ids: &[u32]) -> v1::CaptureText {
    v1::CaptureText {
        id,
        prompt: Some(prompt::token_ids(ids.to_vec())),
    }
}
