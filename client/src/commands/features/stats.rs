//! `steer features stats`.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

use clap::Args;
use futures::stream;
use indicatif::ProgressBar;
use serde::Serialize;
use steering_client::{Client, prompt, statistics::StatisticsMessage, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    cli::Globals,
    commands::dataset::Dataset,
    failure::hinted,
    output, progress,
    table::{Table, print_card},
    views::StatisticsVersionView,
};

/// Texts whose activations are under way.
const IN_FLIGHT: usize = 32;
/// Bytes of activations sent at once; the registry takes up to 4 MiB.
const MESSAGE_BYTES: usize = 2 << 20;
/// Messages that wait to be sent.
const WAITING: usize = 4;

/// Compute what every feature of an SAE does on a file of texts, and keep it.
///
/// The worker reads the texts; the registry runs the whole SAE over the activations of every
/// token and keeps, for each feature, how often it fires, its largest and mean activation,
/// percentiles (within 2 %) and the five texts in which it fires most strongly. From then on
/// `--feature LABEL=0.5max` is half of the largest activation found here, whatever the label's
/// source says, and `steer features show` shows the statistics. A new run takes the place of
/// the one before, which is kept. A run that is interrupted stores nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
The file has a JSON object a line, and may be gzipped. Special tokens are not counted, as
SAELens and Neuronpedia leave out the BOS, on which activations are far larger than on text.
Without a FILE, the versions that are kept are listed, the one that is used first.

Examples:
  steer features stats posts.jsonl.gz
  steer features stats posts.jsonl --sae gemma-scope-l21-65k --text body --limit 2000
  steer features stats --sae gemma-scope-l21-65k
  steer features stats --rm 3f29c1d0

JSON, --json: `version`; without a FILE `versions[]`; with --rm `removed`")]
pub(super) struct StatsArgs {
    /// The file: .jsonl or .jsonl.gz.
    file: Option<PathBuf>,
    /// Key of the text.
    #[arg(long, value_name = "KEY", default_value = "text")]
    text: String,
    /// Only the first N texts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Cut texts to this many tokens, BOS included.
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Count special tokens too.
    #[arg(long)]
    include_special_tokens: bool,
    /// Remove the version whose digest starts with this.
    #[arg(long, value_name = "DIGEST", conflicts_with = "file")]
    rm: Option<String>,
}

#[derive(Serialize)]
struct ComputedDocument {
    version: StatisticsVersionView,
}

#[derive(Serialize)]
struct VersionsDocument {
    versions: Vec<StatisticsVersionView>,
}

#[derive(Serialize)]
struct RemovedDocument {
    removed: String,
}

pub(super) async fn run(args: StatsArgs, client: &Client, globals: &Globals) -> anyhow::Result<()> {
    let sae_id = globals.sae(client).await?;
    if let Some(digest) = args.rm {
        client.delete_feature_statistics(&sae_id, &digest).await?;
        if globals.json {
            return output::json(&RemovedDocument { removed: digest });
        }
        return Ok(output::line(format_args!("{digest} removed"))?);
    }
    let Some(file) = args.file.clone() else {
        return list(client, &sae_id, globals.json).await;
    };
    let dataset = Dataset::read(&file, &args.text, None, args.limit)?;
    let sae = client.get_sae(&sae_id).await?;
    let model = client.get_model().await?;
    let max_tokens = args.max_tokens.min(model.context_length);
    let origin = file.file_name().unwrap_or_default().to_string_lossy();
    let config = v1::FeatureStatisticsConfig {
        sae_id,
        source: Some(v1::CorpusSource {
            origin: origin.into_owned(),
            data_digest: dataset.digest.clone(),
            model_id: model.model_id,
            model_digest: model.model_digest,
            max_tokens,
        }),
        include_special_tokens: args.include_special_tokens,
    };
    let (sender, messages) = mpsc::channel(WAITING);
    let sending = Sending {
        client,
        sae: &sae,
        sender,
        vocabulary: HashMap::new(),
    };
    let sending = sending.run(config, &dataset, max_tokens);
    let computing = client.compute_feature_statistics(ReceiverStream::new(messages));
    let (sent, computed) = tokio::join!(sending, computing);
    // Where sending failed, the registry has refused what came: that is not the reason.
    sent?;
    let version = StatisticsVersionView::from(computed?);
    if globals.json {
        return output::json(&ComputedDocument { version });
    }
    Ok(print_card(&version.card())?)
}

async fn list(client: &Client, sae_id: &str, json: bool) -> anyhow::Result<()> {
    let versions = client
        .list_feature_statistics_versions(sae_id, None)
        .await?;
    let versions = versions.items.into_iter().map(StatisticsVersionView::from);
    let versions: Vec<_> = versions.collect();
    if json {
        return output::json(&VersionsDocument { versions });
    }
    let mut table = Table::new(&[
        "digest", "stored", "texts", "tokens", "fired", "data", "model",
    ]);
    for version in &versions {
        table.row(version.cells());
    }
    Ok(table.print("no statistics; compute them with `steer features stats FILE`")?)
}

