//! Edits in the form in which a device makes them by itself.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result};
use steering_proto::{
    intervention::{FeatureOperation, StrengthUnit},
    payload::{Activation, InputNormalization, SaeFeature},
};

use super::apply::{Row, Rule};
use crate::model::{DeviceEdit, EditRule};

/// An edit's copy on the device, once there is one.
#[derive(Debug, Default)]
pub(super) struct OnDevice(OnceLock<Arc<DeviceEdit>>);

impl Row {
    /// This edit on a device; it is copied there at its first use.
    pub(super) fn on_device(&self, device: &Device) -> Result<Arc<DeviceEdit>> {
        if let Some(edit) = self.device_copy.0.get() {
            return Ok(edit.clone());
        }
        let read = match &self.rule {
            Rule::Feature { feature, .. } => &feature.encoder,
            Rule::Add { .. } | Rule::Project { .. } => &self.write,
        };
        let edit = Arc::new(DeviceEdit::new(
            self.device_rule(),
            read,
            &self.write,
            device,
        )?);
        Ok(self.device_copy.0.get_or_init(|| edit).clone())
    }

    fn device_rule(&self) -> EditRule {
        let rule = match &self.rule {
            Rule::Feature { feature, operation } => feature_rule(feature, *operation),
            Rule::Add { strength, unit } => EditRule {
                kind: match unit {
                    StrengthUnit::Raw => 1,
                    StrengthUnit::FractionOfNorm => 2,
                },
                value: *strength,
                ..EditRule::default()
            },
            Rule::Project { lower, upper } => EditRule {
                kind: 3,
                value: *lower,
                upper: *upper,
                ..EditRule::default()
            },
        };
        EditRule {
            write_norm: self.write_norm as f32,
            ..rule
        }
    }
}

fn feature_rule(feature: &SaeFeature, operation: FeatureOperation) -> EditRule {
    let (operation, value) = match operation {
        FeatureOperation::Set(v) => (0, v),
        FeatureOperation::Min(v) => (1, v),
        FeatureOperation::Max(v) => (2, v),
        FeatureOperation::Scale(v) => (3, v),
        FeatureOperation::Add(v) => (4, v),
    };
    let mut rule = EditRule {
        kind: 0,
        operation,
        value,
        bias: feature.encoder_bias,
        normalization: match feature.input_normalization {
            InputNormalization::None => 0,
            InputNormalization::ConstantNormRescale => 1,
            InputNormalization::LayerNorm => 2,
        },
        read_sum: feature.encoder.iter().sum(),
        ..EditRule::default()
    };
    match feature.activation {
        Activation::Relu => {}
        Activation::JumpRelu { threshold } => {
            rule.activation = 1;
            rule.threshold = threshold;
        }
        Activation::Gated {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        } => {
            rule.activation = 2;
            rule.threshold = gate_bias;
            rule.magnitude_scale = magnitude_scale;
            rule.magnitude_bias = magnitude_bias;
        }
    }
    rule
}
