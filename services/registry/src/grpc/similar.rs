//! `FindSimilarFeatures`.

use steering_proto::{Invalid, invalid::required, payload::Vector, v1};

use crate::{
    error::Result,
    registry::{FeatureRef, FoundFeature, Registry, SimilarQuery},
};

const SAES_MAX: usize = 64;
const TOP_K: u32 = 10;
const TOP_K_MAX: u32 = 1000;

pub(super) async fn find(
    registry: &Registry,
    request: v1::FindSimilarFeaturesRequest,
) -> Result<v1::FindSimilarFeaturesResponse> {
    let v1::FindSimilarFeaturesRequest {
        query,
        sae_ids,
        top_k,
    } = request;
    if sae_ids.len() > SAES_MAX {
        let text = format!("has {} entries; at most {SAES_MAX}", sae_ids.len());
        return Err(Invalid::field("sae_ids", text).into());
    }
    let top_k = self::top_k(top_k)?;
    let query = parse_query(required(query, "query")?)?;
    let (found, compared_count) = registry.similar_features(query, &sae_ids, top_k).await?;
    Ok(v1::FindSimilarFeaturesResponse {
        features: found.into_iter().map(to_wire).collect(),
        compared_count,
    })
}

/// How many to return: 10 where 0 is asked for.
pub(super) fn top_k(asked: u32) -> Result<usize, Invalid> {
    match asked {
        0 => Ok(TOP_K as usize),
        asked if asked <= TOP_K_MAX => Ok(asked as usize),
        asked => Err(Invalid::field(
            "top_k",
            format!("is {asked}; at most {TOP_K_MAX}"),
        )),
    }
}

fn parse_query(query: v1::find_similar_features_request::Query) -> Result<SimilarQuery, Invalid> {
    use v1::find_similar_features_request::Query;
    match query {
        Query::Feature(wire) => {
            let reference =
                FeatureRef::try_from(wire).map_err(|invalid| invalid.within("feature"))?;
            Ok(SimilarQuery::Feature(reference))
        }
        Query::Vector(wire) => {
            let vector = Vector::try_from(wire).map_err(|invalid| invalid.within("vector"))?;
            if vector.norm() == 0.0 {
                return Err(Invalid::field("vector", "is zero: it has no direction"));
            }
            Ok(SimilarQuery::Direction(vector.values))
        }
    }
}

fn to_wire(found: FoundFeature) -> v1::SimilarFeature {
    let FoundFeature {
        sae,
        neighbour,
        label,
    } = found;
    v1::SimilarFeature {
        sae_id: sae.name.clone(),
        feature_index: neighbour.index,
        label: label.unwrap_or_default(),
        hook_name: sae.hook_name.clone(),
        cosine: neighbour.cosine,
    }
}