/// From the worker to the registry.
struct Sending<'a> {
    client: &'a Client,
    sae: &'a v1::Sae,
    sender: mpsc::Sender<StatisticsMessage>,
    /// What the worker has said of tokens.
    vocabulary: HashMap<u32, v1::TextToken>,
}

impl Sending<'_> {
    /// Sends everything, or as much as the registry takes: it says why.
    async fn run(
        mut self,
        config: v1::FeatureStatisticsConfig,
        dataset: &Dataset,
        max_tokens: u32,
    ) -> anyhow::Result<()> {
        let texts = (0..).zip(&dataset.examples);
        let texts = texts.filter(|(_, example)| !example.text.is_empty());
        let texts: Vec<v1::CaptureText> = texts
            .zip(0..)
            .map(|((_, example), id)| v1::CaptureText {
                id,
                prompt: Some(prompt::text(&example.text)),
            })
            .collect();
        let bar = progress::texts(texts.len() as u64, "counting");
        let sent = self.send(config, texts, max_tokens, &bar).await;
        bar.finish_and_clear();
        let Some(text_count) = sent? else {
            return Ok(());
        };
        let end = v1::FeatureStatisticsEnd {
            text_count,
            dropped_count: dataset.examples.len() as u64 - text_count,
        };
        // The registry's answer tells whether it was taken.
        let _ = self.sender.send(StatisticsMessage::End(end)).await;
        Ok(())
    }

    /// How many texts were sent; none if the registry takes no more.
    async fn send(
        &mut self,
        config: v1::FeatureStatisticsConfig,
        texts: Vec<v1::CaptureText>,
        max_tokens: u32,
        bar: &ProgressBar,
    ) -> anyhow::Result<Option<u64>> {
        let capture = v1::CaptureConfig {
            hook_name: self.sae.hook_name.clone(),
            pooling: Some(v1::capture_config::Pooling::PerToken(
                v1::PerTokenPooling {},
            )),
            max_tokens,
        };
        if self
            .sender
            .send(StatisticsMessage::Config(config))
            .await
            .is_err()
        {
            return Ok(None);
        }
        let texts = stream::iter(texts);
        let mut captured = self
            .client
            .capture_activations(capture, texts, IN_FLIGHT)
            .await?;
        let mut text_count = 0;
        // In the file's order, so that the same file gives the same statistics, bit for bit.
        while let Some(text) = captured.next_in_order().await? {
            bar.inc(1);
            if text.dropped() != v1::CaptureDrop::Unspecified {
                continue;
            }
            text_count += 1;
            if !self.send_text(text).await? {
                return Ok(None);
            }
        }
        Ok(Some(text_count))
    }

    /// Whether the registry still takes messages.
    async fn send_text(&mut self, text: v1::CapturedText) -> anyhow::Result<bool> {
        let width = self.sae.d_in as usize;
        if text.values.len() != text.token_ids.len() * width {
            return Err(hinted(
                format!(
                    "the activations are not {width} wide, as SAE {:?} needs them",
                    self.sae.sae_id
                ),
                "the worker serves another model: `steer status` names it",
            ));
        }
        let tokens = self.tokens(&text.token_ids).await?;
        let begin = StatisticsMessage::Text(v1::TextTokens { tokens });
        if self.sender.send(begin).await.is_err() {
            return Ok(false);
        }
        let at_once = (MESSAGE_BYTES / (4 * width)).max(1);
        for values in text.values.chunks(at_once * width) {
            let rows = v1::ActivationRows {
                values: values.to_vec(),
            };
            if self
                .sender
                .send(StatisticsMessage::Rows(rows))
                .await
                .is_err()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What tokens read as; asked for once each.
    async fn tokens(&mut self, ids: &[u32]) -> anyhow::Result<Vec<v1::TextToken>> {
        let unknown: BTreeSet<u32> = ids
            .iter()
            .copied()
            .filter(|id| !self.vocabulary.contains_key(id))
            .collect();
        if !unknown.is_empty() {
            let ids = prompt::token_ids(unknown.into_iter().collect());
            for token in self.client.tokenize(ids).await?.tokens {
                let v1::TokenPiece {
                    token_id,
                    piece,
                    special,
                } = token;
                let text = output::piece_text(&piece);
                let token = v1::TextToken { text, special };
                self.vocabulary.insert(token_id, token);
            }
        }
        let known = |id| self.vocabulary.get(id).cloned();
        let tokens: Option<Vec<_>> = ids.iter().map(known).collect();
        tokens.ok_or_else(|| anyhow::anyhow!("the worker left out a token that it was asked for"))
    }
}
