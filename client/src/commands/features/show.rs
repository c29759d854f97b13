//! `steer features show`.

use console::style;
use serde::Serialize;
use steering_client::{Client, FeatureSelector, v1};

use super::cap;
use crate::{
    cli::Globals,
    commands::project::Token,
    output,
    table::print_card,
    views::{FeatureLabelView, FeatureStatisticsView, FeatureView},
};

/// Tokens shown at each end of a feature's logits.
const LOGITS_SHOWN: u32 = 8;

#[derive(Serialize)]
struct ShowDocument {
    feature: FeatureView,
    labels: Vec<FeatureLabelView>,
    /// None where none were computed.
    statistics: Option<FeatureStatisticsView>,
    /// What the decoder row makes most and least likely; none without a worker that has a
    /// model of its width.
    logits: Option<LogitsView>,
}

#[derive(Serialize)]
struct LogitsView {
    model: String,
    top: Vec<Token>,
    bottom: Vec<Token>,
}

pub(super) async fn run(
    feature: FeatureSelector,
    vectors: bool,
    client: &Client,
    globals: &Globals,
) -> anyhow::Result<()> {
    let reference = feature.to_ref(globals.sae.as_deref());
    let mut found = client.get_features_with_statistics(vec![reference]).await?;
    // The library has checked that there are as many as asked for.
    let (feature, statistics) = found.swap_remove(0);
    let logits = logits(client, &feature).await;
    // Of the version that the feature is of, which need not be the newest.
    let version = format!("{}@{}", feature.sae_id, feature.sae_digest);
    let request = v1::ListFeaturesRequest {
        sae_id: version.clone(),
        feature_index: Some(feature.feature_index),
        include_candidates: true,
        ..v1::ListFeaturesRequest::default()
    };
    let labels = client.list_features(request, cap(0)).await?.items;
    let statistics = if statistics.digest.is_empty() {
        None
    } else {
        let versions = client.list_feature_statistics_versions(&version, None);
        let mut versions = versions.await?.items.into_iter();
        let version = versions.find(|version| version.digest == statistics.digest);
        Some(FeatureStatisticsView::new(statistics, version))
    };
    let document = ShowDocument {
        feature: FeatureView::new(feature, vectors),
        labels: labels.into_iter().map(Into::into).collect(),
        statistics,
        logits,
    };
    if globals.json {
        output::json(&document)
    } else {
        document.print()
    }
}

/// The feature is shown all the same where no worker can say anything of it.
async fn logits(client: &Client, feature: &v1::SaeFeature) -> Option<LogitsView> {
    let vector = v1::Vector {
        name: String::new(),
        values: feature.decoder.clone(),
    };
    let model = client.get_model().await.ok()?;
    let projected = client.project_direction(vector, LOGITS_SHOWN).await.ok()?;
    let v1::ProjectDirectionResponse { top, bottom } = projected;
    Some(LogitsView {
        model: model.model_id,
        top: top.into_iter().map(Token::from).collect(),
        bottom: bottom.into_iter().map(Token::from).collect(),
    })
}

impl ShowDocument {
    fn print(&self) -> anyhow::Result<()> {
        print_card(&self.feature.card())?;
        if let Some(LogitsView { model, top, bottom }) = &self.logits {
            let list = |tokens: &[Token]| {
                let texts: Vec<String> = tokens
                    .iter()
                    .map(|token| format!("{:?}", token.text))
                    .collect();
                texts.join(" ")
            };
            heading(&format!("decoder row at the output head of {model}"))?;
            print_card(&[("more likely", list(top)), ("less likely", list(bottom))])?;
        }
        if let Some(statistics) = &self.statistics {
            heading(&statistics.heading())?;
            print_card(&statistics.card())?;
            for context in statistics.contexts() {
                output::line(context)?;
            }
        }
        for label in &self.labels {
            let (title, evidence) = label.evidence();
            heading(&title)?;
            print_card(&evidence)?;
        }
        Ok(())
    }
}

fn heading(text: &str) -> std::io::Result<()> {
    output::line(format_args!("\n{}", style(output::printable(text)).bold()))
}
