//! What was read at every token, drawn small: one line per probe and variant.

use steering_client::{Transcript, VariantTranscript};

use crate::{output, table::Table};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Cells of a sparkline where the terminal does not say.
const SPARK_WIDTH: usize = 60;
/// Cells that the other columns take, about.
const OTHER_COLUMNS: usize = 70;

/// Values along a variant's tokens.
#[derive(Debug, PartialEq)]
struct Series {
    /// What was read.
    name: String,
    variant: String,
    values: Vec<f32>,
    /// Mean of the values after the edits, where the edits changed them.
    mean_after: Option<f64>,
    /// The token with the largest value.
    peak: String,
}

/// Prints the readings of a transcript, if it has any.
pub(crate) fn print(transcript: &Transcript) -> std::io::Result<()> {
    let series = all(transcript);
    if series.is_empty() {
        return Ok(());
    }
    let room = output::terminal_width().map(|width| width.saturating_sub(OTHER_COLUMNS));
    let width = room.map_or(SPARK_WIDTH, |room| room.clamp(10, SPARK_WIDTH));
    let mut table = Table::new(&[
        "read",
        "variant",
        "per token",
        "mean",
        "edited",
        "max",
        "at",
    ]);
    for one in &series {
        // One scale for all variants, so that they can be compared.
        let scale = range(series.iter().filter(|other| other.name == one.name));
        table.row([
            one.name.clone(),
            one.variant.clone(),
            spark(&one.values, scale, width),
            mean(&one.values).map_or(String::new(), number),
            one.mean_after.map_or(String::new(), number),
            number(f64::from(max(&one.values))),
            one.peak.clone(),
        ]);
    }
    output::line("")?;
    table.print("")
}

fn all(transcript: &Transcript) -> Vec<Series> {
    let prompt_tokens = transcript.prompt_token_ids.len();
    let mut found = Vec::new();
    for (i, name) in transcript.probe_names.iter().enumerate() {
        for variant in &transcript.variants {
            found.extend(probe(name, i, variant, prompt_tokens));
        }
    }
    for (i, hook) in (0..).zip(&transcript.edited_hook_names) {
        for variant in &transcript.variants {
            found.extend(norms(hook, i, variant, prompt_tokens));
        }
    }
    for variant in &transcript.variants {
        let at = |i: usize| piece(variant, i);
        let values = variant.kl_divergence.clone();
        found.extend(series("KL to unsteered", variant, values, None, at));
    }
    found
}

fn probe(
    name: &str,
    index: usize,
    variant: &VariantTranscript,
    prompt_tokens: usize,
) -> Option<Series> {
    let column = |values: &[f32]| values.get(index).copied();
    let readings = &variant.readings;
    let before: Vec<f32> = readings.iter().filter_map(|r| column(&r.before)).collect();
    let after: Vec<f32> = readings.iter().filter_map(|r| column(&r.after)).collect();
    let mean_after = (after != before).then(|| mean(&after)).flatten();
    let at = |i: usize| read_token(variant, readings[i].position, prompt_tokens);
    series(name, variant, before, mean_after, at)
}

fn norms(
    hook: &str,
    index: u32,
    variant: &VariantTranscript,
    prompt_tokens: usize,
) -> Option<Series> {
    let norm = |reading: &steering_client::v1::Reading| {
        let norm = reading.edit_norms.iter().find(|norm| norm.hook == index);
        norm.map(|norm| (norm.relative_norm, reading.position))
    };
    let (values, positions): (Vec<f32>, Vec<u32>) =
        variant.readings.iter().filter_map(norm).unzip();
    let at = |i: usize| read_token(variant, positions[i], prompt_tokens);
    series(&format!("|Δ|/|x| at {hook}"), variant, values, None, at)
}

fn series(
    name: &str,
    variant: &VariantTranscript,
    values: Vec<f32>,
    mean_after: Option<f64>,
    token: impl Fn(usize) -> String,
) -> Option<Series> {
    let largest = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let peak = token(largest?.0);
    Some(Series {
        name: name.to_owned(),
        variant: variant.name.clone(),
        values,
        mean_after,
        peak,
    })
}

