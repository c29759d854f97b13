//! `EncodeActivations`.

use std::collections::HashMap;

use steering_proto::{Invalid, invalid::finite_vector, v1};

use super::similar::top_k;
use crate::{error::Result, registry::Registry, scan::Encoded};

const ROWS_MAX: usize = 1024;

pub(super) async fn encode(
    registry: &Registry,
    request: v1::EncodeActivationsRequest,
) -> Result<v1::EncodeActivationsResponse> {
    let v1::EncodeActivationsRequest {
        sae_id,
        values,
        top_k: asked,
    } = request;
    let top_k = top_k(asked)?;
    let values = finite_vector(values, "values")?;
    let sae = registry.sae(&sae_id).await?;
    let width = sae.layout.d_in as usize;
    if values.len() % width != 0 || values.len() / width > ROWS_MAX {
        let text = format!(
            "has {} numbers; rows of {width}, 1 to {ROWS_MAX} of them, are needed for SAE {:?}",
            values.len(),
            sae.name
        );
        return Err(Invalid::field("values", text).into());
    }
    let (encoded, labels) = registry.encode_activations(&sae, values, top_k).await?;
    Ok(v1::EncodeActivationsResponse {
        sae_id: sae.name,
        rows: encoded
            .into_iter()
            .map(|row| to_wire(row, &labels))
            .collect(),
    })
}

fn to_wire(row: Encoded, labels: &HashMap<u32, String>) -> v1::EncodedActivation {
    let features = row
        .features
        .into_iter()
        .map(|(index, activation)| v1::ActiveFeature {
            feature_index: index,
            activation,
            label: labels.get(&index).cloned().unwrap_or_default(),
        });
    v1::EncodedActivation {
        features: features.collect(),
        active_count: row.active,
    }
}
