//! `steer inspect`.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use console::style;
use futures::stream;
use serde::Serialize;
use steering_client::{Client, prompt, v1};

use super::options::text_or_stdin;
use crate::{cli::Globals, output};

mod html;
mod terminal;

/// Bytes of activations sent at once; the registry takes up to 4 MiB and 1024 rows.
const REQUEST_BYTES: usize = 2 << 20;
const ROWS_MAX: usize = 1024;

/// Show which features of an SAE fire on a text, token by token.
///
/// The worker reads the text, and the registry runs the whole SAE over its activations at the
/// SAE's hook point. Strengths are shaded beside the largest of the text; special tokens,
/// on which activations are often far larger, do not count for that.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer inspect 'The goalie stopped the puck.'
  steer inspect 'The goalie stopped the puck.' --top 3 --html goalie.html
  steer inspect - --sae gemma-scope-l21-65k --json < letter.txt

JSON, --json: one object
  {\"sae_id\", \"hook_name\", \"tokens\": [{\"token_id\", \"piece\", \"special\", \"active_count\",
  \"features\": [{\"feature_index\", \"label\", \"activation\"}]}]}")]
pub(crate) struct InspectArgs {
    /// The text, as it is; `-` = standard input.
    text: String,
    /// Features to show of each token, strongest first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
    /// Read at most this many tokens, BOS included.
    #[arg(long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Write a picture: one HTML file that needs no other.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What was found in a text.
#[derive(Debug, Serialize)]
struct Inspection {
    sae_id: String,
    hook_name: String,
    tokens: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Token {
    token_id: u32,
    piece: String,
    special: bool,
    active_count: u32,
    features: Vec<Feature>,
}

#[derive(Debug, Clone, Serialize)]
struct Feature {
    feature_index: u32,
    label: String,
    activation: f32,
}

pub(crate) async fn run(args: InspectArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let sae = client.get_sae(&globals.sae(&client).await?).await?;
    let text = text_or_stdin(&args.text)?;
    let captured = capture(&client, &sae, &text, args.max_tokens).await?;
    let rows = encode(&client, &sae, &captured.values, args.top).await?;
    let pieces = client.tokenize(prompt::text(text)).await?.tokens;
    let tokens = captured.token_ids.iter().zip(pieces).zip(rows);
    let tokens = tokens.map(|((&token_id, piece), row)| Token::new(token_id, piece, row));
    let inspection = Inspection {
        sae_id: sae.sae_id,
        hook_name: sae.hook_name,
        tokens: tokens.collect::<anyhow::Result<_>>()?,
    };
    if let Some(path) = &args.html {
        let page = html::page(&inspection);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        output::dim(format_args!("wrote {}", path.display()));
    }
    if globals.json {
        return output::json(&inspection);
    }
    terminal::print(&inspection)?;
    let note = format!("{} at {}", inspection.sae_id, inspection.hook_name);
    output::note(style(note).for_stderr().dim());
    Ok(())
}

/// The activation at every token.
async fn capture(
    client: &Client,
    sae: &v1::Sae,
    text: &str,
    max_tokens: u32,
) -> anyhow::Result<v1::CapturedText> {
    let context = client.get_model().await?.context_length;
    let config = v1::CaptureConfig {
        hook_name: sae.hook_name.clone(),
        pooling: Some(v1::capture_config::Pooling::PerToken(
            v1::PerTokenPooling {},
        )),
        max_tokens: max_tokens.min(context),
    };
    let text = v1::CaptureText {
        id: 0,
        prompt: Some(prompt::text(text)),
    };
    let mut stream = client
        .capture_activations(config, stream::iter([text]), 1)
        .await?;
    let captured = stream
        .next()
        .await?
        .context("the worker gave no activations")?;
    while stream.next().await?.is_some() {}
    match captured.dropped() {
        v1::CaptureDrop::Unspecified => {}
        v1::CaptureDrop::TooShort => bail!("the text has no tokens"),
        v1::CaptureDrop::NotFinite => bail!("the activations are not all finite"),
    }
    if captured.values.len() != captured.token_ids.len() * sae.d_in as usize {
        bail!(
            "the activations are not {} wide, as SAE {:?} needs them: is it for another model?",
            sae.d_in,
            sae.sae_id
        );
    }
    Ok(captured)
}

/// What the SAE finds in each row.
async fn encode(
    client: &Client,
    sae: &v1::Sae,
    values: &[f32],
    top_k: u32,
) -> anyhow::Result<Vec<v1::EncodedActivation>> {
    let width = sae.d_in as usize;
    let at_once = (REQUEST_BYTES / (4 * width)).clamp(1, ROWS_MAX);
    let mut rows = Vec::with_capacity(values.len() / width);
    for values in values.chunks(at_once * width) {
        let request = v1::EncodeActivationsRequest {
            sae_id: sae.sae_id.clone(),
            values: values.to_vec(),
            top_k,
        };
        rows.extend(
            client
                .encode_activations(request, values.len() / width)
                .await?,
        );
    }
    Ok(rows)
}

impl Token {
    fn new(
        token_id: u32,
        piece: v1::TokenPiece,
        row: v1::EncodedActivation,
    ) -> anyhow::Result<Self> {
        let v1::TokenPiece {
            token_id: tokenized,
            piece,
            special,
        } = piece;
        if token_id != tokenized {
            bail!("the worker's tokens changed between two requests");
        }
        let v1::EncodedActivation {
            features,
            active_count,
        } = row;
        let feature = |feature: v1::ActiveFeature| {
            let v1::ActiveFeature {
                feature_index,
                activation,
                label,
            } = feature;
            Feature {
                feature_index,
                label,
                activation,
            }
        };
        Ok(Self {
            token_id,
            piece,
            special,
            active_count,
            features: features.into_iter().map(feature).collect(),
        })
    }

