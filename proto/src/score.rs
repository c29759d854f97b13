//! Validated `ScoreText` requests.

use crate::{
    Invalid,
    generate::{Priority, Prompt, Variant, parse_variants},
    intervention::Payloads,
    invalid::required,
    v1,
};

/// What to score, checked in itself.
#[derive(Debug, Clone)]
pub struct Score {
    /// What comes before.
    pub prompt: Prompt,
    /// What is scored.
    pub continuation: Continuation,
    /// At least one.
    pub variants: Vec<Variant>,
    /// Place in the queue.
    pub priority: Priority,
}

/// What is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuation {
    /// Raw text, to which no special tokens are added.
    Text(String),
    /// Token ids, as they are.
    TokenIds(Vec<u32>),
}

impl TryFrom<v1::ScoreTextRequest> for Score {
    type Error = Invalid;

    fn try_from(wire: v1::ScoreTextRequest) -> Result<Self, Invalid> {
        use v1::score_text_request::Continuation as Wire;
        let v1::ScoreTextRequest {
            prompt,
            continuation,
            features,
            vectors,
            variants,
            priority,
        } = wire;
        let prompt =
            Prompt::try_from(required(prompt, "prompt")?).map_err(|e| e.within("prompt"))?;
        let continuation = match required(continuation, "continuation")? {
            Wire::Text(text) if text.is_empty() => {
                return Err(Invalid::field("text", "is empty"));
            }
            Wire::Text(text) => Continuation::Text(text),
            Wire::TokenIds(v1::TokenIds { ids }) if ids.is_empty() => {
                return Err(Invalid::field("token_ids.ids", "is empty"));
            }
            Wire::TokenIds(v1::TokenIds { ids }) => Continuation::TokenIds(ids),
        };
        let payloads = Payloads::parse(features, vectors)?;
        let variants = parse_variants(variants, &payloads)?;
        if let Some(v) = variants.iter().position(|v| !v.stop_when.is_empty()) {
            let text = "cannot be used here: the continuation is given";
            return Err(Invalid::field(format!("variants[{v}].stop_when"), text));
        }
        Ok(Self {
            prompt,
            continuation,
            variants,
            priority: Priority::from_wire(priority)?,
        })
    }
}
