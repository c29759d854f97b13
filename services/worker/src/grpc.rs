//! `steering.v1.ModelWorkerService` over tonic: wire types stop here.

use std::{pin::Pin, sync::Arc};

use steering_proto::{
    Invalid,
    generate::{Generate, Prompt, Variant},
    invalid::required,
    v1::{self, model_worker_service_server::ModelWorkerService},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    engine::{Event, Finish, FinishReason, TokenEvent},
    error::RequestError,
    text::TextCodec,
    worker::{Accepted, Worker},
};

/// The service over a loaded worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerService {
    worker: Arc<Worker>,
}

impl WorkerService {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    /// Runs work that may take milliseconds (tokenizing a long prompt) off the
    /// threads that serve connections.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Worker) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, Status> {
        let worker = self.worker.clone();
        let result = tokio::task::spawn_blocking(move || work(&worker)).await;
        let result = result.map_err(|e| Status::internal(format!("internal error: {e}")))?;
        Ok(result?)
    }
}

type GenerateStream = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ModelWorkerService for WorkerService {
    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let v1::GetModelRequest {} = request.into_inner();
        Ok(Response::new(self.worker.describe()))
    }

    type GenerateStream = GenerateStream;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<GenerateStream>, Status> {
        let wire = request.into_inner();
        let accepted = self
            .blocking(move |worker| {
                check_payload_count(&wire, worker.limits.max_payloads)?;
                worker.accept(Generate::try_from(wire)?)
            })
            .await?;
        Ok(Response::new(respond(accepted, &self.worker)))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let v1::TokenizeRequest { prompt } = request.into_inner();
        let response = self
            .blocking(move |worker| {
                let wire = required(prompt, "prompt")?;
                let prompt = Prompt::try_from(wire).map_err(|e| e.within("prompt"))?;
                let tokenized = worker.prompt_ids(&prompt)?;
                let tokens = tokenized.ids.iter().map(|&id| piece(&worker.codec, id));
                Ok(v1::TokenizeResponse {
                    tokens: tokens.collect(),
                    rendered: tokenized.rendered,
                })
            })
            .await?;
        Ok(Response::new(response))
    }

    type CaptureActivationsStream =
        Pin<Box<dyn Stream<Item = Result<v1::CaptureActivationsResponse, Status>> + Send>>;

    async fn capture_activations(
        &self,
        _: Request<tonic::Streaming<v1::CaptureActivationsRequest>>,
    ) -> Result<Response<Self::CaptureActivationsStream>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn score_text(
        &self,
        _: Request<v1::ScoreTextRequest>,
    ) -> Result<Response<v1::ScoreTextResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn project_direction(
        &self,
        _: Request<v1::ProjectDirectionRequest>,
    ) -> Result<Response<v1::ProjectDirectionResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }
}

fn piece(codec: &TextCodec, id: u32) -> v1::TokenPiece {
    v1::TokenPiece {
        token_id: id,
        piece: codec.piece(id).unwrap_or_default(),
        special: codec.is_special(id),
    }
}

fn check_payload_count(wire: &v1::GenerateRequest, most: u32) -> Result<(), Invalid> {
    let n = wire.features.len() + wire.vectors.len();
    if n <= most as usize {
        return Ok(());
    }
    let text = format!("features and vectors have {n} rows together; at most {most}");
    Err(Invalid::field("features", text))
}

/// The stream of a request that the engine has taken: `Started`, then events.
fn respond(accepted: Accepted, worker: &Worker) -> GenerateStream {
    let Accepted {
        prompt,
        variants,
        merged_into,
        sampling,
        warnings,
        events,
    } = accepted;
    let started = v1::GenerationStarted {
        prompt_token_ids: prompt.to_vec(),
        seed: sampling.seed,
        variant_names: variants.iter().map(|v| v.name.clone()).collect(),
        effective_sampling: Some(sampling.to_wire()),
        model_id: worker.model_id.clone(),
        warnings,
        ..Default::default()
    };
    let started = v1::generate_response::Event::Started(started);
    let codec = worker.codec.clone();
    let prompt_len = prompt.len();
    let events = ReceiverStream::new(events).map(move |event| match event {
        Event::Token(token) => Ok(v1::generate_response::Event::Token(to_wire(token, &codec))),
        Event::Finished(finish) => {
            let merged = &merged_into[finish.variant];
            let finished = report(finish, &variants, merged, prompt_len);
            Ok(v1::generate_response::Event::Finished(finished))
        }
        Event::Failed(problem) => Err(RequestError::Internal(problem).into()),
    });
    let all = tokio_stream::once(Ok(started)).chain(events);
    Box::pin(all.map(|event| event.map(|event| v1::GenerateResponse { event: Some(event) })))
}

fn to_wire(token: TokenEvent, codec: &TextCodec) -> v1::GeneratedToken {
    let TokenEvent {
        variant,
        choice,
        text,
    } = token;
    let top_logprobs = choice
        .top
        .into_iter()
        .map(|(token_id, logprob)| v1::TokenLogprob {
            token_id,
            text: codec.decode(&[token_id], false).unwrap_or_default(),
            logprob,
        })
        .collect();
    v1::GeneratedToken {
        variant: variant as u32,
        token_id: choice.token_id,
        text,
        logprob: choice.logprob,
        top_logprobs,
        ..Default::default()
    }
}

fn report(
    finish: Finish,
    variants: &[Variant],
    merged_into: &[Option<usize>],
    prompt_len: usize,
) -> v1::VariantFinished {
    let Finish {
        variant,
        reason,
        text,
        generated,
        tallies,
    } = finish;
    let interventions = variants[variant]
        .interventions
        .iter()
        .zip(&tallies)
        .zip(merged_into)
        .map(|((intervention, tally), merged)| v1::InterventionReport {
            hook_name: intervention.hook.to_string(),
            payload_name: intervention.payload_name(),
            payload_digest: intervention.payload_digest(),
            positions_touched: tally.positions_touched,
            positions_changed: tally.positions_changed,
            mean_relative_delta: tally.mean_relative_delta(),
            merged_into: merged.map(|index| index as u32),
            edit: intervention.describe(),
            ..Default::default()
        })
        .collect();
    let reason = match reason {
        FinishReason::Eos => v1::FinishReason::Eos,
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::MaxNewTokens => v1::FinishReason::MaxNewTokens,
        FinishReason::ContextLength => v1::FinishReason::ContextLength,
    };
    v1::VariantFinished {
        variant: variant as u32,
        finish_reason: reason.into(),
        usage: Some(v1::Usage {
            prompt_tokens: prompt_len as u32,
            generated_tokens: generated as u32,
            ..Default::default()
        }),
        interventions,
        text,
        ..Default::default()
    }
}
