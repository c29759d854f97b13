//! Calls of the model worker.

use crate::{Client, Error, GenerationStream, v1};

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
}
