//! `SearchFeatures`, `ListFeatures`, `GetFeatures`, `ImportFeatureLabels`.

use steering_proto::{Invalid, invalid::required, v1};
use tonic::{Status, Streaming};

use super::{pages, receive, saes::named};
use crate::{
    error::Result,
    import::options::check_text,
    registry::{FEATURES_MAX, FeatureRef, Registry, check_index},
    store::{LabelPage, LabelRecord, LabelSearch, Match},
};

const SEARCH_PAGE_SIZE: u32 = 20;
const LIST_PAGE_SIZE: u32 = 100;
const QUERY_LEN_MAX: usize = 500;
const SOURCE_LEN_MAX: usize = 200;
/// Largest label file: 50 million labels of 100 bytes.
const LABEL_FILE_LEN_MAX: u64 = 8 << 30;

/// Where a search stopped: kind of match, and its last label's text and key.
type SearchCursor = (usize, Option<(String, i64)>);

pub(super) async fn search(
    registry: &Registry,
    request: v1::SearchFeaturesRequest,
) -> Result<v1::SearchFeaturesResponse> {
    let v1::SearchFeaturesRequest {
        query,
        sae_id,
        page_size,
        page_token,
    } = request;
    check_text(&query, "query", QUERY_LEN_MAX)?;
    let folded = query.trim().to_lowercase();
    if folded.is_empty() {
        return Err(Invalid::field("query", "is required").into());
    }
    let size = pages::page_size(page_size, SEARCH_PAGE_SIZE)? as usize;
    let sae = if sae_id.is_empty() {
        None
    } else {
        Some(registry.sae(&sae_id).await?.key)
    };
    let scope = format!("search {folded} in {sae:?}");
    let (first_kind, mut after): SearchCursor =
        pages::decode(&scope, &page_token)?.unwrap_or_default();
    let mut found: Vec<(usize, LabelRecord)> = Vec::new();
    for (number, kind) in Match::ALL.into_iter().enumerate().skip(first_kind) {
        // One more than fits says whether there is another page.
        let limit = u32::try_from(size + 1 - found.len()).unwrap_or(0);
        let cursor = after.take();
        let after = cursor.as_ref().map(|(folded, key)| (folded.as_str(), *key));
        let labels = registry
            .search_labels(LabelSearch {
                query: &folded,
                sae,
                kind,
                after,
                limit,
            })
            .await?;
        found.extend(labels.into_iter().map(|label| (number, label)));
        if found.len() > size {
            break;
        }
    }
    let more = found.len() > size;
    found.truncate(size);
    let next_page_token = match found.last() {
        Some((kind, label)) if more => {
            pages::encode(&scope, &(kind, Some((&label.folded, label.key))))
        }
        _ => String::new(),
    };
    let features = found
        .into_iter()
        .map(|(_, label)| label.into_wire())
        .collect();
    Ok(v1::SearchFeaturesResponse {
        features,
        next_page_token,
    })
}

pub(super) async fn list(
    registry: &Registry,
    request: v1::ListFeaturesRequest,
) -> Result<v1::ListFeaturesResponse> {
    let v1::ListFeaturesRequest {
        sae_id,
        source,
        page_size,
        page_token,
        feature_index,
        include_candidates,
    } = request;
    let size = pages::page_size(page_size, LIST_PAGE_SIZE)?;
    let sae = registry.sae(&named(sae_id)?).await?;
    if let Some(index) = feature_index {
        check_index(&sae, index)?;
    }
    let scope = format!(
        "labels of {} {feature_index:?} {include_candidates} from {source}",
        sae.key
    );
    let after: Option<(i64, i64)> = pages::decode(&scope, &page_token)?;
    let source = Some(source.as_str()).filter(|source| !source.is_empty());
    let mut labels = registry
        .list_labels(LabelPage {
            sae: sae.key,
            feature_index,
            source,
            candidates: include_candidates,
            after: after.unwrap_or((0, 0)),
            limit: size + 1,
        })
        .await?;
    let more = labels.len() > size as usize;
    labels.truncate(size as usize);
    let next_page_token = match labels.last() {
        Some(label) if more => pages::encode(&scope, &(label.feature_index, label.key)),
        _ => String::new(),
    };
    let features = labels.into_iter().map(LabelRecord::into_wire).collect();
    Ok(v1::ListFeaturesResponse {
        features,
        next_page_token,
    })
}

pub(super) async fn get(
    registry: &Registry,
    request: v1::GetFeaturesRequest,
) -> Result<v1::GetFeaturesResponse> {
    let v1::GetFeaturesRequest {
        features,
        include_statistics,
    } = request;
    if !(1..=FEATURES_MAX).contains(&features.len()) {
        let message = format!(
            "has {} entries; 1 to {FEATURES_MAX} are allowed",
            features.len()
        );
        return Err(Invalid::field("features", message).into());
    }
    let references = features
        .into_iter()
        .enumerate()
        .map(|(i, wire)| {
            FeatureRef::try_from(wire).map_err(|invalid| invalid.within(&format!("features[{i}]")))
        })
        .collect::<Result<Vec<_>, Invalid>>()?;
    let (features, statistics) = registry.features(references, include_statistics).await?;
    Ok(v1::GetFeaturesResponse {
        features,
        statistics,
    })
}

pub(super) async fn import_labels(
    registry: &Registry,
    mut stream: Streaming<v1::ImportFeatureLabelsRequest>,
) -> Result<v1::ImportFeatureLabelsResponse, Status> {
    use v1::import_feature_labels_request::Content;
    let first = stream.message().await?.and_then(|message| message.content);
    let Some(Content::Header(v1::LabelImportHeader {
        sae_id,
        source,
        shared_names,
    })) = first
    else {
        return Err(Invalid::field("header", "must be the first message").into());
    };
    check_text(&source, "source", SOURCE_LEN_MAX).map_err(|invalid| invalid.within("header"))?;
    let sae_id = named(sae_id).map_err(|invalid| invalid.within("header"))?;
    // Refuse before anything is sent.
    registry.sae(&sae_id).await?;
    let source = if source.is_empty() {
        "imported".to_owned()
    } else {
        source
    };
    let mut file = receive::ReceivedFile::create(registry.staging(), LABEL_FILE_LEN_MAX)?;
    while let Some(message) = stream.message().await? {
        match required(message.content, "content")? {
            Content::Chunk(chunk) => file.append(chunk).await?,
            Content::Header(_) => return Err(Invalid::field("header", "is there twice").into()),
        }
    }
    let counts = registry
        .import_labels(&sae_id, &source, shared_names, file.finish().await?)
        .await?;
    Ok(v1::ImportFeatureLabelsResponse {
        label_count: counts.labels,
        feature_count: counts.features,
        candidate_count: counts.candidates,
    })
}
