//! What `steer generate` prints: the JSON document, and the lines about what was
//! applied.

use serde::Serialize;
use steering_client::{Transcript, VariantTranscript, v1};

/// The document of `steer generate --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    model: &'a str,
    prompt_token_ids: &'a [u32],
    seed: u64,
    probes: &'a [String],
    variants: Vec<VariantDocument<'a>>,
    warnings: &'a [String],
}

/// What one variant said, as every command that generates prints it.
#[derive(Debug, Serialize)]
pub(crate) struct VariantDocument<'a> {
    name: &'a str,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    text: &'a str,
    finish_reason: &'static str,
    stop_condition: Option<u32>,
    interventions: Vec<InterventionDocument<'a>>,
    usage: UsageDocument,
    readings: Vec<ReadingDocument<'a>>,
    kl_divergence: &'a [f32],
}

#[derive(Debug, Serialize)]
struct ReadingDocument<'a> {
    position: u32,
    token_id: u32,
    before: &'a [f32],
    after: &'a [f32],
    edit_norms: Vec<EditNormDocument<'a>>,
}

#[derive(Debug, Serialize)]
struct EditNormDocument<'a> {
    hook_name: Option<&'a str>,
    relative_norm: f32,
}

/// What one intervention did.
#[derive(Debug, Serialize)]
pub(crate) struct InterventionDocument<'a> {
    hook_name: &'a str,
    payload_name: &'a str,
    payload_digest: &'a str,
    edit: &'a str,
    positions_touched: u64,
    positions_changed: u64,
    mean_relative_delta: f32,
    merged_into: Option<u32>,
    gate_firings: Option<u64>,
}

#[derive(Debug, Serialize)]
struct UsageDocument {
    prompt_tokens: u32,
    generated_tokens: u32,
    shared_prompt_tokens: u32,
}

impl<'a> From<&'a Transcript> for Document<'a> {
    fn from(transcript: &'a Transcript) -> Self {
        Self {
            model: &transcript.model_id,
            prompt_token_ids: &transcript.prompt_token_ids,
            seed: transcript.seed,
            probes: &transcript.probe_names,
            variants: transcript
                .variants
                .iter()
                .map(|variant| VariantDocument::new(transcript, variant))
                .collect(),
            warnings: &transcript.warnings,
        }
    }
}

impl<'a> VariantDocument<'a> {
    pub(crate) fn new(transcript: &'a Transcript, variant: &'a VariantTranscript) -> Self {
        let v1::Usage {
            prompt_tokens,
            generated_tokens,
            shared_prompt_tokens,
        } = variant.usage;
        let hooks = &transcript.edited_hook_names;
        let reading = |reading| ReadingDocument::new(hooks, reading);
        Self {
            name: &variant.name,
            token_ids: &variant.token_ids,
            logprobs: &variant.logprobs,
            text: &variant.text,
            finish_reason: finish_reason(variant.finish_reason),
            stop_condition: variant.stop_condition,
            interventions: variant.interventions.iter().map(Into::into).collect(),
            usage: UsageDocument {
                prompt_tokens,
                generated_tokens,
                shared_prompt_tokens,
            },
            readings: variant.readings.iter().map(reading).collect(),
            kl_divergence: &variant.kl_divergence,
        }
    }
}

impl<'a> ReadingDocument<'a> {
    fn new(hooks: &'a [String], reading: &'a v1::Reading) -> Self {
        let v1::Reading {
            position,
            token_id,
            before,
            after,
            edit_norms,
        } = reading;
        let norm = |norm: &v1::EditNorm| EditNormDocument {
            hook_name: hooks.get(norm.hook as usize).map(String::as_str),
            relative_norm: norm.relative_norm,
        };
        Self {
            position: *position,
            token_id: *token_id,
            before,
            after,
            edit_norms: edit_norms.iter().map(norm).collect(),
        }
    }
}

impl<'a> From<&'a v1::InterventionReport> for InterventionDocument<'a> {
    fn from(report: &'a v1::InterventionReport) -> Self {
        let v1::InterventionReport {
            hook_name,
            payload_name,
            payload_digest,
            positions_touched,
            positions_changed,
            mean_relative_delta,
            merged_into,
            edit,
            gate_firings,
        } = report;
        Self {
            hook_name,
            payload_name,
            payload_digest,
            edit,
            positions_touched: *positions_touched,
            positions_changed: *positions_changed,
            mean_relative_delta: *mean_relative_delta,
            merged_into: *merged_into,
            gate_firings: *gate_firings,
        }
    }
}

/// A finish reason in the words of the JSON document.
pub(crate) fn finish_reason(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Unspecified => "unspecified",
        v1::FinishReason::Eos => "eos",
        v1::FinishReason::Stop => "stop",
        v1::FinishReason::MaxNewTokens => "max_new_tokens",
        v1::FinishReason::ContextLength => "context_length",
        v1::FinishReason::Condition => "condition",
        v1::FinishReason::NotFinite => "not_finite",
    }
}

/// One line for the run and one per intervention.
pub(crate) fn lines(transcript: &Transcript) -> Vec<String> {
    let mut lines = vec![run_line(transcript)];
    lines.extend(interventions(transcript));
    lines
}

/// One line per intervention.
pub(crate) fn interventions(transcript: &Transcript) -> Vec<String> {
    let of = |variant: &VariantTranscript| -> Vec<String> {
        let reports = variant.interventions.iter();
        reports
            .map(|report| intervention_line(&variant.name, report))
            .collect()
    };
    transcript.variants.iter().flat_map(of).collect()
}

