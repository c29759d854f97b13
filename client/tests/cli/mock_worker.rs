//! A worker that answers every request with the same words and keeps the request.

use std::{pin::Pin, time::Duration};

use steering_client::v1::{
    self, generate_response::Event, model_worker_service_server::ModelWorkerService,
};
use tokio_stream::{Stream, StreamExt, iter};
use tonic::{Request, Response, Status};

use crate::mock::{Shared, lock};

/// What the mock worker saw, and how it is to behave.
#[derive(Clone, Default)]
pub(crate) struct Worker {
    pub(crate) requests: Shared<Vec<v1::GenerateRequest>>,
    pub(crate) prompts: Shared<Vec<v1::Prompt>>,
    /// Refuses with this.
    pub(crate) refusal: Shared<Option<Status>>,
    /// Sends no more events than this.
    pub(crate) events_max: Shared<Option<usize>>,
    /// Never ends.
    pub(crate) stalls: Shared<bool>,
}

/// What every variant says, token by token, and held back until the end.
const WORDS: [(u32, &str); 3] = [(10, "Hello"), (11, ""), (12, " é")];
const HELD_BACK: &str = "!";

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

fn events(request: &v1::GenerateRequest) -> Vec<Event> {
    let sampling = request.sampling.clone().unwrap_or_default();
    let mut events = vec![Event::Started(v1::GenerationStarted {
        prompt_token_ids: vec![2, 5, 7],
        seed: sampling.seed.unwrap_or(4242),
        variant_names: request.variants.iter().map(|v| v.name.clone()).collect(),
        effective_sampling: Some(sampling),
        model_id: "mock-model".to_owned(),
        warnings: vec!["the SAE is of a sibling model".to_owned()],
        ..Default::default()
    })];
    let variants = || (0..).zip(&request.variants);
    for (token_id, text) in WORDS {
        events.extend(variants().map(|(variant, _)| {
            Event::Token(v1::GeneratedToken {
                variant,
                token_id,
                text: text.to_owned(),
                logprob: -0.5,
                top_logprobs: Vec::new(),
                ..Default::default()
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
            ..Default::default()
        }));
    }
    events
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
            limits: Some(v1::Limits::default()),
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
        let mut events = events(&request);
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
}
