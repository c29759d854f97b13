//! Order statistics, fairness, and the numbers of one run.

use std::time::Duration;

use serde::Serialize;

use crate::measure::Sample;

/// The smallest value that at least `share` of them do not exceed (nearest rank).
pub(crate) fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// The middle value; of an even number, the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// Jain's index of fairness: 1 where all are equal, 1/n where one has everything.
pub(crate) fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

/// Two percentiles of times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Times {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) count: usize,
}

impl Times {
    pub(crate) fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let times = times.into_iter().map(|time| time.as_secs_f64() * 1e3);
        let values: Vec<f64> = times.collect();
        Self {
            p50: percentile(&values, 0.50),
            p99: percentile(&values, 0.99),
            count: values.len(),
        }
    }
}

/// One run of a load.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) requests: usize,
    /// Refused because the queue was full; not part of the times.
    pub(crate) refused: usize,
    pub(crate) generated_tokens: usize,
    pub(crate) wall_s: f64,
    pub(crate) tokens_per_s: f64,
    pub(crate) time_to_first_token_ms: Times,
    /// Of a request: from its first token to its last, over the tokens in between.
    pub(crate) time_per_token_ms: Times,
    /// Between a token and the next, all requests pooled.
    pub(crate) token_gap_ms: Times,
    /// Jain's index over the tokens per second of streams, or of requests in open loop.
    pub(crate) fairness: Option<f64>,
}

impl Summary {
    /// Sums up streams of samples.
    pub(crate) fn of(streams: &[Vec<Sample>], wall: Duration, refused: usize) -> Self {
        let samples = || streams.iter().flatten();
        let generated_tokens = samples().map(Sample::tokens).sum();
        let wall_s = wall.as_secs_f64();
        let rates: Vec<f64> = streams.iter().filter_map(|stream| rate(stream)).collect();
        Self {
            requests: samples().count(),
            refused,
            generated_tokens,
            wall_s,
            tokens_per_s: generated_tokens as f64 / wall_s,
            time_to_first_token_ms: Times::of(samples().filter_map(Sample::time_to_first)),
            time_per_token_ms: Times::of(samples().filter_map(Sample::time_per_token)),
            token_gap_ms: Times::of(samples().flat_map(Sample::gaps)),
            fairness: jain(&rates),
        }
    }
}

/// Tokens per second of a stream, from its first request to its last token.
fn rate(stream: &[Sample]) -> Option<f64> {
    let start = stream.first()?.start;
    let end = stream
        .iter()
        .filter_map(|sample| sample.times.last())
        .max()?;
    let tokens: usize = stream.iter().map(Sample::tokens).sum();
    let seconds = end.duration_since(start).as_secs_f64();
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.50), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[7.0, 8.0], 0.0), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn fairness_is_one_for_equals_and_one_nth_for_a_monopoly() {
        assert_eq!(jain(&[2.0; 8]), Some(1.0));
        assert_eq!(jain(&[5.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(jain(&[0.0]), None);
        assert_eq!(jain(&[]), None);
    }

    #[test]
    fn a_run_is_summed_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let stream = |times: &[u64]| {
            vec![Sample {
                start,
                times: times.iter().map(|&ms| at(ms)).collect(),
            }]
        };
        let streams = [stream(&[10, 20, 40]), stream(&[20, 30, 40])];
        let summary = Summary::of(&streams, Duration::from_millis(50), 1);
        assert_eq!((summary.requests, summary.refused), (2, 1));
        assert_eq!(summary.generated_tokens, 6);
        assert!((summary.tokens_per_s - 120.0).abs() < 1e-9);
        let all = |times: Times| (times.p50, times.p99, times.count);
        let first = all(summary.time_to_first_token_ms);
        assert_eq!(first, (Some(10.0), Some(20.0), 2));
        assert_eq!(all(summary.time_per_token_ms), (Some(10.0), Some(15.0), 2));
        assert_eq!(all(summary.token_gap_ms), (Some(10.0), Some(20.0), 4));
        assert_eq!(summary.fairness, Some(1.0));
    }
}
