//! Models on the Hugging Face hub, through the cache that all its libraries
//! share.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use hf_hub::{
    HFClientBuilder, HFError, HFRepositorySync, RepoTypeModel,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
};

use crate::source::{
    ModelFiles, Progress, ResolvedModel, SourceError, local,
    local::{INDEX, SINGLE},
    progress::Transfer,
};

/// Files that a model may have beside its weights. The first two it must have.
const SMALL_FILES: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];
const REQUIRED: usize = 2;

/// A repository, a revision, and perhaps one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubSpec {
    owner: String,
    name: String,
    file: Option<String>,
    revision: Option<String>,
}

impl HubSpec {
    /// Parses `OWNER/NAME[/FILE.gguf][@REVISION]`; `None` if it cannot be one.
    pub(super) fn parse(spec: &str) -> Option<Self> {
        let (id, revision) = match spec.split_once('@') {
            None => (spec, None),
            Some((id, revision)) => (id, Some(revision)),
        };
        let mut parts = id.splitn(3, '/');
        let (owner, name, file) = (parts.next()?, parts.next()?, parts.next());
        let file_is_good =
            file.is_none_or(|file| file.ends_with(".gguf") && file.split('/').all(is_good_name));
        let revision_is_good =
            revision.is_none_or(|revision| revision.split('/').all(is_good_name));
        let is_good = is_good_name(owner) && is_good_name(name) && file_is_good && revision_is_good;
        is_good.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }

    fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// As errors name it.
    fn place(&self) -> String {
        match &self.revision {
            None => self.repo(),
            Some(revision) => format!("{}@{revision}", self.repo()),
        }
    }
}

/// What the hub allows in names, and no way out of a folder.
fn is_good_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(allowed)
}

/// Fetches what is needed and not there yet.
pub(super) fn resolve(
    spec: &HubSpec,
    progress: &dyn Progress,
) -> Result<ResolvedModel, SourceError> {
    let options = Options {
        cache: None,
        offline: is_set("HF_HUB_OFFLINE"),
    };
    Repository::open(spec, progress, options)?.resolve()
}

/// How the environment variables of the Hugging Face libraries are read.
fn is_set(variable: &str) -> bool {
    env::var(variable).is_ok_and(|value| {
        matches!(
            value.to_ascii_uppercase().as_str(),
            "1" | "ON" | "YES" | "TRUE"
        )
    })
}

#[derive(Debug, Clone, Default)]
struct Options {
    /// Instead of the usual cache.
    cache: Option<PathBuf>,
    /// Look only there.
    offline: bool,
}

struct Repository<'a> {
    spec: &'a HubSpec,
    progress: &'a dyn Progress,
    offline: bool,
    cache: PathBuf,
    remote: HFRepositorySync<RepoTypeModel>,
    revision: Option<String>,
}

impl<'a> Repository<'a> {
    fn open(
        spec: &'a HubSpec,
        progress: &'a dyn Progress,
        options: Options,
    ) -> Result<Self, SourceError> {
        let cache = options.cache.unwrap_or_else(hf_hub::resolve_cache_dir);
        let builder = HFClientBuilder::new().cache_dir(&cache);
        let client = builder.build_sync().map_err(|error| SourceError::Hub {
            repo: spec.repo(),
            problem: error.to_string(),
        })?;
        Ok(Self {
            spec,
            progress,
            offline: options.offline,
            cache,
            remote: client.model(&spec.owner, &spec.name),
            revision: spec.revision.clone(),
        })
    }

    fn resolve(mut self) -> Result<ResolvedModel, SourceError> {
        let listing = match self.pin_revision() {
            Ok(listing) => listing,
            Err(unreachable @ SourceError::Unreachable { .. }) => {
                // What was downloaded before still works without a network.
                self.offline = true;
                let model = self.files(None).map_err(|_| unreachable)?;
                tracing::warn!(
                    model = model.model_id,
                    "cannot reach the hub; using its cache"
                );
                return Ok(model);
            }
            Err(error) => return Err(error),
        };
        self.files(listing.as_deref())
    }

    fn files(&self, listing: Option<&[String]>) -> Result<ResolvedModel, SourceError> {
        let files = match &self.spec.file {
            Some(file) => ModelFiles::Gguf {
                path: self.required(file)?,
            },
            None => self.folder(listing)?,
        };
        let model_id = match &self.spec.file {
            None => self.spec.repo(),
            Some(file) => format!("{}/{file}", self.spec.repo()),
        };
        Ok(ResolvedModel { model_id, files })
    }

    /// Asks what the revision holds, and stays with that commit: all files come
    /// from one state of the repository. Offline the cache is what it is.
    fn pin_revision(&mut self) -> Result<Option<Vec<String>>, SourceError> {
        if self.offline {
            return Ok(None);
        }
        let info = self.remote.info().maybe_revision(self.revision.clone());
        let info = info.send().map_err(|error| self.error(&error, None))?;
        if let Some(commit) = info.sha {
            self.revision = Some(commit);
        }
        let files = info.siblings.unwrap_or_default();
        Ok(Some(files.into_iter().map(|file| file.rfilename).collect()))
    }

