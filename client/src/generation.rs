//! The stream of a generation, checked, and what it adds up to.

use std::fmt;

use tonic::Streaming;

use crate::{Client, Error, Service, v1};

pub use v1::generate_response::Event;

/// A running generation. Dropping it cancels the generation.
pub struct GenerationStream {
    inner: Streaming<v1::GenerateResponse>,
    client: Client,
    /// Per variant, whether it has not finished; none before `Started`.
    open: Option<Vec<bool>>,
}

impl fmt::Debug for GenerationStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerationStream")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl GenerationStream {
    pub(crate) fn new(inner: Streaming<v1::GenerateResponse>, client: Client) -> Self {
        Self {
            inner,
            client,
            open: None,
        }
    }

    /// The next event: `Started` first, then tokens, `Finished` once per variant;
    /// none at the end.
    ///
    /// # Errors
    /// If the worker fails, or its stream is not of that form.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let message = self.inner.message().await;
        match message.map_err(|status| self.client.worker_failed(status))? {
            None => self.check_end().map(|()| None),
            Some(v1::GenerateResponse { event }) => {
                let event = event.ok_or_else(|| contract("sent an event of an unknown kind"))?;
                self.check(&event)?;
                Ok(Some(event))
            }
        }
    }

    /// Reads the stream to its end.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn collect(mut self) -> Result<Transcript, Error> {
        let mut transcript = Transcript::default();
        while let Some(event) = self.next().await? {
            transcript.apply(&event);
        }
        Ok(transcript)
    }

    fn check(&mut self, event: &Event) -> Result<(), Error> {
        let (variant, finished) = match (event, &self.open) {
            (Event::Started(started), None) => {
                self.open = Some(vec![true; started.variant_names.len()]);
                return Ok(());
            }
            (Event::Started(_), Some(_)) => return Err(contract("started a generation twice")),
            (Event::Token(token), _) => (token.variant, false),
            (Event::Finished(finished), _) => (finished.variant, true),
        };
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| contract("sent tokens before it started"))?;
        match open.get_mut(variant as usize) {
            Some(open) if *open => {
                *open = !finished;
                Ok(())
            }
            Some(_) => Err(contract("went on with a variant that had finished")),
            None => Err(contract("sent a variant that nobody asked for")),
        }
    }

    fn check_end(&self) -> Result<(), Error> {
        match &self.open {
            Some(open) if !open.contains(&true) => Ok(()),
            _ => Err(contract("ended the stream before every variant finished")),
        }
    }
}

fn contract(what: &str) -> Error {
    Error::contract(Service::Worker, what)
}

/// Everything a generation said, added up event by event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The model that answered.
    pub model_id: String,
    /// Token ids of the prompt, BOS and template included.
    pub prompt_token_ids: Vec<u32>,
    /// The seed in use.
    pub seed: u64,
    /// Every sampling value in effect.
    pub effective_sampling: v1::Sampling,
    /// Things to know that are not errors.
    pub warnings: Vec<String>,
    /// Names of the probes, in the order of their values in readings.
    pub probe_names: Vec<String>,
    /// Hook points that are edited, in the order that readings count them.
    pub edited_hook_names: Vec<String>,
    /// In order of their index.
    pub variants: Vec<VariantTranscript>,
}

/// What one variant said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VariantTranscript {
    /// Its name.
    pub name: String,
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// Natural log of each token's probability.
    pub logprobs: Vec<f32>,
    /// What each token added to the text; whole characters only, so it can be empty.
    pub pieces: Vec<String>,
    /// KL(steered ‖ unsteered) of each token's distribution, if asked for.
    pub kl_divergence: Vec<f32>,
    /// What was read and edited at each token the model read, if asked for.
    pub readings: Vec<v1::Reading>,
    /// The text, whole once the variant has finished.
    pub text: String,
    /// Why it ended; unspecified until it has.
    pub finish_reason: v1::FinishReason,
    /// Index of the stop condition that ended it, if one did.
    pub stop_condition: Option<u32>,
    /// Tokens read and written, once it has finished.
    pub usage: v1::Usage,
    /// What was done to the model, once it has finished.
    pub interventions: Vec<v1::InterventionReport>,
}

impl Transcript {
    /// Adds an event of a [`GenerationStream`].
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Started(started) => self.start(started),
            Event::Token(token) => {
                if let Some(variant) = self.variants.get_mut(token.variant as usize) {
                    variant.token_ids.push(token.token_id);
                    variant.logprobs.push(token.logprob);
                    variant.text.push_str(&token.text);
                    variant.pieces.push(token.text.clone());
                    variant.kl_divergence.extend(token.kl_divergence);
                    variant.readings.extend_from_slice(&token.readings);
                }
            }
            Event::Finished(finished) => {
                if let Some(variant) = self.variants.get_mut(finished.variant as usize) {
                    variant.text.push_str(&finished.text);
                    variant.finish_reason = finished.finish_reason();
                    variant.usage = finished.usage.unwrap_or_default();
                    variant.interventions.clone_from(&finished.interventions);
                    variant.readings.extend_from_slice(&finished.readings);
                    variant.stop_condition = finished.stop_condition;
                }
            }
        }
    }

    fn start(&mut self, started: &v1::GenerationStarted) {
        let variant = |name: &String| VariantTranscript {
            name: name.clone(),
            ..VariantTranscript::default()
        };
        *self = Self {
            model_id: started.model_id.clone(),
            prompt_token_ids: started.prompt_token_ids.clone(),
            seed: started.seed,
            effective_sampling: started.effective_sampling.clone().unwrap_or_default(),
            warnings: started.warnings.clone(),
            probe_names: started.probe_names.clone(),
            edited_hook_names: started.edited_hook_names.clone(),
            variants: started.variant_names.iter().map(variant).collect(),
        };
    }
}
