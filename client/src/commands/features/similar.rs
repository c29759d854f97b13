//! `steer features similar`.

use clap::Args;
use serde::Serialize;
use steering_client::{Client, Lookup, Readout, v1};

use crate::{cli::Globals, output, table::Table};

/// The features that write most like a feature or a CAV.
///
/// Compares decoder rows by cosine, with every feature of every SAE of the same width, or of
/// the SAEs named with --in. Exact: nothing is indexed or left out.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer features similar baseball
  steer features similar 'gemma-scope-l21-65k::#20175' --top 20 --in gemma-scope-l20-65k
  steer features similar cav:rec.autos --json

JSON, --json: one object
  {\"features\": [{\"sae_id\", \"feature_index\", \"label\", \"hook_name\", \"cosine\"}], \"compared_count\"}")]
pub(super) struct SimilarArgs {
    /// LABEL, #INDEX, SAE::LABEL or cav:NAME.
    #[arg(value_name = "DIRECTION")]
    direction: Readout,
    /// Features to show.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
    /// SAE to look in; repeatable [default: all of the same width].
    #[arg(long = "in", value_name = "SAE")]
    within: Vec<String>,
    /// Which direction of a CAV that has several.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
}

#[derive(Serialize)]
struct Document {
    features: Vec<Similar>,
    compared_count: u64,
}

#[derive(Serialize)]
struct Similar {
    sae_id: String,
    feature_index: u32,
    label: String,
    hook_name: String,
    cosine: f32,
}

pub(super) async fn run(
    args: SimilarArgs,
    client: &Client,
    globals: &Globals,
) -> anyhow::Result<()> {
    use v1::find_similar_features_request::Query;
    let lookup = Lookup {
        default_sae: globals.sae.as_deref(),
        cav_hook: args.hook.as_deref(),
    };
    let query = match &args.direction {
        Readout::Feature(feature) => Query::Feature(feature.to_ref(lookup.default_sae)),
        Readout::Cav(_) => Query::Vector(client.direction(&args.direction, lookup).await?.1),
    };
    let request = v1::FindSimilarFeaturesRequest {
        query: Some(query),
        sae_ids: args.within,
        top_k: args.top,
    };
    let v1::FindSimilarFeaturesResponse {
        features,
        compared_count,
    } = client.find_similar_features(request).await?;
    let document = Document {
        features: features.into_iter().map(Similar::from).collect(),
        compared_count,
    };
    if globals.json {
        return output::json(&document);
    }
    let mut table = Table::new(&["cosine", "index", "label", "sae", "hook"]);
    for feature in document.features {
        table.row([
            format!("{:.3}", feature.cosine),
            feature.feature_index.to_string(),
            feature.label,
            feature.sae_id,
            feature.hook_name,
        ]);
    }
    table.print("no features")?;
    output::dim(format_args!("{compared_count} features compared"));
    Ok(())
}

impl From<v1::SimilarFeature> for Similar {
    fn from(feature: v1::SimilarFeature) -> Self {
        let v1::SimilarFeature {
            sae_id,
            feature_index,
            label,
            hook_name,
            cosine,
        } = feature;
        Self {
            sae_id,
            feature_index,
            label,
            hook_name,
            cosine,
        }
    }
}
