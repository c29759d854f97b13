//! Golden fixtures: tiny random models with reference outputs.

#![allow(dead_code)] // each test file uses its own part

pub(crate) mod decode;
pub(crate) mod requests;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use candle_core::{DType, Device, Tensor, npy::NpzTensors, pickle::read_all, safetensors};
use serde::Deserialize;
use steering_proto::{
    HookPoint,
    intervention::{Edit, FeatureOperation, Intervention, Positions, StrengthUnit},
    payload::{Activation, InputNormalization, SaeFeature, Vector},
};
use steering_worker::model::{LoadOptions, Model, Precision};

pub(crate) const FAMILIES: [&str; 7] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama_rope3",
    "smollm2",
    "qwen2",
    "qwen3",
];

#[derive(Deserialize)]
pub(crate) struct Cases {
    pub(crate) sae: SaeFiles,
    pub(crate) cavs: CavFiles,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct SaeFiles {
    pub(crate) hook: String,
}

#[derive(Deserialize)]
pub(crate) struct CavFiles {
    pub(crate) labels: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) prompt_token_ids: Vec<u32>,
    pub(crate) interventions: Vec<WireIntervention>,
    pub(crate) token_ids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum WireIntervention {
    Feature {
        labels: Vec<String>,
        feature_index: u32,
        value: f32,
        hook: String,
    },
    Cav {
        label: String,
        cav_index: usize,
        strength: f32,
        hook: String,
    },
}

pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    pub(crate) cases: Cases,
    pub(crate) logits: HashMap<String, Tensor>,
    sae: HashMap<String, Tensor>,
    cavs: Tensor,
}

pub(crate) fn folder(family: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../tests/golden/fixtures").join(family)
}

impl Fixture {
    pub(crate) fn load(family: &str) -> Self {
        let dir = folder(family);
        let json = std::fs::read_to_string(dir.join("cases.json")).expect("cases.json");
        let cases = serde_json::from_str(&json).expect("cases");
        let logits =
            safetensors::load(dir.join("logits.safetensors"), &Device::Cpu).expect("logits");
        let npz = NpzTensors::new(dir.join("sae_gemma_scope/params.npz")).expect("npz");
        let sae = ["W_enc", "W_dec", "b_enc", "threshold"]
            .map(|name| (name.to_owned(), npz.get(name).expect("read").expect(name)))
            .into();
        let cavs = read_all(dir.join("cavs.pt")).expect("cavs.pt").remove(0).1;
        Self {
            dir,
            cases,
            logits,
            sae,
            cavs: cavs.to_dtype(DType::F32).expect("f32"),
        }
    }

    pub(crate) fn weights(&self) -> Vec<PathBuf> {
        let mut weights: Vec<PathBuf> = std::fs::read_dir(self.dir.join("model"))
            .expect("model folder")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        weights.sort();
        weights
    }

    pub(crate) fn model(&self, config: &str, options: &LoadOptions) -> Model {
        Model::load_hf(&self.dir.join(config), &self.weights(), options).expect("model loads")
    }

    pub(crate) fn case(&self, name: &str) -> &Case {
        let case = self.cases.cases.iter().find(|case| case.name == name);
        case.expect("the case is in the fixture")
    }

    pub(crate) fn interventions(&self, case: &Case) -> Vec<Intervention> {
        case.interventions
            .iter()
            .flat_map(|wire| self.intervention(wire))
            .collect()
    }

    fn intervention(&self, wire: &WireIntervention) -> Vec<Intervention> {
        match wire {
            WireIntervention::Feature {
                labels,
                feature_index,
                value,
                hook,
            } => labels
                .iter()
                .map(|label| {
                    let feature = self.feature(label, *feature_index, hook);
                    Intervention {
                        hook: feature.hook,
                        edit: Edit::Feature {
                            feature: Arc::new(feature),
                            operation: FeatureOperation::Set(*value),
                        },
                        positions: Positions::all(),
                        gate: None,
                    }
                })
                .collect(),
            WireIntervention::Cav {
                label,
                cav_index,
                strength,
                hook,
            } => {
                assert_eq!(self.cases.cavs.labels[*cav_index], *label);
                let vector = Vector {
                    name: label.clone(),
                    values: self
                        .cavs
                        .get(*cav_index)
                        .expect("row")
                        .to_vec1()
                        .expect("f32"),
                };
                vec![Intervention {
                    hook: hook.parse().expect("hook"),
                    edit: Edit::Add {
                        vector: Arc::new(vector),
                        strength: *strength,
                        unit: StrengthUnit::Raw,
                    },
                    positions: Positions::all(),
                    gate: None,
                }]
            }
        }
    }

    pub(crate) fn feature(&self, label: &str, index: u32, hook: &str) -> SaeFeature {
        assert_eq!(hook, self.cases.sae.hook);
        let i = index as usize;
        let row = |t: Tensor| {
            t.contiguous()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("f32")
        };
        let scalar = |name: &str| row(self.sae[name].clone())[i];
        SaeFeature {
            sae_id: String::new(),
            feature_index: index,
            label: label.to_owned(),
            model_id: String::new(),
            hook: hook.parse::<HookPoint>().expect("hook"),
            encoder: row(self.sae["W_enc"]
                .t()
                .and_then(|t| t.get(i))
                .expect("column")),
            encoder_bias: scalar("b_enc"),
            decoder: row(self.sae["W_dec"].get(i).expect("row")),
            activation: Activation::JumpRelu {
                threshold: scalar("threshold"),
            },
            input_normalization: InputNormalization::None,
        }
    }
}

pub(crate) fn f32_on_cpu() -> LoadOptions {
    LoadOptions {
        precision: Precision::F32,
        quantize: None,
        dequantize: false,
        map: true,
        device: Device::Cpu,
    }
}
