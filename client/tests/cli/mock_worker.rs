//! A worker that answers every request with the same words and keeps the request.

use std::{pin::Pin, time::Duration};

use steering_client::v1::{
    self, generate_response::Event, model_worker_service_server::ModelWorkerService,
};
use tokio_stream::{Stream, StreamExt, iter};
use tonic::{Request, Response, Status, Streaming};

use crate::mock::{Shared, lock};

/// What the mock worker saw, and how it is to behave.
#[derive(Clone, Default)]
pub(crate) struct Worker {
    pub(crate) requests: Shared<Vec<v1::GenerateRequest>>,
    pub(crate) prompts: Shared<Vec<v1::Prompt>>,
    pub(crate) scored: Shared<Vec<v1::ScoreTextRequest>>,
    pub(crate) projected: Shared<Vec<v1::ProjectDirectionRequest>>,
    /// Refuses to score.
    pub(crate) scores_nothing: Shared<bool>,
    /// Refuses with this.
    pub(crate) refusal: Shared<Option<Status>>,
    /// Sends no more events than this.
    pub(crate) events_max: Shared<Option<usize>>,
    /// Says its words this many times more.
    pub(crate) repeats: Shared<usize>,
    /// Never ends.
    pub(crate) stalls: Shared<bool>,
}

/// What every variant says, token by token, and held back until the end.
const WORDS: [(u32, &str); 3] = [(10, "Hello"), (11, ""), (12, " é")];
const HELD_BACK: &str = "!";
/// Variants the mock takes in one request.
pub(crate) const VARIANTS_MAX: u32 = 4;

impl Worker {
    pub(crate) fn refuse(&self, status: Status) {
        *lock(&self.refusal) = Some(status);
    }

    /// The only request there was.
    pub(crate) fn request(&self) -> v1::GenerateRequest {
        let requests = lock(&self.requests);
        assert_eq!(requests.len(), 1, "one request");
        requests[0].clone()
    }

    fn admit(&self) -> Result<(), Status> {
        lock(&self.refusal).clone().map_or(Ok(()), Err)
    }
}

fn events(request: &v1::GenerateRequest, repeats: usize) -> Vec<Event> {
    let sampling = request.sampling.clone().unwrap_or_default();
    let mut events = vec![Event::Started(v1::GenerationStarted {
        prompt_token_ids: vec![2, 5, 7],
        seed: sampling.seed.unwrap_or(4242),
        variant_names: request.variants.iter().map(|v| v.name.clone()).collect(),
        effective_sampling: Some(sampling),
        model_id: "mock-model".to_owned(),
        warnings: vec!["the SAE is of a sibling model".to_owned()],
        probe_names: request.probes.iter().map(|p| p.name.clone()).collect(),
        edited_hook_names: vec!["blocks.1.hook_resid_post".to_owned()],
    })];
    let telemetry = request.telemetry.unwrap_or_default();
    let variants = || (0..).zip(&request.variants);
    let words = std::iter::repeat_n(WORDS, repeats + 1).flatten();
    for (position, (token_id, text)) in (2..).zip(words) {
        events.extend(variants().map(|(variant, _)| {
            Event::Token(v1::GeneratedToken {
                variant,
                token_id,
                text: text.to_owned(),
                logprob: -0.5,
                top_logprobs: Vec::new(),
                readings: readings(request, variant, position),
                kl_divergence: telemetry.kl_divergence.then_some(0.125),
            })
        }));
    }
    for (variant, given) in variants() {
        events.push(Event::Finished(v1::VariantFinished {
            variant,
            finish_reason: v1::FinishReason::MaxNewTokens.into(),
            usage: Some(v1::Usage {
                prompt_tokens: 3,
                generated_tokens: 3,
                ..Default::default()
            }),
            interventions: given.interventions.iter().map(report).collect(),
            text: HELD_BACK.to_owned(),
            stop_condition: None,
            readings: Vec::new(),
        }));
    }
    events
}

/// The prompt has three tokens, so position 2 is read for the first token. Every
/// probe reads the variant's number on the prompt and 10 more on what is generated.
fn readings(request: &v1::GenerateRequest, variant: u32, position: u32) -> Vec<v1::Reading> {
    let telemetry = request.telemetry.unwrap_or_default();
    if request.probes.is_empty() && !telemetry.edit_norms {
        return Vec::new();
    }
    let generated = if position > 2 { 10.0 } else { 0.0 };
    let value = generated + variant as f32;
    let norm = v1::EditNorm {
        hook: 0,
        relative_norm: 0.25,
    };
    vec![v1::Reading {
        position,
        token_id: 7,
        before: vec![value; request.probes.len()],
        after: vec![value; request.probes.len()],
        edit_norms: telemetry.edit_norms.then_some(norm).into_iter().collect(),
    }]
}

