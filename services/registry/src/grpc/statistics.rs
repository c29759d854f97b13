//! `ComputeFeatureStatistics`, `ImportFeatureStatistics`, `ListFeatureStatisticsVersions`,
//! `ListFeatureStatistics`, `DeleteFeatureStatistics`.

use std::time::Duration;
use steering_proto::{
    Invalid,
    feature_statistics::{StatisticsConfig, rows, tokens},
    invalid::required,
    v1::{self, compute_feature_statistics_request::Message},
};
use tonic::{Status, Streaming};

use super::{pages, patience::patiently};
use crate::{error::Result, registry::Registry};

/// How long the next message may take: others cannot compute meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);
const PAGE_SIZE: u32 = 100;

pub(super) async fn compute(
    registry: &Registry,
    mut stream: Streaming<v1::ComputeFeatureStatisticsRequest>,
) -> Result<v1::ComputeFeatureStatisticsResponse, Status> {
    let _permit = registry.admit_statistics()?;
    let Some(Message::Config(wire)) = next(&mut stream).await? else {
        return Err(Invalid::field("config", "must be in the first message of the stream").into());
    };
    let config = StatisticsConfig::try_from(wire).map_err(|invalid| invalid.within("config"))?;
    let mut gathering = registry.gather_statistics(config).await?;
    let mut end = None;
    while let Some(message) = next(&mut stream).await? {
        if end.is_some() {
            return Err(Invalid::field("end", "must be the last message of the stream").into());
        }
        match message {
            Message::Config(_) => return Err(Invalid::field("config", "is there twice").into()),
            Message::Text(wire) => {
                let tokens = tokens(wire).map_err(|invalid| invalid.within("text"))?;
                gathering.begin_text(&tokens)?;
            }
            Message::Rows(wire) => {
                let rows = rows(wire, gathering.width());
                let rows = rows.map_err(|invalid| invalid.within("rows"))?;
                registry.gather_rows(&mut gathering, &rows).await?;
            }
            Message::End(wire) => end = Some(wire),
        }
    }
    let Some(v1::FeatureStatisticsEnd {
        text_count,
        dropped_count,
    }) = end
    else {
        let text = "is missing: the stream ended before everything was sent";
        return Err(Invalid::field("end", text).into());
    };
    let (sae, version) = registry
        .store_statistics(gathering, text_count, dropped_count)
        .await?;
    tracing::info!(
        sae = sae.name,
        digest = version.digest,
        tokens = version.token_count,
        "statistics"
    );
    Ok(v1::ComputeFeatureStatisticsResponse {
        version: Some(version.into_wire(&sae.name, &sae.digest)),
    })
}

async fn next(
    stream: &mut Streaming<v1::ComputeFeatureStatisticsRequest>,
) -> Result<Option<Message>, Status> {
    match patiently(PATIENCE, stream.message()).await? {
        None => Ok(None),
        Some(v1::ComputeFeatureStatisticsRequest { message }) => {
            Ok(Some(required(message, "message")?))
        }
    }
}

pub(super) async fn import(
    registry: &Registry,
    mut stream: Streaming<v1::ImportFeatureStatisticsRequest>,
) -> Result<v1::ImportFeatureStatisticsResponse, Status> {
    use v1::import_feature_statistics_request::Message;
    let _permit = registry.admit_statistics()?;
    let first = patiently(PATIENCE, stream.message()).await?;
    let Some(Message::Version(version)) = first.and_then(|first| first.message) else {
        return Err(Invalid::field("version", "must be in the first message of the stream").into());
    };
    let (sae, version) = registry.check_statistics_version(version).await?;
    let mut received = registry.receive_statistics(sae, version)?;
    while let Some(v1::ImportFeatureStatisticsRequest { message }) =
        patiently(PATIENCE, stream.message()).await?
    {
        match required(message, "message")? {
            Message::Statistics(wire) => received.push(wire)?,
            Message::Version(_) => return Err(Invalid::field("version", "is there twice").into()),
        }
    }
    let (sae, stored) = registry.import_statistics(received).await?;
    Ok(v1::ImportFeatureStatisticsResponse {
        version: Some(stored.into_wire(&sae.name, &sae.digest)),
    })
}

pub(super) async fn versions(
    registry: &Registry,
    request: v1::ListFeatureStatisticsVersionsRequest,
) -> Result<v1::ListFeatureStatisticsVersionsResponse> {
    let v1::ListFeatureStatisticsVersionsRequest {
        sae_id,
        page_size,
        page_token,
    } = request;
    let size = pages::page_size(page_size, PAGE_SIZE)?;
    let sae = registry.sae(&sae_id).await?;
    let scope = format!("statistics of {}", sae.key);
    let before: Option<i64> = pages::decode(&scope, &page_token)?;
    let before = before.unwrap_or(i64::MAX);
    let mut versions = registry.statistics_versions(&sae, before, size + 1).await?;
    let more = versions.len() > size as usize;
    versions.truncate(size as usize);
    let last = versions.last().filter(|_| more);
    Ok(v1::ListFeatureStatisticsVersionsResponse {
        next_page_token: last.map_or_else(String::new, |v| pages::encode(&scope, &v.stored)),
        versions: versions
            .into_iter()
            .map(|version| version.into_wire(&sae.name, &sae.digest))
            .collect(),
    })
}

pub(super) async fn list(
    registry: &Registry,
    request: v1::ListFeatureStatisticsRequest,
) -> Result<v1::ListFeatureStatisticsResponse> {
    let v1::ListFeatureStatisticsRequest {
        sae_id,
        digest,
        page_size,
        page_token,
    } = request;
    let size = pages::page_size(page_size, PAGE_SIZE)?;
    let sae = registry.sae(&sae_id).await?;
    // Of the version that the first page was of, should another be stored meanwhile.
    let scope = format!("statistics {digest} of {}", sae.key);
    let after: Option<(String, u32)> = pages::decode(&scope, &page_token)?;
    let (digest, from) = after.map_or((digest, 0), |(digest, last)| (digest, last + 1));
    let version = registry.statistics_version(&sae, &digest).await?;
    let mut features = registry.list_statistics(&version, from, size + 1).await?;
    let more = features.len() > size as usize;
    features.truncate(size as usize);
    let last = features.last().filter(|_| more);
    let token = |last: u32| pages::encode(&scope, &(version.digest.clone(), last));
    Ok(v1::ListFeatureStatisticsResponse {
        next_page_token: last.map_or_else(String::new, |f| token(f.feature_index)),
        statistics: features
            .into_iter()
            .map(|feature| version.feature_to_wire(feature))
            .collect(),
    })
}

pub(super) async fn delete(
    registry: &Registry,
    request: v1::DeleteFeatureStatisticsRequest,
) -> Result<v1::DeleteFeatureStatisticsResponse> {
    let v1::DeleteFeatureStatisticsRequest { sae_id, digest } = request;
    if digest.is_empty() {
        return Err(Invalid::field("digest", "is required").into());
    }
    let sae = registry.sae(&sae_id).await?;
    registry.delete_statistics(&sae, &digest).await?;
    Ok(v1::DeleteFeatureStatisticsResponse {})
}