/// The token at a position that the model read.
fn read_token(variant: &VariantTranscript, position: u32, prompt_tokens: usize) -> String {
    match (position as usize).checked_sub(prompt_tokens) {
        Some(generated) => piece(variant, generated),
        None => format!("prompt token {position}"),
    }
}

fn piece(variant: &VariantTranscript, index: usize) -> String {
    match variant.pieces.get(index) {
        Some(piece) if !piece.is_empty() => format!("{piece:?}"),
        _ => format!("token {index}"),
    }
}

fn range<'a>(series: impl Iterator<Item = &'a Series>) -> (f32, f32) {
    let values = series.flat_map(|one| &one.values).filter(|v| v.is_finite());
    values.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &value| {
        (lo.min(value), hi.max(value))
    })
}

/// A bar per value, or per run of values where there are more than `width`; a run
/// shows its largest, because peaks are what one looks for.
fn spark(values: &[f32], (lo, hi): (f32, f32), width: usize) -> String {
    let run = values.len().div_ceil(width.max(1)).max(1);
    let bar = |run: &[f32]| {
        let share = (max(run) - lo) / (hi - lo);
        let top = (BARS.len() - 1) as f32;
        // Also for one value only, where the share is not a number.
        let index = (share * top).round().clamp(0.0, top) as usize;
        BARS[index]
    };
    values.chunks(run).map(bar).collect()
}

fn max(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The mean; none of nothing.
pub(crate) fn mean(values: &[f32]) -> Option<f64> {
    let sum: f64 = values.iter().copied().map(f64::from).sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

/// A number in about four digits.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1e6 || (size > 0.0 && size < 1e-3) => return format!("{value:.2e}"),
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steering_client::v1;

    #[test]
    fn sparklines_keep_their_peaks() {
        assert_eq!(spark(&[0.0, 1.0, 7.0], (0.0, 7.0), 60), "▁▂█");
        assert_eq!(spark(&[0.0, 7.0, 1.0, 1.0], (0.0, 7.0), 2), "█▂");
        assert_eq!(spark(&[3.0], (3.0, 3.0), 60), "▁");
        assert_eq!(spark(&[f32::NAN], (0.0, 1.0), 60), "▁");
        assert_eq!(spark(&[], (0.0, 1.0), 60), "");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.12345, -12.3456, 525.0, 12345.6, 1e7, 1e-5].map(number);
        let expected = ["0", "0.123", "-12.35", "525", "12346", "1.00e7", "1.00e-5"];
        assert_eq!(texts, expected);
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[1.0, 2.0]), Some(1.5));
    }

    #[test]
    fn every_reading_becomes_a_line() {
        let reading = |position, before, after| v1::Reading {
            position,
            before: vec![before],
            after: vec![after],
            edit_norms: vec![v1::EditNorm {
                hook: 0,
                relative_norm: 0.5,
            }],
            ..v1::Reading::default()
        };
        let transcript = Transcript {
            prompt_token_ids: vec![2, 5],
            probe_names: vec!["hockey".to_owned()],
            edited_hook_names: vec!["h".to_owned()],
            variants: vec![VariantTranscript {
                name: "steered".to_owned(),
                pieces: vec!["the".to_owned(), " puck".to_owned()],
                readings: vec![reading(1, 0.5, 9.0), reading(2, 1.5, 9.0)],
                kl_divergence: vec![0.1, 0.2],
                ..VariantTranscript::default()
            }],
            ..Transcript::default()
        };
        let found = all(&transcript);
        let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["hockey", "|Δ|/|x| at h", "KL to unsteered"]);
        assert_eq!(found[0].values, [0.5, 1.5]);
        assert_eq!(found[0].mean_after, Some(9.0));
        assert_eq!(found[0].peak, "\"the\"");
        // The last of equal values.
        assert_eq!(found[1].peak, "\"the\"");
        assert_eq!(found[2].peak, "\" puck\"");
    }
}
