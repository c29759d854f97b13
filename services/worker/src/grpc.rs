//! `steering.v1.ModelWorkerService` over tonic: wire types stop here.

mod capture;
mod generate;
mod project;
mod score;

use std::{pin::Pin, sync::Arc, time::Instant};

use steering_proto::{
    Invalid,
    generate::{Generate, Prompt},
    invalid::required,
    score::Score,
    v1::{self, model_worker_service_server::ModelWorkerService},
};
use steering_service::{RequestSpan, deadline::timeout};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    engine::Failure,
    error::RequestError,
    observe::{Observation, Observed},
    text::TextCodec,
    worker::Worker,
};

/// The service over a loaded worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerService {
    worker: Arc<Worker>,
    observed: Arc<Observed>,
}

impl WorkerService {
    pub(crate) fn new(worker: Arc<Worker>, observed: Arc<Observed>) -> Self {
        Self { worker, observed }
    }

    /// Runs work that may take milliseconds (tokenizing a long prompt) off the
    /// threads that serve connections.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Worker) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.worker, work).await
    }
}

async fn blocking<T: Send + 'static>(
    worker: &Arc<Worker>,
    work: impl FnOnce(&Worker) -> Result<T, RequestError> + Send + 'static,
) -> Result<T, Status> {
    let worker = worker.clone();
    let result = tokio::task::spawn_blocking(move || work(&worker)).await;
    let result = result.map_err(|e| Status::internal(format!("internal error: {e}")))?;
    Ok(result?)
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ModelWorkerService for WorkerService {
    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let v1::GetModelRequest {} = request.into_inner();
        Ok(Response::new(self.worker.describe()))
    }

    type GenerateStream = Responses<v1::GenerateResponse>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let began = Instant::now();
        let deadline = deadline(request.metadata());
        let span = request.extensions().get::<RequestSpan>().cloned();
        let wire = request.into_inner();
        let accepted = self
            .blocking(move |worker| {
                check_payload_count(&wire.features, &wire.vectors, worker)?;
                worker.accept(Generate::try_from(wire)?, deadline)
            })
            .await?;
        let span = span.unwrap_or_default();
        let observation = Observation::new(self.observed.clone(), began, &accepted, span);
        let responses = generate::respond(accepted, &self.worker, observation);
        Ok(Response::new(responses))
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

    type CaptureActivationsStream = Responses<v1::CaptureActivationsResponse>;

    async fn capture_activations(
        &self,
        request: Request<Streaming<v1::CaptureActivationsRequest>>,
    ) -> Result<Response<Self::CaptureActivationsStream>, Status> {
        let deadline = deadline(request.metadata());
        let responses = capture::respond(request.into_inner(), &self.worker, deadline).await?;
        Ok(Response::new(responses))
    }

    async fn score_text(
        &self,
        request: Request<v1::ScoreTextRequest>,
    ) -> Result<Response<v1::ScoreTextResponse>, Status> {
        let deadline = deadline(request.metadata());
        let wire = request.into_inner();
        let scoring = self
            .blocking(move |worker| {
                check_payload_count(&wire.features, &wire.vectors, worker)?;
                worker.accept_score(Score::try_from(wire)?, deadline)
            })
            .await?;
        Ok(Response::new(score::respond(scoring).await?))
    }

    async fn project_direction(
        &self,
        request: Request<v1::ProjectDirectionRequest>,
    ) -> Result<Response<v1::ProjectDirectionResponse>, Status> {
        let wire = request.into_inner();
        let response = self
            .blocking(move |worker| project::project(worker, wire))
            .await?;
        Ok(Response::new(response))
    }
}

fn piece(codec: &TextCodec, id: u32) -> v1::TokenPiece {
    v1::TokenPiece {
        token_id: id,
        piece: codec.piece(id).unwrap_or_default(),
        special: codec.is_special(id),
    }
}

fn check_payload_count(
    features: &[v1::SaeFeature],
    vectors: &[v1::Vector],
    worker: &Worker,
) -> Result<(), Invalid> {
    let (n, most) = (features.len() + vectors.len(), worker.limits.max_payloads);
    if n <= most as usize {
        return Ok(());
    }
    let text = format!("features and vectors have {n} rows together; at most {most}");
    Err(Invalid::field("features", text))
}

/// When a request must be done, from gRPC's own header, which the service's limit has
/// shortened. A client that waits cancels as well; this ends the work also where the
/// cancellation is lost.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    Instant::now().checked_add(timeout(metadata.as_ref())?)
}

fn failed(failure: &Failure) -> Status {
    match failure {
        Failure::Deadline => RequestError::Deadline.into(),
        Failure::SlowReader(most) => RequestError::SlowReader(*most).into(),
        Failure::NotFinite(variant) => {
            let text = "leaves activations that are not finite; lower the strengths of its edits";
            Invalid::field(format!("variants[{variant}]"), text).into()
        }
        Failure::Internal(problem) => RequestError::Internal(problem.clone()).into(),
    }
}
