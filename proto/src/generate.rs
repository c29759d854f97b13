//! Validated `Generate` requests.

use crate::{
    Invalid,
    intervention::{Intervention, Payloads},
    invalid::{finite, required},
    readout::{Condition, Probe, parse_probes},
    v1,
};

/// What to generate, checked in itself; the worker checks it against its model.
#[derive(Debug, Clone)]
pub struct Generate {
    /// What the model reads.
    pub prompt: Prompt,
    /// At least one.
    pub variants: Vec<Variant>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Read in every variant.
    pub probes: Vec<Probe>,
    /// What else to report.
    pub telemetry: Telemetry,
    /// Place in the queue.
    pub priority: Priority,
}

/// What to report beyond tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// `‖Δ‖ / ‖x‖` per edited hook point and token.
    pub edit_norms: bool,
    /// Divergence from the unsteered twin.
    pub kl_divergence: bool,
    /// Readings of every prompt token.
    pub prompt_readings: bool,
}

/// Place in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Priority {
    /// Someone is waiting.
    #[default]
    Interactive,
    /// Bulk work.
    Batch,
}

impl Priority {
    /// Parses the wire's value; absent = interactive.
    pub(crate) fn from_wire(value: Option<i32>) -> Result<Self, Invalid> {
        match value.map(v1::Priority::try_from) {
            None | Some(Ok(v1::Priority::Interactive)) => Ok(Self::Interactive),
            Some(Ok(v1::Priority::Batch)) => Ok(Self::Batch),
            Some(Ok(v1::Priority::Unspecified) | Err(_)) => Err(Invalid::field(
                "priority",
                format!("is {}; must be INTERACTIVE or BATCH", value.unwrap_or(0)),
            )),
        }
    }
}

/// A prompt in one of three forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Raw text.
    Text(String),
    /// A conversation for the chat template.
    Chat {
        /// At least one message.
        messages: Vec<Message>,
        /// Open the assistant's turn.
        add_generation_prompt: bool,
    },
    /// Token ids, as they are.
    TokenIds(Vec<u32>),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// One way of decoding the prompt.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Unique within the request.
    pub name: String,
    /// Its edits.
    pub interventions: Vec<Intervention>,
    /// What ends it, apart from sampling's own bounds.
    pub stop_when: Vec<Condition>,
}

/// Sampling as requested; absent fields come from the model's defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Most tokens to generate, at least 1.
    pub max_new_tokens: Option<u32>,
    /// At least 0.
    pub temperature: Option<f32>,
    /// 0 = all.
    pub top_k: Option<u32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// Above 0.
    pub repetition_penalty: Option<f32>,
    /// Seed; drawn when absent.
    pub seed: Option<u64>,
    /// Non-empty stop strings.
    pub stop: Vec<String>,
    /// Sample or take the most likely.
    pub do_sample: Option<bool>,
    /// How many alternatives to report.
    pub top_logprobs: u32,
    /// Do not end at an end-of-sequence token.
    pub ignore_eos: bool,
}

/// Most stop strings a request may have, and most bytes in one.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Most alternatives reported per token.
const MAX_TOP_LOGPROBS: u32 = 20;

impl TryFrom<v1::GenerateRequest> for Generate {
    type Error = Invalid;

    fn try_from(wire: v1::GenerateRequest) -> Result<Self, Invalid> {
        let v1::GenerateRequest {
            prompt,
            features,
            vectors,
            variants,
            sampling,
            probes,
            telemetry,
            priority,
        } = wire;
        let prompt =
            Prompt::try_from(required(prompt, "prompt")?).map_err(|e| e.within("prompt"))?;
        let payloads = Payloads::parse(features, vectors)?;
        let sampling = match sampling {
            None => Sampling::default(),
            Some(wire) => Sampling::try_from(wire).map_err(|e| e.within("sampling"))?,
        };
        Ok(Self {
            prompt,
            variants: parse_variants(variants, &payloads)?,
            sampling,
            probes: parse_probes(probes, &payloads)?,
            telemetry: telemetry.map_or_else(Telemetry::default, Telemetry::from),
            priority: Priority::from_wire(priority)?,
        })
    }
}

impl From<v1::Telemetry> for Telemetry {
    fn from(wire: v1::Telemetry) -> Self {
        let v1::Telemetry {
            edit_norms,
            kl_divergence,
            prompt_readings,
        } = wire;
        Self {
            edit_norms,
            kl_divergence,
            prompt_readings,
        }
    }
}

/// Parses variants against the request's payload tables; none given = one
/// unsteered variant.
pub(crate) fn parse_variants(
    wire: Vec<v1::Variant>,
    payloads: &Payloads,
) -> Result<Vec<Variant>, Invalid> {
    if wire.is_empty() {
        return Ok(vec![Variant {
            name: "baseline".to_owned(),
            interventions: Vec::new(),
            stop_when: Vec::new(),
        }]);
    }
    let mut variants: Vec<Variant> = Vec::with_capacity(wire.len());
    for (i, wire) in wire.into_iter().enumerate() {
        let path = format!("variants[{i}]");
        let variant = parse_variant(wire, i, payloads).map_err(|e| e.within(&path))?;
        if variants.iter().any(|other| other.name == variant.name) {
            let text = format!(
                "{:?} is used twice; names are unique within a request",
                variant.name
            );
            return Err(Invalid::field("name", text).within(&path));
        }
        variants.push(variant);
    }
    Ok(variants)
}

