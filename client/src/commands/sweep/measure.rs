//! What is measured about every text of a sweep.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use steering_client::{
    Client, Error, GenerationBuilder, Transcript, VariantTranscript, prompt, v1,
};

use crate::{failure, series};

/// Texts scored at the same time.
const SCORES_IN_FLIGHT: usize = 4;
/// Length of the runs of tokens that repetition counts.
const NGRAM: usize = 3;

/// One text and what was measured about it.
pub(super) struct Point<'a> {
    /// None for the baseline.
    pub(super) strength: Option<f32>,
    /// The request it was part of.
    pub(super) transcript: &'a Transcript,
    pub(super) variant: &'a VariantTranscript,
    /// Mean of every probe over the generated tokens that were read.
    pub(super) probe_means: Vec<Option<f64>>,
    /// Of the generated tokens under the unsteered model.
    pub(super) perplexity: Option<f64>,
    pub(super) repetition: Option<f64>,
}

/// The baseline and every strength, measured. Texts that cannot be scored are no
/// reason to lose the texts: that becomes a warning.
pub(super) async fn points<'a>(
    client: &Client,
    strengths: &[f32],
    transcripts: &'a [Transcript],
    priority: Option<v1::Priority>,
    warnings: &mut Vec<String>,
) -> Vec<Point<'a>> {
    let strengths = std::iter::once(None).chain(strengths.iter().copied().map(Some));
    let texts = transcripts.iter().flat_map(|transcript| {
        let variants = transcript.variants.iter();
        variants.map(move |variant| (transcript, variant))
    });
    let mut points: Vec<Point<'a>> = strengths
        .zip(texts)
        .map(|(strength, (transcript, variant))| Point {
            strength,
            transcript,
            variant,
            probe_means: probe_means(transcript, variant),
            perplexity: None,
            repetition: repetition(&variant.token_ids),
        })
        .collect();
    match perplexities(client, &points, priority).await {
        Ok(perplexities) => {
            for (point, perplexity) in points.iter_mut().zip(perplexities) {
                point.perplexity = perplexity;
            }
        }
        Err(error) => warnings.push(format!(
            "no perplexities: {}",
            failure::from_client(&error).message
        )),
    }
    points
}

fn probe_means(transcript: &Transcript, variant: &VariantTranscript) -> Vec<Option<f64>> {
    let prompt_tokens = transcript.prompt_token_ids.len();
    let generated = |reading: &&v1::Reading| reading.position as usize >= prompt_tokens;
    let mean = |probe: usize| {
        let readings = variant.readings.iter().filter(generated);
        let values: Vec<f32> = readings
            .filter_map(|reading| reading.before.get(probe).copied())
            .collect();
        series::mean(&values)
    };
    (0..transcript.probe_names.len()).map(mean).collect()
}

/// Share of the 3-grams that occurred before: 1 − distinct / all. None for texts
/// that have no 3-gram.
fn repetition(tokens: &[u32]) -> Option<f64> {
    let all = tokens.windows(NGRAM).len();
    let distinct = tokens.windows(NGRAM).collect::<HashSet<_>>().len();
    (all > 0).then(|| 1.0 - distinct as f64 / all as f64)
}

/// Perplexity of every text; equal texts are scored once.
async fn perplexities(
    client: &Client,
    points: &[Point<'_>],
    priority: Option<v1::Priority>,
) -> Result<Vec<Option<f64>>, Error> {
    let texts = points.iter().map(|point| {
        let prompt = point.transcript.prompt_token_ids.as_slice();
        (prompt, point.variant.token_ids.as_slice())
    });
    let to_score: HashSet<_> = texts.clone().filter(|text| !text.1.is_empty()).collect();
    let scored: HashMap<_, _> = stream::iter(to_score)
        .map(async |(prompt, text)| {
            let perplexity = perplexity(client, prompt, text, priority).await?;
            Ok::<_, Error>(((prompt, text), perplexity))
        })
        .buffer_unordered(SCORES_IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(texts.map(|text| scored.get(&text).copied()).collect())
}

async fn perplexity(
    client: &Client,
    prompt: &[u32],
    text: &[u32],
    priority: Option<v1::Priority>,
) -> Result<f64, Error> {
    let mut builder = GenerationBuilder::new(prompt::token_ids(prompt.to_vec()));
    builder.variant("baseline", Vec::new());
    if let Some(priority) = priority {
        builder.priority(priority);
    }
    let continuation =
        v1::score_text_request::Continuation::TokenIds(v1::TokenIds { ids: text.to_vec() });
    let scores = client
        .score_text(builder.build_score(continuation))
        .await?
        .scores;
    // One variant was asked for, so one was scored.
    Ok(scores.first().map_or(f64::NAN, |score| score.perplexity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_the_share_of_3_grams_seen_before() {
        assert_eq!(repetition(&[1, 2]), None);
        assert_eq!(repetition(&[1, 2, 3, 4]), Some(0.0));
        assert_eq!(repetition(&[1, 1, 1, 1, 1, 1]), Some(0.75));
        assert_eq!(repetition(&[1, 2, 3, 1, 2, 3]), Some(0.25));
    }

    #[test]
    fn probes_are_averaged_over_generated_tokens() {
        let reading = |position, value| v1::Reading {
            position,
            before: vec![value],
            ..v1::Reading::default()
        };
        let transcript = Transcript {
            prompt_token_ids: vec![2, 5],
            probe_names: vec!["hockey".to_owned()],
            ..Transcript::default()
        };
        let mut variant = VariantTranscript {
            readings: vec![reading(1, 100.0), reading(2, 1.0), reading(3, 2.0)],
            ..VariantTranscript::default()
        };
        assert_eq!(probe_means(&transcript, &variant), [Some(1.5)]);
        variant.readings.truncate(1);
        assert_eq!(probe_means(&transcript, &variant), [None]);
    }
}
