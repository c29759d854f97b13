//! The answer of `ScoreText`.

use steering_proto::v1;
use tokio_stream::StreamExt;
use tonic::Status;

use super::generate::{events, reports};
use crate::{
    engine::{Event, Scored},
    worker::Scoring,
};

/// Waits for every variant's score.
pub(super) async fn respond(scoring: Scoring) -> Result<v1::ScoreTextResponse, Status> {
    let Scoring {
        prompt,
        continuation,
        variants,
        programs,
        warnings,
        outcome,
    } = scoring;
    let mut scores: Vec<v1::VariantScore> = vec![v1::VariantScore::default(); variants.len()];
    let mut events = std::pin::pin!(events(outcome));
    while let Some(event) = events.next().await {
        let Event::Scored(scored) = event? else {
            continue; // a score has no other events
        };
        let Scored {
            variant,
            logprobs,
            tallies,
        } = scored;
        let total: f64 = logprobs.iter().map(|&l| f64::from(l)).sum();
        scores[variant] = v1::VariantScore {
            name: variants[variant].name.clone(),
            perplexity: (-total / logprobs.len() as f64).exp(),
            logprobs,
            interventions: reports(&variants[variant], &programs[variant], &tallies),
        };
    }
    Ok(v1::ScoreTextResponse {
        prompt_token_ids: prompt.to_vec(),
        token_ids: continuation.to_vec(),
        scores,
        warnings,
    })
}
