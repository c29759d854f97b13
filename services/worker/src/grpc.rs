//! `steering.v1.ModelWorkerService` over tonic: wire types stop here.

mod capture;
mod generate;
mod project;
mod score;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use steering_proto::{
    Invalid,
    generate::{Generate, Prompt},
    invalid::required,
    score::Score,
    v1::{self, model_worker_service_server::ModelWorkerService},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{engine::Failure, error::RequestError, text::TextCodec, worker::Worker};

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
        let deadline = deadline(request.metadata());
        let wire = request.into_inner();
        let accepted = self
            .blocking(move |worker| {
                check_payload_count(&wire.features, &wire.vectors, worker)?;
                worker.accept(Generate::try_from(wire)?, deadline)
            })
            .await?;
        Ok(Response::new(generate::respond(accepted, &self.worker)))
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

/// When a request must be done, from gRPC's own header. A client that waits
/// cancels as well; this ends the work also where the cancellation is lost.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = metadata.get("grpc-timeout")?.to_str().ok()?;
    Instant::now().checked_add(parse_timeout(timeout)?)
}

/// At most eight digits and a unit.
fn parse_timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

fn failed(failure: &Failure) -> Status {
    match failure {
        Failure::Deadline => RequestError::Deadline.into(),
        Failure::Internal(problem) => RequestError::Internal(problem.clone()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "S", "-1S", "123456789S", "1s", "1 S", "5é"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
