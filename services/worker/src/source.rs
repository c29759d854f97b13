//! Where a model's files come from: a path, or the Hugging Face hub.
//!
//! This module finds files and checks that all are there. It does not read
//! weights.

use std::path::{Path, PathBuf};

mod gguf_check;
mod hub;
mod local;
mod progress;

pub use gguf_check::{GgufCheckError, check_gguf};
pub use progress::{Progress, Silent, Transfer, terminal_progress};

/// A model whose files are on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The hub id, or the name of the folder or file.
    pub model_id: String,
    /// What to load.
    pub files: ModelFiles,
}

/// The files of a model, all of which exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// A folder as `save_pretrained` writes it.
    HfFolder {
        /// The folder; the tokenizer's files are in it.
        dir: PathBuf,
        /// The safetensors files, in the order of their names.
        weights: Vec<PathBuf>,
        /// `config.json`.
        config: PathBuf,
        /// `generation_config.json`, where there is one.
        generation_config: Option<PathBuf>,
    },
    /// One GGUF file, which holds everything.
    Gguf {
        /// The file.
        path: PathBuf,
    },
}

/// Why a model's files cannot be had. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is neither a path that exists nor a hub id.
    #[error(
        "{spec:?} is neither an existing path nor a hub id; give a folder, a .gguf file, \
         or OWNER/NAME[@REVISION]"
    )]
    NotFound {
        /// What was asked for.
        spec: String,
    },
    /// The folder or repository does not hold a model that can be loaded.
    #[error("{place}: {problem}")]
    Incomplete {
        /// The folder or repository.
        place: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The hub has no such repository, revision or file.
    #[error(
        "the hub has no {what} (and there is no local path of that name); check the spelling, and for \
         a private model set HF_TOKEN"
    )]
    NotOnHub {
        /// What was looked for.
        what: String,
    },
    /// The model's licence must be accepted first.
    #[error(
        "access to {repo} is restricted: accept its terms at https://huggingface.co/{repo} and set \
         HF_TOKEN to a token of the same account"
    )]
    Gated {
        /// The repository.
        repo: String,
    },
    /// HF_HUB_OFFLINE is set, and the cache does not have the files.
    #[error(
        "{repo} is not in the cache at {} ({missing} is missing) and HF_HUB_OFFLINE is set; unset it, \
         or give a local path", cache.display()
    )]
    Offline {
        /// The repository.
        repo: String,
        /// The first file that is missing.
        missing: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub cannot be reached.
    #[error(
        "cannot reach the hub for {repo}: {problem}; check the network, or give a local path to the model"
    )]
    Unreachable {
        /// The repository.
        repo: String,
        /// Why.
        problem: String,
    },
    /// Anything else that went wrong with the hub.
    #[error("the hub failed for {repo}: {problem}")]
    Hub {
        /// The repository.
        repo: String,
        /// Why.
        problem: String,
    },
}

/// Finds the files of `PATH` or `OWNER/NAME[/FILE.gguf][@REVISION]`.
///
/// What exists on this machine is a path, and so is what looks like one.
/// Anything else is a hub id, whose files are downloaded into the cache that
/// all Hugging Face libraries share.
pub fn resolve(spec: &str, progress: &dyn Progress) -> Result<ResolvedModel, SourceError> {
    let path = Path::new(spec);
    if path.exists() {
        return local::resolve(path);
    }
    match hub::HubSpec::parse(spec) {
        Some(spec) => hub::resolve(&spec, progress),
        None => Err(SourceError::NotFound {
            spec: spec.to_owned(),
        }),
    }
}