    /// The piece with visible spaces as spaces.
    fn text(&self) -> String {
        output::piece_text(&self.piece)
    }
}

impl Feature {
    /// Its label, or its index.
    fn name(&self) -> String {
        if self.label.is_empty() {
            format!("#{}", self.feature_index)
        } else {
            self.label.clone()
        }
    }
}

impl Inspection {
    /// Activations that count as strongest: those of tokens that are not special, unless
    /// all are.
    fn counted(&self) -> impl Iterator<Item = &Token> {
        let all_special = self.tokens.iter().all(|token| token.special);
        self.tokens
            .iter()
            .filter(move |token| all_special || !token.special)
    }

    /// The largest activation; 0 if nothing fires.
    fn largest(&self) -> f32 {
        let features = self.counted().flat_map(|token| &token.features);
        features
            .map(|feature| feature.activation)
            .fold(0.0, f32::max)
    }

    /// The features that fire, each with its largest activation, largest first.
    fn strongest(&self) -> Vec<Feature> {
        let mut largest: HashMap<u32, &Feature> = HashMap::new();
        for feature in self.counted().flat_map(|token| &token.features) {
            let kept = largest.entry(feature.feature_index).or_insert(feature);
            if feature.activation > kept.activation {
                *kept = feature;
            }
        }
        let mut features: Vec<Feature> = largest.into_values().cloned().collect();
        features.sort_by(|a, b| {
            let by_activation = b.activation.total_cmp(&a.activation);
            by_activation.then(a.feature_index.cmp(&b.feature_index))
        });
        features
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn inspection() -> Inspection {
        let token = |piece: &str, special, features: &[(u32, &str, f32)]| Token {
            token_id: 1,
            piece: piece.to_owned(),
            special,
            active_count: 2,
            features: features
                .iter()
                .map(|&(feature_index, label, activation)| Feature {
                    feature_index,
                    label: label.to_owned(),
                    activation,
                })
                .collect(),
        };
        Inspection {
            sae_id: "s".to_owned(),
            hook_name: "blocks.1.hook_resid_post".to_owned(),
            tokens: vec![
                token("<bos>", true, &[(9, "", 900.0)]),
                token("▁goalie<", false, &[(3, "hockey <b>", 8.0), (4, "", 2.0)]),
                token("▁sleeps", false, &[(4, "", 4.0)]),
            ],
        }
    }

    #[test]
    fn special_tokens_do_not_set_the_scale() {
        let inspection = inspection();
        assert_eq!(inspection.largest(), 8.0);
        let names: Vec<String> = inspection.strongest().iter().map(Feature::name).collect();
        assert_eq!(names, ["hockey <b>", "#4"]);
    }
}
