//! `ListSaes`, `GetSae`, `DownloadSae`, `DeleteSae`, `UndeleteSae`.

use std::sync::Arc;

use futures::{StreamExt, stream};
use steering_proto::{Invalid, v1};

use super::{EventStream, pages};
use crate::{
    error::Result,
    registry::Registry,
    store::{SaeRecord, Versions, timestamp},
};

const PAGE_SIZE: u32 = 100;
/// Bytes of one message of a download.
const CHUNK_LEN: usize = 1 << 20;
const SCOPE: &str = "saes";

pub(super) async fn list(
    registry: &Registry,
    request: v1::ListSaesRequest,
) -> Result<v1::ListSaesResponse> {
    let v1::ListSaesRequest {
        page_size,
        page_token,
        all_versions,
        show_deleted,
    } = request;
    let size = pages::page_size(page_size, PAGE_SIZE)?;
    if all_versions || show_deleted {
        let versions = Versions::with_deleted(show_deleted);
        return list_versions(registry, versions, size, &page_token).await;
    }
    let after: Option<String> = pages::decode(SCOPE, &page_token)?;
    let mut saes = registry
        .list_saes(&after.unwrap_or_default(), size + 1)
        .await?;
    let more = saes.len() > size as usize;
    saes.truncate(size as usize);
    let last = saes.last().filter(|_| more);
    Ok(v1::ListSaesResponse {
        next_page_token: last.map_or_else(String::new, |sae| pages::encode(SCOPE, &sae.name)),
        saes: saes.iter().map(SaeRecord::to_wire).collect(),
    })
}

async fn list_versions(
    registry: &Registry,
    versions: Versions,
    size: u32,
    page_token: &str,
) -> Result<v1::ListSaesResponse> {
    let scope = format!("{versions:?} versions of saes");
    let after: Option<i64> = pages::decode(&scope, page_token)?;
    let mut saes = registry
        .list_sae_versions(versions, after.unwrap_or(0), size + 1)
        .await?;
    let more = saes.len() > size as usize;
    saes.truncate(size as usize);
    let last = saes.last().filter(|_| more);
    Ok(v1::ListSaesResponse {
        next_page_token: last.map_or_else(String::new, |(stored, _)| pages::encode(&scope, stored)),
        saes: saes.iter().map(|(_, sae)| sae.to_wire()).collect(),
    })
}

pub(super) async fn get(
    registry: &Registry,
    request: v1::GetSaeRequest,
) -> Result<v1::GetSaeResponse> {
    let v1::GetSaeRequest { sae_id } = request;
    let sae = registry.sae(&named(sae_id)?).await?;
    Ok(v1::GetSaeResponse {
        sae: Some(sae.to_wire()),
    })
}

/// The canonical file, read as it is sent.
pub(super) async fn download(
    registry: Arc<Registry>,
    request: v1::DownloadSaeRequest,
) -> Result<EventStream<v1::DownloadSaeResponse>> {
    let v1::DownloadSaeRequest { sae_id } = request;
    let sae = registry.sae(&named(sae_id)?).await?;
    let file = registry.whole(&sae).await?;
    let len = sae.layout.file_len();
    let starts = stream::iter((0..len).step_by(CHUNK_LEN));
    let chunks = starts.then(move |start| {
        let (registry, sae, file) = (registry.clone(), sae.clone(), file.clone());
        async move {
            let bytes = start..len.min(start + CHUNK_LEN as u64);
            let chunk = registry.read_sae(&sae, &file, bytes).await?;
            Ok(v1::DownloadSaeResponse { chunk })
        }
    });
    Ok(Box::pin(chunks))
}

pub(super) async fn delete(
    registry: &Registry,
    request: v1::DeleteSaeRequest,
) -> Result<v1::DeleteSaeResponse> {
    let v1::DeleteSaeRequest { sae_id, purge } = request;
    let removed = registry.delete_sae(&named(sae_id)?, purge).await?;
    Ok(v1::DeleteSaeResponse {
        removed_count: removed.count,
        purge_time: removed.purge_at_ms.map(timestamp),
    })
}

pub(super) async fn undelete(
    registry: &Registry,
    request: v1::UndeleteSaeRequest,
) -> Result<v1::UndeleteSaeResponse> {
    let v1::UndeleteSaeRequest { sae_id } = request;
    Ok(v1::UndeleteSaeResponse {
        restored_count: registry.undelete_sae(&named(sae_id)?).await?,
    })
}

/// A name that must be given.
pub(super) fn named(sae_id: String) -> Result<String, Invalid> {
    if sae_id.is_empty() {
        return Err(Invalid::field("sae_id", "is required"));
    }
    Ok(sae_id)
}
