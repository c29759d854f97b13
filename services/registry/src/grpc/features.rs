//! `SearchFeatures`, `ListFeatures`, `GetFeatures`, `ImportFeatureLabels`.

use steering_proto::{Invalid, invalid::required, v1};
use tonic::{Status, Streaming};

use super::{pages, receive, saes::named};
use crate::{
    error::Result,
    import::options::check_text,
    registry::{FEATURES_MAX, FeatureRef, Registry, check_index, search::LabelSearch},
    store::{LabelPage, LabelRecord, SaeFilter},
};

const SEARCH_PAGE_SIZE: u32 = 20;
const LIST_PAGE_SIZE: u32 = 100;
const QUERY_LEN_MAX: usize = 500;
const SOURCE_LEN_MAX: usize = 200;
/// Largest label file: 50 million labels of 100 bytes.
const LABEL_FILE_LEN_MAX: u64 = 8 << 30;

pub(super) async fn search(
    registry: &Registry,
    request: v1::SearchFeaturesRequest,
) -> Result<v1::SearchFeaturesResponse> {
    let v1::SearchFeaturesRequest {
        query,
        sae_id,
        page_size,
        page_token,
        model_id,
        hook_name,
        source,
    } = request;
    check_text(&query, "query", QUERY_LEN_MAX)?;
    check_text(&source, "source", SOURCE_LEN_MAX)?;
    let text = query.trim().to_lowercase();
    if text.is_empty() {
        return Err(Invalid::field("query", "is required").into());
    }
    let size = pages::page_size(page_size, SEARCH_PAGE_SIZE)?;
    let key = if sae_id.is_empty() {
        None
    } else {
        Some(registry.sae(&sae_id).await?.key)
    };
    let scope = format!("search {text:?} in {key:?} {model_id:?} {hook_name:?} from {source:?}");
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let found = registry
        .search_labels(LabelSearch {
            text,
            saes: SaeFilter {
                key,
                model_id: some(model_id),
                hook_name: some(hook_name),
            },
            source: some(source),
            behind: pages::decode(&scope, &page_token)?,
            limit: size as usize,
        })
        .await?;
    let next_page_token = found.next.map(|place| pages::encode(&scope, &place));
    Ok(v1::SearchFeaturesResponse {
        features: found
            .labels
            .into_iter()
            .map(LabelRecord::into_wire)
            .collect(),
        next_page_token: next_page_token.unwrap_or_default(),
        truncated: found.cut,
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
