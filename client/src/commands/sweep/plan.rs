//! Which strengths, and how many in one request.

use clap::Args;
use steering_client::v1;

use crate::failure::hinted;

/// More points than this are a mistake in the step.
const POINTS_MAX: usize = 1000;

/// Strengths from one to another.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Sweep")]
pub(super) struct Range {
    /// First strength.
    #[arg(
        long,
        value_name = "A",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    from: f64,
    /// Last strength.
    #[arg(
        long,
        value_name = "B",
        default_value_t = 1000.0,
        allow_negative_numbers = true
    )]
    to: f64,
    /// Distance between strengths.
    #[arg(long, value_name = "S", default_value_t = 25.0)]
    step: f64,
}

impl Range {
    /// The strengths, both ends included where the step meets them.
    pub(super) fn strengths(self) -> anyhow::Result<Vec<f32>> {
        let Self { from, to, step } = self;
        let are_finite = [from, to, step].iter().all(|v| (*v as f32).is_finite());
        if !(are_finite && step > 0.0) {
            return Err(hinted(
                format!("cannot go from {from} to {to} in steps of {step}"),
                "--from and --to are finite, --step is above 0",
            ));
        }
        if to < from {
            return Err(hinted(
                format!("--to {to} is below --from {from}"),
                "exchange them",
            ));
        }
        // A little slack: 0.3 / 0.1 is below 3.
        let steps = ((to - from) / step + 1e-6).floor();
        if steps >= POINTS_MAX as f64 {
            return Err(hinted(
                format!("{} strengths are more than {POINTS_MAX}", steps + 1.0),
                "make --step larger",
            ));
        }
        let strength = |i: u32| (from + f64::from(i) * step) as f32;
        Ok((0..=steps as u32).map(strength).collect())
    }
}

/// A name and its edits.
pub(super) type Variant = (String, Vec<v1::Intervention>);

/// The baseline, then a variant for every strength.
pub(super) fn variants(edits: &[v1::Intervention], strengths: &[f32]) -> Vec<Variant> {
    let baseline = ("baseline".to_owned(), Vec::new());
    let steered = strengths.iter().map(|&strength| {
        let edits = edits.iter().map(|edit| with_strength(edit, strength));
        (strength.to_string(), edits.collect())
    });
    std::iter::once(baseline).chain(steered).collect()
}

fn with_strength(edit: &v1::Intervention, strength: f32) -> v1::Intervention {
    use v1::{feature_edit::Operation, intervention::Edit};
    let mut edit = edit.clone();
    match &mut edit.edit {
        Some(Edit::Feature(feature)) => feature.operation = Some(Operation::Set(strength)),
        Some(Edit::VectorAdd(add)) => add.strength = strength,
        // A sweep has no others.
        Some(Edit::DirectionAblate(_) | Edit::ProjectionClamp(_)) | None => {}
    }
    edit
}

/// Variants in runs that the worker takes in one request.
pub(super) fn batches<'a>(variants: &'a [Variant], limits: &v1::Limits) -> Vec<&'a [Variant]> {
    let limits = [limits.max_variants, limits.max_sequences];
    // A worker that names no limit gets them all.
    let most = limits.into_iter().filter(|&limit| limit > 0).min();
    let most = most.map_or(variants.len(), |most| most as usize);
    variants.chunks(most.max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strengths(from: f64, to: f64, step: f64) -> Vec<f32> {
        let range = Range { from, to, step };
        range.strengths().expect("a range")
    }

    #[test]
    fn both_ends_are_strengths() {
        let notebook = strengths(0.0, 1000.0, 25.0);
        assert_eq!((notebook.len(), notebook[40]), (41, 1000.0));
        assert_eq!(strengths(0.0, 0.3, 0.1), [0.0, 0.1, 0.2, 0.3]);
        assert_eq!(strengths(0.0, 1.0, 0.1)[9], 0.9);
        assert_eq!(strengths(-2.0, 3.0, 2.0), [-2.0, 0.0, 2.0]);
        assert_eq!(strengths(5.0, 5.0, 1.0), [5.0]);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let refused = [
            (0.0, 1.0, 0.0),
            (0.0, 1.0, -1.0),
            (1.0, 0.0, 1.0),
            (0.0, 1.0, 1e-4),
            (0.0, f64::INFINITY, 1.0),
            (0.0, 1e39, 1e38),
            (f64::NAN, 1.0, 1.0),
        ];
        for (from, to, step) in refused {
            assert!(
                Range { from, to, step }.strengths().is_err(),
                "{from} {to} {step}"
            );
        }
    }

    #[test]
    fn requests_stay_within_the_limits() {
        let variants = variants(&[], &strengths(0.0, 9.0, 1.0));
        let sizes = |max_variants, max_sequences| {
            let limits = v1::Limits {
                max_variants,
                max_sequences,
                ..v1::Limits::default()
            };
            let batches = batches(&variants, &limits);
            batches.iter().map(|batch| batch.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(64, 64), [11]);
        assert_eq!(sizes(64, 4), [4, 4, 3]);
        assert_eq!(sizes(0, 0), [11]);
    }
}