fn run_line(transcript: &Transcript) -> String {
    let variant = |variant: &VariantTranscript| {
        let why = match (variant.stop_condition, variant.finish_reason) {
            (Some(index), _) => format!("condition {index}"),
            (None, v1::FinishReason::NotFinite) => "not finite: lower the strengths".to_owned(),
            (None, reason) => finish_reason(reason).to_owned(),
        };
        format!(
            "{} {} tokens ({why})",
            variant.name,
            variant.token_ids.len()
        )
    };
    let variants: Vec<String> = transcript.variants.iter().map(variant).collect();
    let usage = transcript.variants.iter().map(|variant| variant.usage);
    let shared = match usage.map(|usage| usage.shared_prompt_tokens).sum::<u32>() {
        0 => String::new(),
        shared => format!(" ({shared} reused)"),
    };
    format!(
        "{} · seed {} · {} prompt tokens{shared} · {}",
        transcript.model_id,
        transcript.seed,
        transcript.prompt_token_ids.len(),
        variants.join(", ")
    )
}

pub(crate) fn intervention_line(variant: &str, report: &v1::InterventionReport) -> String {
    let what = format!(
        "{variant}: {:?} {} at {}",
        report.payload_name, report.edit, report.hook_name
    );
    if let Some(earlier) = report.merged_into {
        return format!("{what} · counted with edit {earlier}");
    }
    let gate = match report.gate_firings {
        Some(firings) => format!(" · gate fired {firings} times"),
        None => String::new(),
    };
    format!(
        "{what} · changed {} of {} positions · mean |Δ|/|x| {:.3}{gate}",
        report.positions_changed, report.positions_touched, report.mean_relative_delta
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript() -> Transcript {
        let report = v1::InterventionReport {
            hook_name: "blocks.1.hook_resid_post".to_owned(),
            payload_name: "baseball".to_owned(),
            payload_digest: "ab".to_owned(),
            positions_touched: 9,
            positions_changed: 8,
            mean_relative_delta: 0.25,
            merged_into: None,
            edit: "set 525".to_owned(),
            gate_firings: Some(3),
        };
        let merged = v1::InterventionReport {
            merged_into: Some(0),
            ..report.clone()
        };
        Transcript {
            model_id: "tiny".to_owned(),
            prompt_token_ids: vec![2, 5],
            seed: u64::MAX,
            variants: vec![VariantTranscript {
                name: "steered".to_owned(),
                token_ids: vec![7],
                logprobs: vec![-0.1],
                pieces: vec!["é".to_owned()],
                text: "é".to_owned(),
                finish_reason: v1::FinishReason::Condition,
                stop_condition: Some(0),
                usage: v1::Usage {
                    prompt_tokens: 2,
                    generated_tokens: 1,
                    shared_prompt_tokens: 1,
                },
                interventions: vec![report, merged],
                readings: vec![v1::Reading {
                    position: 1,
                    token_id: 5,
                    before: vec![0.5],
                    after: vec![525.0],
                    edit_norms: vec![v1::EditNorm {
                        hook: 0,
                        relative_norm: 0.25,
                    }],
                }],
                kl_divergence: vec![1.5],
            }],
            probe_names: vec!["baseball".to_owned()],
            edited_hook_names: vec!["blocks.1.hook_resid_post".to_owned()],
            ..Transcript::default()
        }
    }

    #[test]
    fn the_document_has_the_promised_shape() {
        let text = serde_json::to_string(&Document::from(&transcript())).expect("json");
        assert_eq!(
            text,
            concat!(
                r#"{"model":"tiny","prompt_token_ids":[2,5],"seed":18446744073709551615,"#,
                r#""probes":["baseball"],"variants":[{"name":"steered","token_ids":[7],"logprobs":[-0.1],"text":"é","#,
                r#""finish_reason":"condition","stop_condition":0,"interventions":["#,
                r#"{"hook_name":"blocks.1.hook_resid_post","payload_name":"baseball","#,
                r#""payload_digest":"ab","edit":"set 525","positions_touched":9,"#,
                r#""positions_changed":8,"mean_relative_delta":0.25,"merged_into":null,"gate_firings":3},"#,
                r#"{"hook_name":"blocks.1.hook_resid_post","payload_name":"baseball","#,
                r#""payload_digest":"ab","edit":"set 525","positions_touched":9,"#,
                r#""positions_changed":8,"mean_relative_delta":0.25,"merged_into":0,"gate_firings":3}],"#,
                r#""usage":{"prompt_tokens":2,"generated_tokens":1,"shared_prompt_tokens":1},"#,
                r#""readings":[{"position":1,"token_id":5,"before":[0.5],"after":[525.0],"#,
                r#""edit_norms":[{"hook_name":"blocks.1.hook_resid_post","relative_norm":0.25}]}],"#,
                r#""kl_divergence":[1.5]}],"warnings":[]}"#,
            )
        );
    }

    #[test]
    fn numbers_that_json_does_not_have_become_null() {
        let mut transcript = transcript();
        transcript.variants[0].logprobs = vec![f32::NEG_INFINITY];
        let text = serde_json::to_string(&Document::from(&transcript)).expect("json");
        assert!(text.contains(r#""logprobs":[null]"#), "{text}");
    }

    #[test]
    fn lines_say_what_was_applied() {
        assert_eq!(
            lines(&transcript()),
            [
                "tiny · seed 18446744073709551615 · 2 prompt tokens (1 reused) · \
                 steered 1 tokens (condition 0)",
                "steered: \"baseball\" set 525 at blocks.1.hook_resid_post · \
                 changed 8 of 9 positions · mean |Δ|/|x| 0.250 · gate fired 3 times",
                "steered: \"baseball\" set 525 at blocks.1.hook_resid_post · \
                 counted with edit 0",
            ]
        );
    }
}
