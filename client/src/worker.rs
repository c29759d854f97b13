//! Calls of the model worker.

use std::sync::Arc;

use futures::Stream;
use tokio::sync::Semaphore;
use tonic::Request;

use crate::{
    CaptureStream, Client, Error, GenerationStream, Service,
    capture::{self, CancelledOnDrop},
    v1,
};

impl Client {
    /// What the worker serves.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn get_model(&self) -> Result<v1::GetModelResponse, Error> {
        let response = self.worker().get_model(v1::GetModelRequest {}).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        Ok(response.into_inner())
    }

    /// Starts a generation; see [`crate::GenerationBuilder`].
    ///
    /// # Errors
    /// If the worker refuses the request.
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<GenerationStream, Error> {
        tracing::debug!(
            variants = request.variants.len(),
            features = request.features.len(),
            vectors = request.vectors.len(),
            "generate"
        );
        let response = self.worker().generate(request).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        Ok(GenerationStream::new(response.into_inner(), self.clone()))
    }

    /// The tokens of a prompt, and the prompt as the chat template renders it.
    ///
    /// # Errors
    /// If the worker refuses the prompt.
    pub async fn tokenize(&self, prompt: v1::Prompt) -> Result<v1::TokenizeResponse, Error> {
        let request = v1::TokenizeRequest {
            prompt: Some(prompt),
        };
        let response = self.worker().tokenize(request).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        Ok(response.into_inner())
    }

    /// Log-likelihoods of a continuation under each variant; see
    /// [`crate::GenerationBuilder::build_score`].
    ///
    /// # Errors
    /// If the worker refuses the request, or leaves a variant out.
    pub async fn score_text(
        &self,
        request: v1::ScoreTextRequest,
    ) -> Result<v1::ScoreTextResponse, Error> {
        let asked = request.variants.len().max(1);
        let response = self.worker().score_text(request).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        let response = response.into_inner();
        let scored = response.scores.len();
        if scored == asked {
            Ok(response)
        } else {
            let what = format!("ScoreText answered {scored} of {asked} variants");
            Err(Error::contract(Service::Worker, what))
        }
    }

    /// The tokens that a direction makes most and least likely, `top_k` each
    /// (0 = 10).
    ///
    /// # Errors
    /// If the worker refuses the vector.
    pub async fn project_direction(
        &self,
        vector: v1::Vector,
        top_k: u32,
    ) -> Result<v1::ProjectDirectionResponse, Error> {
        let request = v1::ProjectDirectionRequest {
            vector: Some(vector),
            top_k,
        };
        let response = self.worker().project_direction(request).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        Ok(response.into_inner())
    }

    /// Activations of texts, answered in order of completion. Texts are taken from
    /// the stream as answers are read: at most `in_flight` (at least 1) are under way.
    ///
    /// # Errors
    /// If the worker refuses the configuration.
    pub async fn capture_activations(
        &self,
        config: v1::CaptureConfig,
        texts: impl Stream<Item = v1::CaptureText> + Send + 'static,
        in_flight: usize,
    ) -> Result<CaptureStream, Error> {
        let permits = Arc::new(Semaphore::new(in_flight.max(1)));
        let mut request = Request::new(capture::requests(config, texts, permits.clone()));
        let cancelled = CancelledOnDrop::call(&mut request);
        let response = self.worker().capture_activations(request).await;
        let response = response.map_err(|status| self.worker_failed(status))?;
        Ok(CaptureStream::new(
            response.into_inner(),
            self.clone(),
            permits,
            cancelled,
        ))
    }
}
