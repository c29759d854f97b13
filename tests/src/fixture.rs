//! Golden fixtures: tiny random models with what the reference computed on them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors};
use serde::Deserialize;
use steering_client::{prompt, v1};

/// Name under which tests import a family's SAE.
pub const SAE: &str = "sae";
/// Model id that tests give to imports; related to the worker's own, `model`.
pub const MODEL: &str = "model";

/// A family's fixture.
#[derive(Debug)]
pub struct Fixture {
    /// Its folder.
    pub dir: PathBuf,
    /// What was run.
    pub cases: Cases,
    logits: HashMap<String, Tensor>,
}

/// cases.json.
#[derive(Debug, Deserialize)]
pub struct Cases {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Layers of the model.
    pub n_layers: usize,
    /// Token ids of the model.
    pub vocab_size: u32,
    /// Tokens generated per case.
    pub n_new: u32,
    /// The SAE.
    pub sae: SaeFiles,
    /// The CAVs.
    pub cavs: CavFiles,
    /// Prompts, interventions, tokens.
    pub cases: Vec<Case>,
}

/// Where the SAE is.
#[derive(Debug, Deserialize)]
pub struct SaeFiles {
    /// Relative to the fixture.
    pub path: String,
    /// Relative to the fixture.
    pub labels: String,
    /// Its hook point.
    pub hook: String,
}

/// Where the CAVs are.
#[derive(Debug, Deserialize)]
pub struct CavFiles {
    /// Relative to the fixture.
    pub path: String,
    /// Their hook point.
    pub hook: String,
    /// Their names.
    pub labels: Vec<String>,
}

/// One run of the reference.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// What the model read.
    pub prompt: CasePrompt,
    /// The same as tokens.
    pub prompt_token_ids: Vec<u32>,
    /// What was edited.
    pub interventions: Vec<CaseIntervention>,
    /// What the model said.
    pub token_ids: Vec<u32>,
    /// The same as text.
    pub text: String,
}

/// A prompt as the reference read it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum CasePrompt {
    /// Raw text.
    Text {
        /// The text.
        text: String,
    },
    /// A conversation.
    Chat {
        /// Its messages.
        messages: Vec<Message>,
        /// Whether the assistant's turn was opened.
        add_generation_prompt: bool,
    },
}

/// A message of a conversation.
#[derive(Debug, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// An edit of the reference.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum CaseIntervention {
    /// A clamp.
    Feature {
        /// One feature under one or more labels.
        labels: Vec<String>,
        /// What it was set to.
        value: f32,
        /// Where.
        hook: String,
    },
    /// A concept activation vector, added.
    Cav {
        /// Its name.
        label: String,
        /// The factor.
        strength: f32,
        /// Where.
        hook: String,
    },
}

impl Fixture {
    /// All families.
    pub const FAMILIES: [&str; 7] = [
        "gemma2",
        "gemma3",
        "llama",
        "llama_rope3",
        "smollm2",
        "qwen2",
        "qwen3",
    ];

    /// Reads a family's fixture.
    pub fn load(family: &str) -> Self {
        let dir = golden().join(family);
        let json = std::fs::read_to_string(dir.join("cases.json")).expect("cases.json");
        let logits = dir.join("logits.safetensors");
        Self {
            cases: serde_json::from_str(&json).expect("cases.json"),
            logits: safetensors::load(logits, &Device::Cpu).expect("logits.safetensors"),
            dir,
        }
    }

    /// The model's folder.
    pub fn model(&self) -> PathBuf {
        self.dir.join("model")
    }

    /// A file of the fixture.
    pub fn file(&self, name: &str) -> String {
        path_text(&self.dir.join(name))
    }

    /// The case of that name.
    pub fn case(&self, name: &str) -> &Case {
        let found = self.cases.cases.iter().find(|case| case.name == name);
        found.unwrap_or_else(|| panic!("no case {name}"))
    }

    /// Cases with interventions.
    pub fn steered(&self) -> impl Iterator<Item = &Case> {
        self.cases
            .cases
            .iter()
            .filter(|case| !case.interventions.is_empty())
    }

    /// The reference's log-probability of each token of a case.
    pub fn logprobs(&self, case: &Case) -> Vec<f64> {
        let rows = self.logits[&case.name].to_vec2::<f32>().expect("f32");
        assert_eq!(rows.len(), case.token_ids.len(), "{}", case.name);
        let pairs = rows.iter().zip(&case.token_ids);
        pairs
            .map(|(row, &token)| log_softmax(row, token as usize))
            .collect()
    }
}

impl Case {
    /// The prompt as the worker takes it.
    pub fn to_prompt(&self) -> v1::Prompt {
        match &self.prompt {
            CasePrompt::Text { text } => prompt::text(text),
            CasePrompt::Chat {
                messages,
                add_generation_prompt,
            } => {
                let message = |m: &Message| prompt::message(&m.role, m.content.clone());
                prompt::chat(
                    messages.iter().map(message).collect(),
                    *add_generation_prompt,
                )
            }
        }
    }
}

/// A path as text.
pub fn path_text(path: &Path) -> String {
    path.to_str().expect("path in UTF-8").to_owned()
}

/// The folder of all fixtures.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fixtures")
}

fn log_softmax(row: &[f32], token: usize) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&v| f64::from(v - most).exp()).sum();
    f64::from(row[token] - most) - sum.ln()
}
