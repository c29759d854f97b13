//! SAEs from the Hugging Face hub, through its own cache (`HF_HOME`,
//! `HF_HUB_CACHE`), with `HF_TOKEN`, and from the cache alone with
//! `HF_HUB_OFFLINE=1`.

use std::{path::PathBuf, sync::Arc};

use futures::{StreamExt, pin_mut};
use hf_hub::{
    HFClient, HFError, HFRepository,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
    repository::{RepoTreeEntry, RepoTypeModel},
    split_id,
};
use steering_proto::{Invalid, v1};
use tonic::Code;

use super::detect::Kind;
use crate::{
    error::{Error, Result},
    progress::Progress,
};

const ENTRIES_MAX: usize = 20_000;

/// A checked [`v1::HubSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    /// "owner/name".
    pub repo_id: String,
    /// Folder or file, without slashes at its ends; may be empty.
    pub path: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl TryFrom<v1::HubSource> for HubSource {
    type Error = Invalid;

    fn try_from(wire: v1::HubSource) -> Result<Self, Invalid> {
        let v1::HubSource {
            repo_id,
            path,
            revision,
        } = wire;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if !matches!(repo_id.split_once('/'), Some((owner, name)) if plain(owner) && plain(name)) {
            return Err(Invalid::field(
                "repo_id",
                format!("is {repo_id:?}; must be \"owner/name\""),
            ));
        }
        let path = path.trim_matches('/').to_owned();
        if path.split('/').any(|part| part == ".." || part == ".") || path.contains('\\') {
            return Err(Invalid::field(
                "path",
                format!("is {path:?}; must be a path within the repository"),
            ));
        }
        let revision = if revision.is_empty() {
            "main".to_owned()
        } else {
            revision
        };
        Ok(Self {
            repo_id,
            path,
            revision,
        })
    }
}

impl HubSource {
    /// What listings call it.
    pub fn origin(&self) -> String {
        format!("hf://{}@{}/{}", self.repo_id, self.revision, self.path)
    }
}

/// Downloads the one SAE that `source` names, and returns the path of its weights.
pub async fn download(source: &HubSource, progress: &Arc<Progress>) -> Result<PathBuf> {
    let client = HFClient::new().map_err(|error| hub_error(source, &error))?;
    let (owner, name) = split_id(&source.repo_id);
    let repo = client.model(owner, name);
    let offline = std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    let (weights, config) = if offline {
        candidates(source)
    } else {
        find(&repo, source).await?
    };
    let mut path = None;
    for file in config.iter().chain(&weights) {
        let handler = Arc::new(Relay(Arc::clone(progress)));
        let download = repo
            .download_file()
            .filename(file)
            .revision(&source.revision)
            .local_files_only(offline)
            .progress(handler);
        let result = tokio::select! {
            result = download.send() => result,
            () = progress.cancelled() => return Err(Error::Cancelled),
        };
        match result {
            Ok(local) if weights.contains(file) => path = Some(local),
            Ok(_) => {}
            // Offline, every name it could have is tried.
            Err(HFError::LocalEntryNotFound { .. }) if offline => {}
            Err(error) => return Err(hub_error(source, &error)),
        }
    }
    path.ok_or_else(|| Error::Hub {
        code: Code::NotFound,
        message: format!(
            "{} is not in the local cache, and HF_HUB_OFFLINE forbids downloads",
            source.origin()
        ),
    })
}

/// Weights and configuration by the names they may have, for a lookup without a listing.
fn candidates(source: &HubSource) -> (Vec<String>, Vec<String>) {
    let (folder, file) = match source.path.rsplit_once('/') {
        _ if Kind::of_file_in_path(&source.path).is_none() => (source.path.as_str(), None),
        Some((folder, file)) => (folder, Some(file)),
        None => ("", Some(source.path.as_str())),
    };
    let join = |name: &str| {
        if folder.is_empty() {
            name.to_owned()
        } else {
            format!("{folder}/{name}")
        }
    };
    let weights = match file {
        Some(file) => vec![join(file)],
        None => Kind::weight_names().map(join).collect(),
    };
    (weights, Kind::config_names().map(join).collect())
}

