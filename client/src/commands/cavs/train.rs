//! `steer cavs train`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::stream;
use serde::Serialize;
use steering_client::{Client, prompt, v1};

use super::views;
use crate::{commands::dataset::Dataset, output, progress, table::Table, views::CavView};
use journal::{Capture, Journal};

mod journal;

/// Texts whose activations are under way.
const IN_FLIGHT: usize = 32;

/// Train a CAV for every label of a file of texts.
///
/// The worker reads the texts; the mean activation of each is an example. The registry trains
/// one direction per label against all others and stores it with what a held-out part of the
/// examples says: AUCs with 95 % intervals beside trainings on permuted labels and random
/// directions. A label is called noise if its p-value, which is from the permuted labels, is above
/// 0.05, or the interval of its AUC not above 0.5; random directions are shown to compare with.
/// Texts that are there several times are held out together.
#[derive(Debug, Args)]
#[command(after_help = "\
The file has a JSON object a line, and may be gzipped. Texts that are empty, or have no tokens
left after --skip-tokens, are dropped and counted.

Activations are kept in a work file, by default FILE.HOOK.activations.jsonl: a command that was
interrupted goes on where it was, and another --method starts at once. Delete it when done.

Examples:
  steer cavs train posts.jsonl.gz --hook blocks.21.hook_resid_post
  steer cavs train posts.jsonl --hook blocks.9.hook_resid_post --text body --label group \\
      --limit 1600 --method mean-difference --json")]
pub(super) struct TrainArgs {
    /// The file: .jsonl or .jsonl.gz.
    file: PathBuf,
    /// Where to read, e.g. blocks.21.hook_resid_post.
    #[arg(long, value_name = "HOOK")]
    hook: String,
    /// Model to record [default: what the worker serves].
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Key of the text.
    #[arg(long, value_name = "KEY", default_value = "text")]
    text: String,
    /// Key of the label: a string, or a number.
    #[arg(long, value_name = "KEY", default_value = "label_text")]
    label: String,
    /// Only the first N texts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Cut texts to this many tokens, BOS included; 0 = the whole context.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: u32,
    /// Leave this many leading tokens out of the mean, not counting the BOS.
    #[arg(long, value_name = "N", default_value_t = 64)]
    skip_tokens: u32,
    /// How a direction is found.
    #[arg(long, value_enum, default_value_t = Method::Svm)]
    method: Method,
    /// Share of each label's examples kept for the statistics, 0.05 to 0.5.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    held_out: f64,
    /// Trainings on permuted labels: 0, or 20 to 1000.
    #[arg(long, value_name = "N", default_value_t = 20)]
    null_trials: u32,
    /// Seed of the split and the permutations.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to keep activations.
    #[arg(long, value_name = "FILE")]
    work: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    /// L2-regularised squared hinge, C = 1, no intercept: scikit-learn's LinearSVC.
    Svm,
    /// Mean of the label's examples − mean of the others.
    MeanDifference,
    /// L2-regularised logistic regression, C = 1, no intercept.
    Logistic,
}

#[derive(Serialize)]
struct TrainDocument {
    cavs: Vec<CavView>,
    /// Names of those that keep what an earlier training said of the same numbers.
    trained_before: Vec<String>,
    text_count: usize,
    dropped_count: usize,
    work_file: PathBuf,
}

pub(super) async fn run(args: TrainArgs, client: &Client, json: bool) -> anyhow::Result<()> {
    let dataset = Dataset::read(&args.file, &args.text, Some(&args.label), args.limit)?;
    let model = client.get_model().await?;
    let header = journal::Header {
        hook_name: args.hook.clone(),
        model_digest: model.model_digest.clone(),
        max_tokens: args.max_tokens,
        skip_tokens: args.skip_tokens,
    };
    let work = args
        .work
        .clone()
        .unwrap_or_else(|| work_file(&args.file, &args.hook));
    let mut journal = Journal::open(&work, &header)?;
    capture(client, &header, &dataset, &mut journal).await?;

    let kept = dataset.examples.iter().filter_map(|example| {
        let values = journal.activation(&example.digest)?;
        Some(v1::LabelledActivation {
            label: example.label.clone(),
            values: values.to_vec(),
        })
    });
    let kept: Vec<v1::LabelledActivation> = kept.collect();
    let text_count = dataset.examples.len();
    let dropped_count = text_count - kept.len();
    let config = config(&args, &dataset, model, dropped_count);
    let spinner = progress::spinner(format!("training on {} examples", kept.len()));
    let trained = client.train_cavs(config, stream::iter(kept)).await;
    spinner.finish_and_clear();
    let v1::TrainCavsResponse {
        cavs,
        trained_before,
    } = trained?;
    let document = TrainDocument {
        cavs: views(cavs),
        trained_before,
        text_count,
        dropped_count,
        work_file: work,
    };
    if json {
        return output::json(&document);
    }
    Ok(document.print()?)
}