    /// A model folder: the parent of its config in the cache.
    fn folder(&self, listing: Option<&[String]>) -> Result<ModelFiles, SourceError> {
        if let Some(listing) = listing {
            check_listing(&self.spec.place(), listing)?;
        }
        let may_exist =
            |name: &str| listing.is_none_or(|files| files.iter().any(|file| file == name));
        let mut dir = None;
        for (i, name) in SMALL_FILES.iter().enumerate() {
            if i < REQUIRED {
                let path = self.required(name)?;
                dir = path.parent().map(Path::to_owned);
            } else if may_exist(name) {
                self.optional(name)?;
            }
        }
        let index = if may_exist(INDEX) {
            self.optional(INDEX)?
        } else {
            None
        };
        match index {
            None => {
                self.required(SINGLE)?;
            }
            Some(index) => {
                for shard in local::shards_of(&index)? {
                    self.required(&shard)?;
                }
            }
        }
        let dir = dir.ok_or_else(|| SourceError::Hub {
            repo: self.spec.repo(),
            problem: "a cached file has no folder".to_owned(),
        })?;
        local::folder(&dir)
    }

    fn required(&self, file: &str) -> Result<PathBuf, SourceError> {
        self.fetch(file)
            .map_err(|error| self.error(&error, Some(file)))
    }

    fn optional(&self, file: &str) -> Result<Option<PathBuf>, SourceError> {
        match self.fetch(file) {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(&error, Some(file))),
        }
    }

    fn fetch(&self, file: &str) -> Result<PathBuf, HFError> {
        let cached = self.download(file, true, None);
        if self.offline || cached.is_ok() {
            return cached;
        }
        let transfer = self.progress.start(file);
        let path = self.download(file, false, Some(Listener(transfer.clone())))?;
        transfer.finish();
        Ok(path)
    }

    fn download(
        &self,
        file: &str,
        local_files_only: bool,
        listener: Option<Listener>,
    ) -> Result<PathBuf, HFError> {
        self.remote
            .download_file()
            .filename(file)
            .maybe_revision(self.revision.clone())
            .local_files_only(local_files_only)
            .maybe_progress(listener.map(hf_hub::progress::Progress::new))
            .send()
    }

    fn error(&self, error: &HFError, file: Option<&str>) -> SourceError {
        let repo = self.spec.repo();
        match error {
            // The hub also says 401 of a repository that does not exist, but
            // lists a gated one to everybody and refuses only its files.
            HFError::AuthRequired { context } | HFError::Forbidden { context }
                if file.is_some() || context.error_code.as_deref() == Some("GatedRepo") =>
            {
                SourceError::Gated { repo }
            }
            HFError::RepoNotFound { .. }
            | HFError::AuthRequired { .. }
            | HFError::Forbidden { .. } => SourceError::NotOnHub {
                what: format!("model {repo}"),
            },
            HFError::RevisionNotFound { revision, .. } => SourceError::NotOnHub {
                what: format!("revision {revision} of {repo}"),
            },
            HFError::EntryNotFound { path, .. } => SourceError::NotOnHub {
                what: format!("file {path} in {}", self.spec.place()),
            },
            HFError::LocalEntryNotFound { path } => SourceError::Offline {
                repo: self.spec.place(),
                missing: file.unwrap_or(path).to_owned(),
                cache: self.cache.clone(),
            },
            HFError::Request { source, .. } => SourceError::Unreachable {
                repo,
                problem: deepest(source),
            },
            other => SourceError::Hub {
                repo,
                problem: other.to_string(),
            },
        }
    }
}

/// Refuses early what could not be loaded after gigabytes of download.
fn check_listing(place: &str, files: &[String]) -> Result<(), SourceError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let with = |ending: &str| {
        files
            .iter()
            .filter(|file| file.ends_with(ending))
            .map(String::as_str)
            .collect::<Vec<_>>()
    };
    let problem = if has(INDEX) || has(SINGLE) {
        return Ok(());
    } else if !with(".gguf").is_empty() {
        format!(
            "has GGUF files; name one as {place}/FILE: {}",
            with(".gguf").join(", ")
        )
    } else if !with(".bin").is_empty() || !with(".pth").is_empty() {
        local::PICKLE_ONLY.to_owned()
    } else {
        format!("has neither {SINGLE} nor {INDEX}")
    };
    Err(SourceError::Incomplete {
        place: place.to_owned(),
        problem,
    })
}

/// The last cause says what happened; the first only that something did.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Passes hf-hub's events on.
struct Listener(Arc<dyn Transfer>);

impl ProgressHandler for Listener {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.0.advance(0, *total_bytes),
            DownloadEvent::Progress { files } => {
                for file in files {
                    self.0.advance(file.bytes_completed, file.total_bytes);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            } => self.0.advance(*bytes_completed, *total_bytes),
            DownloadEvent::Complete => {}
        }
    }
}

#[cfg(test)]
mod tests;
