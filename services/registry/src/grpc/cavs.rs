//! `CreateCav`, `ImportCavs`, `ListCavs`, `GetCav`, `DeleteCav`, `UndeleteCav`.

use std::time::Duration;

use steering_proto::{HookPoint, Invalid, invalid::required, v1};
use tonic::{Status, Streaming};

use super::{pages, patience::patiently, receive};
use crate::{
    cavs::{CavContext, record},
    error::Result,
    import::options::check_text,
    registry::Registry,
    store::{CavRecord, CavTraining, Versions, milliseconds, timestamp},
};

const PAGE_SIZE: u32 = 100;
const FILE_NAME_LEN_MAX: usize = 500;
/// Largest file of CAVs; it is read into memory.
const FILE_LEN_MAX: u64 = 128 << 20;
/// How long the next message of a file may take: few may be under way.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn create(
    registry: &Registry,
    request: v1::CreateCavRequest,
) -> Result<v1::CreateCavResponse> {
    let v1::CreateCavRequest {
        name,
        model_id,
        directions,
        origin,
        training,
        created_at,
    } = request;
    let training = training.map(CavTraining::try_from).transpose();
    let training = training.map_err(|invalid| invalid.within("training"))?;
    let directions = directions
        .into_iter()
        .enumerate()
        .map(|(i, wire)| {
            parse_direction(wire).map_err(|invalid| invalid.within(&format!("directions[{i}]")))
        })
        .collect::<Result<Vec<_>, Invalid>>()?;
    let context = CavContext {
        hook: None,
        model_id,
        origin,
    };
    let record = CavRecord {
        training,
        ..record(name, directions, &context)?
    };
    let record = CavRecord {
        created_at_ms: created_at.map_or(record.created_at_ms, |time| milliseconds(&time)),
        ..record
    };
    let stored = registry.add_cavs(std::slice::from_ref(&record)).await?;
    Ok(v1::CreateCavResponse {
        cav: stored.into_iter().next().map(CavRecord::into_wire),
    })
}

fn parse_direction(wire: v1::CavDirection) -> Result<(HookPoint, Vec<f32>), Invalid> {
    // width and norm are computed from the vector; what a client says of them decides nothing.
    let v1::CavDirection {
        hook_name,
        width: _,
        norm: _,
        vector,
    } = wire;
    let v1::Vector { name: _, values } = required(vector, "vector")?;
    Ok((hook_name.parse()?, values))
}

pub(super) async fn import(
    registry: &Registry,
    mut stream: Streaming<v1::ImportCavsRequest>,
) -> Result<v1::ImportCavsResponse, Status> {
    use v1::import_cavs_request::Content;
    let _permit = registry.admit_cav_import()?;
    let first = patiently(PATIENCE, stream.message()).await?;
    let first = first.and_then(|message| message.content);
    let Some(Content::Header(v1::CavImportHeader {
        hook_name,
        model_id,
        file_name,
    })) = first
    else {
        return Err(Invalid::field("header", "must be the first message").into());
    };
    let in_header = |invalid: Invalid| invalid.within("header");
    check_text(&file_name, "file_name", FILE_NAME_LEN_MAX).map_err(in_header)?;
    let hook = if hook_name.is_empty() {
        None
    } else {
        Some(hook_name.parse().map_err(in_header)?)
    };
    let mut file = receive::ReceivedFile::create(registry.staging(), FILE_LEN_MAX)?;
    while let Some(message) = patiently(PATIENCE, stream.message()).await? {
        match required(message.content, "content")? {
            Content::Chunk(chunk) => file.append(chunk).await?,
            Content::Header(_) => return Err(Invalid::field("header", "is there twice").into()),
        }
    }
    let context = CavContext {
        hook,
        model_id,
        origin: file_name.clone(),
    };
    let cavs = registry
        .import_cavs(context, file.finish().await?, file_name)
        .await?;
    Ok(v1::ImportCavsResponse {
        cavs: cavs.into_iter().map(CavRecord::into_wire).collect(),
    })
}

pub(super) async fn list(
    registry: &Registry,
    request: v1::ListCavsRequest,
) -> Result<v1::ListCavsResponse> {
    let v1::ListCavsRequest {
        prefix,
        page_size,
        page_token,
        all_versions,
        show_deleted,
    } = request;
    let size = pages::page_size(page_size, PAGE_SIZE)?;
    if all_versions || show_deleted {
        let versions = Versions::with_deleted(show_deleted);
        return list_versions(registry, &prefix, versions, size, &page_token).await;
    }
    let scope = format!("cavs {prefix}");
    let after: Option<String> = pages::decode(&scope, &page_token)?;
    let mut cavs = registry
        .list_cavs(&prefix, &after.unwrap_or_default(), size + 1)
        .await?;
    let more = cavs.len() > size as usize;
    cavs.truncate(size as usize);
    let next_page_token = match cavs.last() {
        Some(cav) if more => pages::encode(&scope, &cav.name),
        _ => String::new(),
    };
    Ok(v1::ListCavsResponse {
        cavs: cavs.into_iter().map(CavRecord::into_wire).collect(),
        next_page_token,
    })
}

async fn list_versions(
    registry: &Registry,
    prefix: &str,
    versions: Versions,
    size: u32,
    page_token: &str,
) -> Result<v1::ListCavsResponse> {
    let scope = format!("{versions:?} versions of cavs {prefix}");
    let after: Option<i64> = pages::decode(&scope, page_token)?;
    let mut cavs = registry
        .list_cav_versions(prefix, versions, after.unwrap_or(0), size + 1)
        .await?;
    let more = cavs.len() > size as usize;
    cavs.truncate(size as usize);
    let last = cavs.last().filter(|_| more);
    Ok(v1::ListCavsResponse {
        next_page_token: last.map_or_else(String::new, |(stored, _)| pages::encode(&scope, stored)),
        cavs: cavs.into_iter().map(|(_, cav)| cav.into_wire()).collect(),
    })
}

pub(super) async fn get(
    registry: &Registry,
    request: v1::GetCavRequest,
) -> Result<v1::GetCavResponse> {
    let v1::GetCavRequest { name } = request;
    Ok(v1::GetCavResponse {
        cav: Some(registry.cav(&name).await?.into_wire()),
    })
}

pub(super) async fn delete(
    registry: &Registry,
    request: v1::DeleteCavRequest,
) -> Result<v1::DeleteCavResponse> {
    let v1::DeleteCavRequest { name, purge } = request;
    let removed = registry.delete_cav(&name, purge).await?;
    Ok(v1::DeleteCavResponse {
        removed_count: removed.count,
        purge_time: removed.purge_at_ms.map(timestamp),
    })
}

pub(super) async fn undelete(
    registry: &Registry,
    request: v1::UndeleteCavRequest,
) -> Result<v1::UndeleteCavResponse> {
    let v1::UndeleteCavRequest { name } = request;
    Ok(v1::UndeleteCavResponse {
        restored_count: registry.undelete_cav(&name).await?,
    })
}
