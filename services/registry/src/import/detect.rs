//! Which SAE a path holds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::access::Access;
use crate::format::{FormatError, SourceFile, malformed, unservable};

/// Depth and number of entries searched for an SAE below a folder.
const DEPTH_MAX: usize = 6;
const ENTRIES_MAX: usize = 20_000;

/// Formats that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `params.npz`.
    GemmaScope,
    /// `config.json`, `params.safetensors`.
    GemmaScope2,
    /// `cfg.json`, `sae_weights.safetensors`.
    SaeLens,
    /// `config.json`, `ae.pt`.
    DictionaryLearning,
    /// `steer_sae.safetensors`.
    Steer,
}

/// The files of one SAE, open.
#[derive(Debug)]
pub struct Found {
    /// Format.
    pub kind: Kind,
    /// Weights.
    pub weights: Arc<SourceFile>,
    /// Configuration, where the format has one and it is there.
    config: Option<SourceFile>,
    config_name: &'static str,
    /// Path by which it was named, for formats that say things in folder names.
    pub hint: String,
}

impl Found {
    /// The configuration file.
    pub fn config(&self) -> Result<&SourceFile, FormatError> {
        self.config.as_ref().ok_or_else(|| {
            malformed(format!(
                "there is no {} beside it, which says what kind of SAE it is",
                self.config_name
            ))
        })
    }
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::GemmaScope,
        Self::GemmaScope2,
        Self::SaeLens,
        Self::DictionaryLearning,
        Self::Steer,
    ];

    /// Name of the weights, and of the configuration beside them.
    fn files(self) -> (&'static str, &'static str) {
        match self {
            Self::GemmaScope => ("params.npz", ""),
            Self::GemmaScope2 => ("params.safetensors", "config.json"),
            Self::SaeLens => ("sae_weights.safetensors", "cfg.json"),
            Self::DictionaryLearning => ("ae.pt", "config.json"),
            Self::Steer => ("steer_sae.safetensors", ""),
        }
    }

    /// Names that weights have.
    pub fn weight_names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(|kind| kind.files().0)
    }

    /// Names that configurations have.
    pub fn config_names() -> impl Iterator<Item = &'static str> {
        ["config.json", "cfg.json"].into_iter()
    }

    /// The format of the weights at a path with slashes.
    pub fn of_file_in_path(path: &str) -> Option<Self> {
        Self::of_file(path.rsplit('/').next().unwrap_or(path))
    }

    /// The format whose weights have that name; any `.npz` may be Gemma Scope's.
    fn of_file(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.files().0 == name)
            .or_else(|| name.ends_with(".npz").then_some(Self::GemmaScope))
    }
}

/// Known formats that cannot be imported, by the name of their weights, and why.
fn refusal(name: &str) -> Option<&'static str> {
    Some(match name {
        "sae.safetensors" => "sparsify SAEs are TopK: a feature depends on all others",
        "final.safetensors" => "Llama Scope SAEs are not supported yet",
        _ if name.ends_with(".sae.pt") => {
            "Qwen-Scope SAEs are TopK: a feature depends on all others"
        }
        _ if name.ends_with(".pth") => "Goodfire SAEs (.pth) are not supported yet",
        _ => return None,
    })
}

/// Finds the one SAE at `path`, a file or a folder, and opens its files.
/// `hint` is the path in the words of the request.
pub fn detect(path: &Path, hint: &str, access: &Access) -> Result<Found, FormatError> {
    // Names are taken from the path as given: the hub's cache links
    // `params.npz` to a file that is named by its digest.
    access.resolve(path)?;
    let weights = if path.is_dir() {
        sole_weights(path, access)?
    } else {
        path.to_owned()
    };
    let weights = match (
        weights.file_name().and_then(|name| name.to_str()),
        weights.parent(),
    ) {
        // Naming the configuration names the SAE.
        (Some("cfg.json" | "config.json"), Some(folder)) => sole_weights(folder, access)?,
        _ => weights,
    };
    let name = weights
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if let Some(reason) = refusal(&name) {
        return Err(unservable(format!("{name}: {reason}")));
    }
    let kind = Kind::of_file(&name).ok_or_else(|| {
        malformed(format!(
            "{name:?} is not the weights of an SAE; {}",
            known_formats()
        ))
    })?;
    let config_name = kind.files().1;
    let config_path = weights.with_file_name(config_name);
    let config = if !config_name.is_empty() && config_path.exists() {
        Some(access.open(&config_path)?)
    } else {
        None
    };
    let below = weights.strip_prefix(path).unwrap_or(Path::new(""));
    Ok(Found {
        kind,
        weights: Arc::new(access.open(&weights)?),
        config,
        config_name,
        hint: format!("{hint}/{}", below.display()),
    })
}

fn sole_weights(folder: &Path, access: &Access) -> Result<PathBuf, FormatError> {
    let (mut found, refused) = weights_below(folder, access)?;
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(match refused {
            Some(reason) => unservable(reason),
            None => malformed(format!("holds no SAE; {}", known_formats())),
        }),
        several => {
            let names: Vec<String> = several
                .iter()
                .take(20)
                .map(|path| {
                    path.strip_prefix(folder)
                        .unwrap_or(path)
                        .display()
                        .to_string()
                })
                .collect();
            Err(malformed(format!(
                "holds {} SAEs, name one of them: {}{}",
                several.len(),
                names.join(", "),
                if several.len() > names.len() {
                    ", …"
                } else {
                    ""
                }
            )))
        }
    }
}

/// Weights below a folder, and why others were passed over.
fn weights_below(
    folder: &Path,
    access: &Access,
) -> Result<(Vec<PathBuf>, Option<String>), FormatError> {
    let mut found = Vec::new();
    let mut refused = None;
    let mut entries_seen = 0;
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            entries_seen += 1;
            if entries_seen > ENTRIES_MAX {
                return Err(malformed("holds too many files; name the SAE's own folder"));
            }
            let path = entry?.path();
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if path.is_dir() {
                if depth < DEPTH_MAX && access.resolve(&path).is_ok() {
                    folders.push((path, depth + 1));
                }
            } else if Kind::of_file(&name).is_some() {
                found.push(path);
            } else if let Some(reason) = refusal(&name) {
                refused = Some(format!("{name}: {reason}"));
            }
        }
    }
    Ok((found, refused))
}

fn known_formats() -> &'static str {
    "known are Gemma Scope (params.npz), Gemma Scope 2 (params.safetensors with config.json), SAELens \
     (sae_weights.safetensors with cfg.json) and dictionary_learning (ae.pt with config.json)"
}
