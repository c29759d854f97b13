//! The table and the JSON document of a sweep.

use serde::Serialize;
use steering_client::Transcript;

use super::measure::Point;
use crate::{output, report::VariantDocument, series::number, table::Table};

/// A sweep, measured.
pub(super) struct Sweep<'a> {
    /// The feature or CAV, as a readout is written.
    pub(super) swept: String,
    /// At least one.
    pub(super) transcripts: &'a [Transcript],
    pub(super) points: &'a [Point<'a>],
    pub(super) warnings: &'a [String],
}

#[derive(Serialize)]
pub(super) struct Document<'a> {
    model: &'a str,
    prompt_token_ids: &'a [u32],
    seed: u64,
    swept: &'a str,
    probes: &'a [String],
    points: Vec<PointDocument<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct PointDocument<'a> {
    strength: Option<f32>,
    probe_means: &'a [Option<f64>],
    perplexity: Option<f64>,
    repetition: Option<f64>,
    #[serde(flatten)]
    variant: VariantDocument<'a>,
}

impl<'a> PointDocument<'a> {
    fn new(point: &'a Point<'a>) -> Self {
        let Point {
            strength,
            transcript,
            variant,
            probe_means,
            perplexity,
            repetition,
        } = point;
        Self {
            strength: *strength,
            probe_means,
            perplexity: *perplexity,
            repetition: *repetition,
            variant: VariantDocument::new(transcript, variant),
        }
    }
}

impl Sweep<'_> {
    /// What all requests have in common.
    pub(super) fn common(&self) -> &Transcript {
        &self.transcripts[0]
    }

    pub(super) fn document(&self) -> Document<'_> {
        let common = self.common();
        Document {
            model: &common.model_id,
            prompt_token_ids: &common.prompt_token_ids,
            seed: common.seed,
            swept: &self.swept,
            probes: &common.probe_names,
            points: self.points.iter().map(PointDocument::new).collect(),
            warnings: self.warnings,
        }
    }

    pub(super) fn print(&self) -> std::io::Result<()> {
        let common = self.common();
        let probes = common.probe_names.iter().map(String::as_str);
        let headings: Vec<&str> = std::iter::once("strength")
            .chain(probes)
            .chain(["perplexity", "repetition", "tokens", "text"])
            .collect();
        let mut table = Table::new(&headings);
        for point in self.points {
            let mut cells = vec![strength(point)];
            cells.extend(point.probe_means.iter().copied().map(cell));
            cells.extend([cell(point.perplexity), cell(point.repetition)]);
            cells.push(point.variant.token_ids.len().to_string());
            cells.push(point.variant.text.trim().to_owned());
            table.row(cells);
        }
        table.print("nothing")?;
        output::dim(format_args!(
            "{} · seed {} · {} prompt tokens",
            common.model_id,
            common.seed,
            common.prompt_token_ids.len()
        ));
        Ok(())
    }
}

/// The strength of a point, for people.
pub(super) fn strength(point: &Point<'_>) -> String {
    point
        .strength
        .map_or("baseline".to_owned(), |strength| strength.to_string())
}

/// A measurement, for people.
pub(super) fn cell(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), number)
}