fn parse_variant(wire: v1::Variant, index: usize, payloads: &Payloads) -> Result<Variant, Invalid> {
    let v1::Variant {
        name,
        interventions,
        stop_when,
    } = wire;
    let name = if name.is_empty() {
        format!("variant-{index}")
    } else {
        name
    };
    let interventions = each(interventions, "interventions", |wire| {
        Intervention::parse(wire, payloads)
    })?;
    let stop_when = each(stop_when, "stop_when", |wire| {
        Condition::parse(wire, payloads)
    })?;
    Ok(Variant {
        name,
        interventions,
        stop_when,
    })
}

/// Parses a repeated field, naming the entry that is wrong.
fn each<W, T>(
    wire: Vec<W>,
    field: &str,
    parse: impl Fn(W) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    let parsed = wire.into_iter().enumerate();
    parsed
        .map(|(i, wire)| parse(wire).map_err(|e| e.within(&format!("{field}[{i}]"))))
        .collect()
}

impl TryFrom<v1::Prompt> for Prompt {
    type Error = Invalid;

    fn try_from(wire: v1::Prompt) -> Result<Self, Invalid> {
        use v1::prompt::Content;
        let v1::Prompt { content } = wire;
        match required(content, "content")? {
            Content::Text(text) => {
                if text.is_empty() {
                    return Err(Invalid::field("text", "is empty"));
                }
                Ok(Self::Text(text))
            }
            Content::Chat(v1::Chat {
                messages,
                add_generation_prompt,
            }) => {
                if messages.is_empty() {
                    return Err(Invalid::field(
                        "chat.messages",
                        "needs at least one message",
                    ));
                }
                let messages = messages
                    .into_iter()
                    .map(|v1::ChatMessage { role, content }| Message { role, content })
                    .collect();
                Ok(Self::Chat {
                    messages,
                    add_generation_prompt,
                })
            }
            Content::TokenIds(v1::TokenIds { ids }) => {
                if ids.is_empty() {
                    return Err(Invalid::field("token_ids.ids", "is empty"));
                }
                Ok(Self::TokenIds(ids))
            }
        }
    }
}

impl TryFrom<v1::Sampling> for Sampling {
    type Error = Invalid;

    fn try_from(wire: v1::Sampling) -> Result<Self, Invalid> {
        let v1::Sampling {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            stop,
            do_sample,
            top_logprobs,
            ignore_eos,
        } = wire;
        if max_new_tokens == Some(0) {
            return Err(Invalid::field("max_new_tokens", "is 0; must be at least 1"));
        }
        if do_sample == Some(true) && temperature == Some(0.0) {
            let text = "is true with temperature 0, which means greedy; leave one of them out";
            return Err(Invalid::field("do_sample", text));
        }
        if top_logprobs > MAX_TOP_LOGPROBS {
            let text = format!("is {top_logprobs}; at most {MAX_TOP_LOGPROBS}");
            return Err(Invalid::field("top_logprobs", text));
        }
        check_stops(&stop)?;
        Ok(Self {
            max_new_tokens,
            temperature: checked(temperature, "temperature", "must be at least 0", |v| {
                v >= 0.0
            })?,
            top_k,
            top_p: checked(top_p, "top_p", "must be in (0, 1]", |v| v > 0.0 && v <= 1.0)?,
            min_p: checked(min_p, "min_p", "must be in [0, 1]", |v| {
                (0.0..=1.0).contains(&v)
            })?,
            repetition_penalty: checked(
                repetition_penalty,
                "repetition_penalty",
                "must be above 0",
                |v| v > 0.0,
            )?,
            seed,
            stop,
            do_sample,
            top_logprobs,
            ignore_eos,
        })
    }
}

fn checked(
    value: Option<f32>,
    field: &str,
    allowed: &str,
    is_allowed: fn(f32) -> bool,
) -> Result<Option<f32>, Invalid> {
    match value {
        None => Ok(None),
        Some(v) if is_allowed(finite(v, field)?) => Ok(Some(v)),
        Some(v) => Err(Invalid::field(field, format!("is {v}; {allowed}"))),
    }
}

fn check_stops(stop: &[String]) -> Result<(), Invalid> {
    if stop.len() > MAX_STOPS {
        let text = format!("has {} strings; at most {MAX_STOPS}", stop.len());
        return Err(Invalid::field("stop", text));
    }
    match stop
        .iter()
        .position(|s| s.is_empty() || s.len() > MAX_STOP_BYTES)
    {
        None => Ok(()),
        Some(i) => Err(Invalid::field(
            format!("stop[{i}]"),
            format!(
                "has {} bytes; 1 to {MAX_STOP_BYTES} are allowed",
                stop[i].len()
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
