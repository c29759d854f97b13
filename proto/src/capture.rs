//! Validated `CaptureActivations` messages.

use crate::{HookPoint, Invalid, generate::Prompt, invalid::required, v1};

/// What to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Where.
    pub hook: HookPoint,
    /// Every token, or a mean.
    pub pooling: Pooling,
    /// Texts are cut to this many tokens; none = the whole context.
    pub max_tokens: Option<usize>,
}

/// Every token, or a mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Every token's activation.
    PerToken,
    /// The mean over a text's tokens behind the BOS and `skip_tokens` more.
    Mean {
        /// Leading tokens left out, not counting the BOS.
        skip_tokens: usize,
    },
}

/// A text to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureText {
    /// The client's number for it.
    pub id: u64,
    /// The text.
    pub prompt: Prompt,
}

impl TryFrom<v1::CaptureConfig> for CaptureConfig {
    type Error = Invalid;

    fn try_from(wire: v1::CaptureConfig) -> Result<Self, Invalid> {
        use v1::capture_config::Pooling as Wire;
        let v1::CaptureConfig {
            hook_name,
            pooling,
            max_tokens,
        } = wire;
        let pooling = match required(pooling, "pooling")? {
            Wire::PerToken(v1::PerTokenPooling {}) => Pooling::PerToken,
            Wire::Mean(v1::MeanPooling { skip_tokens }) => Pooling::Mean {
                skip_tokens: skip_tokens as usize,
            },
        };
        Ok(Self {
            hook: hook_name.parse()?,
            pooling,
            max_tokens: (max_tokens > 0).then_some(max_tokens as usize),
        })
    }
}

impl TryFrom<v1::CaptureText> for CaptureText {
    type Error = Invalid;

    fn try_from(wire: v1::CaptureText) -> Result<Self, Invalid> {
        let v1::CaptureText { id, prompt } = wire;
        let prompt =
            Prompt::try_from(required(prompt, "prompt")?).map_err(|e| e.within("prompt"))?;
        Ok(Self { id, prompt })
    }
}