/// Asks the worker for what the journal does not have.
async fn capture(
    client: &Client,
    header: &journal::Header,
    dataset: &Dataset,
    journal: &mut Journal,
) -> anyhow::Result<()> {
    let mut asked = std::collections::HashSet::new();
    let missing = dataset.examples.iter().enumerate().filter(|(_, example)| {
        let wanted = !example.text.is_empty() && !journal.has(&example.digest);
        wanted && asked.insert(example.digest)
    });
    let texts: Vec<v1::CaptureText> = missing
        .map(|(i, example)| v1::CaptureText {
            id: i as u64,
            prompt: Some(prompt::text(&example.text)),
        })
        .collect();
    if texts.is_empty() {
        return Ok(());
    }
    let config = v1::CaptureConfig {
        hook_name: header.hook_name.clone(),
        pooling: Some(v1::capture_config::Pooling::Mean(v1::MeanPooling {
            skip_tokens: header.skip_tokens,
        })),
        max_tokens: header.max_tokens,
    };
    let bar = progress::texts(texts.len() as u64, "reading");
    let mut captured = client
        .capture_activations(config, stream::iter(texts), IN_FLIGHT)
        .await?;
    while let Some(text) = captured.next().await? {
        let example = usize::try_from(text.id)
            .ok()
            .and_then(|i| dataset.examples.get(i));
        let example = example.context("the worker answered a text that was not sent")?;
        let capture = match text.dropped() {
            v1::CaptureDrop::Unspecified => Capture::Values(text.values),
            v1::CaptureDrop::TooShort => Capture::TooShort,
            v1::CaptureDrop::NotFinite => Capture::NotFinite,
        };
        journal.add(example.digest, capture)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn config(
    args: &TrainArgs,
    dataset: &Dataset,
    model: v1::GetModelResponse,
    dropped_count: usize,
) -> v1::CavTrainingConfig {
    let method = match args.method {
        Method::Svm => v1::CavMethod::Svm,
        Method::MeanDifference => v1::CavMethod::MeanDifference,
        Method::Logistic => v1::CavMethod::Logistic,
    };
    let origin = args.file.file_name().unwrap_or_default().to_string_lossy();
    v1::CavTrainingConfig {
        hook_name: args.hook.clone(),
        model_id: args.model.clone().unwrap_or(model.model_id),
        method: method.into(),
        held_out: Some(args.held_out),
        null_trials: Some(args.null_trials),
        seed: Some(args.seed),
        source: Some(v1::CavDataSource {
            origin: origin.into_owned(),
            data_digest: dataset.digest.clone(),
            model_digest: model.model_digest,
            max_tokens: args.max_tokens,
            skip_tokens: args.skip_tokens,
            text_count: dataset.examples.len() as u64,
            dropped_count: dropped_count as u64,
        }),
    }
}

/// FILE.HOOK.activations.jsonl.
fn work_file(file: &Path, hook: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{hook}.activations.jsonl"));
    name.into()
}

impl TrainDocument {
    fn print(&self) -> std::io::Result<()> {
        let mut table = Table::new(&[
            "cav", "examples", "AUC", "95 %", "permuted", "random", "p", "verdict",
        ]);
        for cells in self.cavs.iter().filter_map(CavView::training_cells) {
            table.row(cells);
        }
        table.print("no CAVs")?;
        if let Some(summary) = self.cavs.first().and_then(CavView::training_summary) {
            output::line(summary)?;
        }
        if !self.trained_before.is_empty() {
            output::dim(format_args!(
                "the same numbers were stored before, with what their first training said, which is \
                 shown: {}",
                self.trained_before.join(", ")
            ));
        }
        output::dim(format_args!(
            "{} texts, {} dropped; activations are kept in {}",
            self.text_count,
            self.dropped_count,
            self.work_file.display()
        ));
        Ok(())
    }
}