fn report(_: &v1::Intervention) -> v1::InterventionReport {
    v1::InterventionReport {
        hook_name: "blocks.1.hook_resid_post".to_owned(),
        payload_name: "baseball".to_owned(),
        payload_digest: "abcd".to_owned(),
        positions_touched: 6,
        positions_changed: 5,
        mean_relative_delta: 0.25,
        merged_into: None,
        edit: "set 525".to_owned(),
        ..Default::default()
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ModelWorkerService for Worker {
    async fn get_model(
        &self,
        _: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        self.admit()?;
        Ok(Response::new(v1::GetModelResponse {
            model_id: "mock-model".to_owned(),
            family: "gemma2".to_owned(),
            d_model: 4,
            n_layers: 2,
            hook_points: vec![v1::HookPointInfo {
                name_pattern: "blocks.{L}.hook_resid_post".to_owned(),
                width: 4,
            }],
            limits: Some(v1::Limits {
                max_variants: VARIANTS_MAX,
                max_sequences: 64,
                kv_cache_bytes: 4096,
                kv_bytes_per_token: 4,
                ..v1::Limits::default()
            }),
            load: Some(v1::Load::default()),
            ..v1::GetModelResponse::default()
        }))
    }

    type GenerateStream = Events;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        self.admit()?;
        let request = request.into_inner();
        let mut events = events(&request, *lock(&self.repeats));
        lock(&self.requests).push(request);
        events.truncate(lock(&self.events_max).unwrap_or(usize::MAX));
        let message = |event| Ok(v1::GenerateResponse { event: Some(event) });
        let stream = iter(events).map(message);
        Ok(Response::new(if *lock(&self.stalls) {
            let forever = futures::stream::pending();
            Box::pin(stream.chain(forever).throttle(Duration::from_millis(1)))
        } else {
            Box::pin(stream)
        }))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        self.admit()?;
        let prompt = request.into_inner().prompt;
        lock(&self.prompts).extend(prompt);
        Ok(Response::new(v1::TokenizeResponse {
            tokens: vec![
                v1::TokenPiece {
                    token_id: 2,
                    piece: "<bos>".to_owned(),
                    special: true,
                },
                v1::TokenPiece {
                    token_id: 7,
                    piece: "▁hi".to_owned(),
                    special: false,
                },
            ],
            rendered: "<bos>hi".to_owned(),
        }))
    }

    type CaptureActivationsStream =
        Pin<Box<dyn Stream<Item = Result<v1::CaptureActivationsResponse, Status>> + Send>>;

    async fn capture_activations(
        &self,
        request: Request<Streaming<v1::CaptureActivationsRequest>>,
    ) -> Result<Response<Self::CaptureActivationsStream>, Status> {
        use v1::{capture_activations_request as ask, capture_activations_response as answer};
        self.admit()?;
        let texts = request.into_inner();
        let texts = texts.filter_map(|message| match message.ok()?.message? {
            ask::Message::Config(_) => None,
            ask::Message::Text(text) => Some(answer::Message::Text(v1::CapturedText {
                id: text.id,
                n_tokens: 1,
                values: vec![text.id as f32],
                ..v1::CapturedText::default()
            })),
        });
        let summary = tokio_stream::once(answer::Message::Summary(v1::CaptureSummary::default()));
        let message = |message| {
            Ok(v1::CaptureActivationsResponse {
                message: Some(message),
            })
        };
        Ok(Response::new(Box::pin(texts.chain(summary).map(message))))
    }

    async fn score_text(
        &self,
        request: Request<v1::ScoreTextRequest>,
    ) -> Result<Response<v1::ScoreTextResponse>, Status> {
        use v1::score_text_request::Continuation;
        self.admit()?;
        let request = request.into_inner();
        lock(&self.scored).push(request.clone());
        if *lock(&self.scores_nothing) {
            return Err(Status::unimplemented("no scores"));
        }
        let token_ids = match request.continuation {
            Some(Continuation::TokenIds(ids)) => ids.ids,
            _ => vec![10, 11],
        };
        let score = |variant: v1::Variant| v1::VariantScore {
            name: variant.name,
            logprobs: vec![-0.5; token_ids.len()],
            perplexity: 1.5,
            interventions: variant.interventions.iter().map(report).collect(),
        };
        Ok(Response::new(v1::ScoreTextResponse {
            prompt_token_ids: vec![2, 5, 7],
            scores: request.variants.into_iter().map(score).collect(),
            token_ids,
            warnings: Vec::new(),
        }))
    }

    async fn project_direction(
        &self,
        request: Request<v1::ProjectDirectionRequest>,
    ) -> Result<Response<v1::ProjectDirectionResponse>, Status> {
        self.admit()?;
        lock(&self.projected).push(request.into_inner());
        let token = |token_id, text: &str, logit| v1::TokenLogit {
            token_id,
            text: text.to_owned(),
            logit,
        };
        Ok(Response::new(v1::ProjectDirectionResponse {
            top: vec![token(7, " ball", 2.5)],
            bottom: vec![token(9, " sea", -1.5)],
        }))
    }
}
