//! The stream of `Generate`: the engine's events as wire messages.

use std::sync::Arc;

use steering_proto::{HookPoint, generate::Variant, v1};
use tokio_stream::StreamExt;

use super::{Responses, failed};
use crate::{
    engine::{Event, Finish, FinishReason, Outcome, TokenEvent},
    observe::Observation,
    steering::{Program, Reading, Tally},
    text::TextCodec,
    worker::{Accepted, Worker},
};

/// What turning events into messages needs.
struct Context {
    codec: Arc<TextCodec>,
    variants: Vec<Variant>,
    programs: Vec<Arc<Program>>,
    edited: Vec<HookPoint>,
    prompt_len: usize,
}

/// The stream of a request that the engine has taken: `Started`, then events.
pub(super) fn respond(
    accepted: Accepted,
    worker: &Worker,
    mut observation: Observation,
) -> Responses<v1::GenerateResponse> {
    let edited = accepted.edited();
    let Accepted {
        prompt,
        variants,
        programs,
        probes,
        sampling,
        warnings,
        outcome,
    } = accepted;
    let started = v1::GenerationStarted {
        prompt_token_ids: prompt.to_vec(),
        seed: sampling.seed,
        variant_names: variants.iter().map(|v| v.name.clone()).collect(),
        effective_sampling: Some(sampling.to_wire()),
        model_id: worker.model_id.clone(),
        warnings,
        probe_names: probes.into_iter().map(|probe| probe.name).collect(),
        edited_hook_names: edited.iter().map(ToString::to_string).collect(),
    };
    let context = Context {
        codec: worker.codec.clone(),
        variants,
        programs,
        edited,
        prompt_len: prompt.len(),
    };
    let started = v1::generate_response::Event::Started(started);
    let events = events(outcome).filter_map(move |event| {
        event
            .map(|event| {
                observation.see(&event);
                context.to_wire(event)
            })
            .transpose()
    });
    let all = tokio_stream::once(Ok(started)).chain(events);
    Box::pin(all.map(|event| event.map(|event| v1::GenerateResponse { event: Some(event) })))
}

/// The engine's events; then, if the request ended early, why.
pub(super) fn events(
    outcome: Outcome,
) -> impl tokio_stream::Stream<Item = Result<Event, tonic::Status>> {
    futures::stream::unfold(Some(outcome), |outcome| async {
        let mut outcome = outcome?;
        match outcome.events.recv().await {
            Some(event) => Some((Ok(event), Some(outcome))),
            None => outcome
                .failure()
                .map(|failure| (Err(failed(failure)), None)),
        }
    })
}

impl Context {
    /// None for what a generation does not send.
    fn to_wire(&self, event: Event) -> Option<v1::generate_response::Event> {
        match event {
            Event::Token(token) => Some(v1::generate_response::Event::Token(self.token(token))),
            Event::Finished(finish) => {
                let finished = self.finish(finish);
                Some(v1::generate_response::Event::Finished(finished))
            }
            Event::Scored(_) | Event::Captured(_) => None,
        }
    }

    fn token(&self, token: TokenEvent) -> v1::GeneratedToken {
        let TokenEvent {
            variant,
            choice,
            text,
            readings,
            kl_divergence,
        } = token;
        let top_logprobs = choice
            .top
            .into_iter()
            .map(|(token_id, logprob)| v1::TokenLogprob {
                token_id,
                text: self.codec.decode(&[token_id], false).unwrap_or_default(),
                logprob,
            })
            .collect();
        v1::GeneratedToken {
            variant: variant as u32,
            token_id: choice.token_id,
            text,
            logprob: choice.logprob,
            top_logprobs,
            readings: self.readings(readings),
            kl_divergence,
        }
    }

    fn readings(&self, readings: Vec<Reading>) -> Vec<v1::Reading> {
        let hook_index = |point| self.edited.binary_search(&point).unwrap_or(0) as u32;
        readings
            .into_iter()
            .map(|reading| {
                let Reading {
                    position,
                    token_id,
                    before,
                    after,
                    edit_norms,
                } = reading;
                let edit_norms = edit_norms.into_iter();
                v1::Reading {
                    position,
                    token_id,
                    before,
                    after,
                    edit_norms: edit_norms
                        .map(|(point, relative_norm)| v1::EditNorm {
                            hook: hook_index(point),
                            relative_norm,
                        })
                        .collect(),
                }
            })
            .collect()
    }

    fn finish(&self, finish: Finish) -> v1::VariantFinished {
        let Finish {
            variant,
            reason,
            text,
            generated,
            shared_prompt_tokens,
            tallies,
            readings,
        } = finish;
        let (reason, stop_condition) = match reason {
            FinishReason::Eos => (v1::FinishReason::Eos, None),
            FinishReason::Stop => (v1::FinishReason::Stop, None),
            FinishReason::MaxNewTokens => (v1::FinishReason::MaxNewTokens, None),
            FinishReason::ContextLength => (v1::FinishReason::ContextLength, None),
            FinishReason::NotFinite => (v1::FinishReason::NotFinite, None),
            FinishReason::Condition(index) => (v1::FinishReason::Condition, Some(index as u32)),
        };
        v1::VariantFinished {
            variant: variant as u32,
            finish_reason: reason.into(),
            usage: Some(v1::Usage {
                prompt_tokens: self.prompt_len as u32,
                generated_tokens: generated as u32,
                shared_prompt_tokens: shared_prompt_tokens as u32,
            }),
            interventions: reports(&self.variants[variant], &self.programs[variant], &tallies),
            text,
            stop_condition,
            readings: self.readings(readings),
        }
    }
}

/// What was done to the model, one entry per intervention.
pub(super) fn reports(
    variant: &Variant,
    program: &Program,
    tallies: &[Tally],
) -> Vec<v1::InterventionReport> {
    let interventions = variant.interventions.iter().zip(tallies).enumerate();
    interventions
        .map(|(index, (intervention, tally))| v1::InterventionReport {
            hook_name: intervention.hook.to_string(),
            payload_name: intervention.payload_name(),
            payload_digest: intervention.payload_digest(),
            positions_touched: tally.positions_touched,
            positions_changed: tally.positions_changed,
            mean_relative_delta: tally.mean_relative_delta(),
            merged_into: program.merged_into(index).map(|index| index as u32),
            edit: intervention.describe(),
            gate_firings: tally.gate_firings,
        })
        .collect()
}