/// The one SAE below a path of the repository: its weights, and its configuration if there is one.
async fn find(
    repo: &HFRepository<RepoTypeModel>,
    source: &HubSource,
) -> Result<(Vec<String>, Vec<String>)> {
    let (folder, exact) = match Kind::of_file_in_path(&source.path) {
        Some(_) => (
            source
                .path
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder),
            Some(&source.path),
        ),
        None => (source.path.as_str(), None),
    };
    let listing = repo
        .list_tree()
        .revision(&source.revision)
        .maybe_path_in_repo(Some(folder).filter(|folder| !folder.is_empty()))
        .recursive(exact.is_none())
        .limit(ENTRIES_MAX)
        .send()
        .map_err(|error| hub_error(source, &error))?;
    pin_mut!(listing);
    let mut paths = Vec::new();
    while let Some(entry) = listing.next().await {
        if let RepoTreeEntry::File { path, .. } =
            entry.map_err(|error| hub_error(source, &error))?
        {
            paths.push(path);
        }
    }
    let weights: Vec<&String> = paths
        .iter()
        .filter(|path| match exact {
            Some(exact) => *path == exact,
            None => Kind::of_file_in_path(path).is_some(),
        })
        .collect();
    let &[weights] = weights.as_slice() else {
        return Err(not_one(source, &weights));
    };
    let folder = weights
        .rsplit_once('/')
        .map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let configs = Kind::config_names().map(|name| format!("{folder}{name}"));
    Ok((
        vec![weights.clone()],
        configs.filter(|config| paths.contains(config)).collect(),
    ))
}

fn not_one(source: &HubSource, weights: &[&String]) -> Error {
    if weights.is_empty() {
        return Error::Hub {
            code: Code::NotFound,
            message: format!("{} holds no SAE in a format known here", source.origin()),
        };
    }
    let some: Vec<&str> = weights.iter().take(20).map(|path| path.as_str()).collect();
    let message = format!(
        "holds {} SAEs, name one of them: {}",
        weights.len(),
        some.join(", ")
    );
    Invalid::field("hub.path", message).into()
}

/// Passes a download's bytes on.
struct Relay(Arc<Progress>);

impl ProgressHandler for Relay {
    fn on_progress(&self, event: &ProgressEvent) {
        let (done, total) = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => match files.first() {
                Some(file) => (file.bytes_completed, file.total_bytes),
                None => return,
            },
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            }) => (*bytes_completed, *total_bytes),
            _ => return,
        };
        // Cancellation is noticed by `download`.
        let _ = self.0.report("downloading", done, total);
    }
}

fn hub_error(source: &HubSource, error: &HFError) -> Error {
    let origin = source.origin();
    let (code, message) = match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => (
            Code::PermissionDenied,
            format!(
                "{origin}: the hub refuses access. If the repository is gated, accept its terms at \
                 https://huggingface.co/{} and start the registry with HF_TOKEN set ({error})",
                source.repo_id
            ),
        ),
        HFError::RepoNotFound { .. } => (
            Code::NotFound,
            format!(
                "{origin}: no such repository, or it is private and HF_TOKEN is not set for it"
            ),
        ),
        HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. }
        | HFError::LocalEntryNotFound { .. } => (Code::NotFound, format!("{origin}: {error}")),
        HFError::Io(_) | HFError::CacheLockTimeout { .. } => (
            Code::Unavailable,
            format!("{origin}: the hub's local cache cannot be used: {error}"),
        ),
        HFError::Request { .. } | HFError::RateLimited { .. } => (
            Code::Unavailable,
            format!(
                "{origin}: the hub cannot be reached ({error}). Without a network, copy the files here and \
                 import their path"
            ),
        ),
        _ => (Code::Unavailable, format!("{origin}: {error}")),
    };
    Error::Hub { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(repo_id: &str, path: &str) -> v1::HubSource {
        v1::HubSource {
            repo_id: repo_id.to_owned(),
            path: path.to_owned(),
            revision: String::new(),
        }
    }

    #[test]
    fn sources_are_checked() {
        let source = HubSource::try_from(wire("google/gemma-scope-2b-pt-res", "/layer_21/"))
            .expect("source");
        assert_eq!(
            source.origin(),
            "hf://google/gemma-scope-2b-pt-res@main/layer_21"
        );
        for (repo_id, path) in [
            ("gemma", ""),
            ("a/b/c", ""),
            ("../x", ""),
            ("a/b", "x/../y"),
            ("a/", ""),
        ] {
            assert!(
                HubSource::try_from(wire(repo_id, path)).is_err(),
                "{repo_id} {path}"
            );
        }
    }

    #[test]
    fn names_to_try_without_a_listing() {
        let source = HubSource::try_from(wire("a/b", "layer_1/params.npz")).expect("source");
        assert_eq!(candidates(&source).0, ["layer_1/params.npz"]);
        let source = HubSource::try_from(wire("a/b", "layer_1")).expect("source");
        let (weights, configs) = candidates(&source);
        assert!(
            weights.contains(&"layer_1/sae_weights.safetensors".to_owned()),
            "{weights:?}"
        );
        assert!(
            configs.contains(&"layer_1/cfg.json".to_owned()),
            "{configs:?}"
        );
    }
}
