//! Models in folders and files on this machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use crate::source::{ModelFiles, ResolvedModel, SourceError};

/// The file that names the shards of a model's weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The weights of a model that has one file of them.
pub(super) const SINGLE: &str = "model.safetensors";
/// Largest index file that is read: a thousand shards need far less.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Resolves a path that exists.
pub(super) fn resolve(path: &Path) -> Result<ResolvedModel, SourceError> {
    let absolute = path
        .canonicalize()
        .map_err(|source| io_error(path, source))?;
    let name = absolute.file_name().unwrap_or(absolute.as_os_str());
    let model_id = name.to_string_lossy().into_owned();
    let files = if !path.is_dir() {
        gguf_file(path)?
    } else if path.join("config.json").is_file() {
        folder(path)?
    } else {
        lone_gguf(path)?
    };
    Ok(ResolvedModel { model_id, files })
}

fn gguf_file(path: &Path) -> Result<ModelFiles, SourceError> {
    if !is_gguf(path) {
        let problem =
            "a model is a folder with config.json and .safetensors files, or a .gguf file";
        return Err(incomplete(path, problem));
    }
    if let Some(total) = split_total(path) {
        let problem =
            format!("is one of {total} parts; merge them first (llama-gguf-split --merge)");
        return Err(incomplete(path, problem));
    }
    Ok(ModelFiles::Gguf {
        path: path.to_owned(),
    })
}

fn lone_gguf(dir: &Path) -> Result<ModelFiles, SourceError> {
    let mut found = files_in(dir)?;
    found.retain(|path| is_gguf(path));
    match found.as_slice() {
        [one] => gguf_file(one),
        [] => Err(incomplete(dir, "has neither config.json nor a .gguf file")),
        several => {
            let names: Vec<String> = several.iter().map(|path| file_name(path)).collect();
            let problem = format!(
                "has several .gguf files; give one of them: {}",
                names.join(", ")
            );
            Err(incomplete(dir, problem))
        }
    }
}

/// Checks a folder with `config.json` and lists its weights.
pub(super) fn folder(dir: &Path) -> Result<ModelFiles, SourceError> {
    let generation_config = dir.join("generation_config.json");
    let tokenizer = dir.join("tokenizer.json");
    if !tokenizer.is_file() {
        let problem = if dir.join("tokenizer.model").is_file() {
            "has tokenizer.model but no tokenizer.json; convert it once with \
             AutoTokenizer.from_pretrained(…).save_pretrained(…) from transformers"
        } else {
            "has no tokenizer.json"
        };
        return Err(incomplete(dir, problem));
    }
    Ok(ModelFiles::HfFolder {
        dir: dir.to_owned(),
        weights: weights(dir)?,
        config: dir.join("config.json"),
        generation_config: generation_config.is_file().then_some(generation_config),
    })
}

fn weights(dir: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let index = dir.join(INDEX);
    if index.is_file() {
        let shards = shards_of(&index)?;
        if let Some(missing) = shards.iter().find(|name| !dir.join(name).is_file()) {
            let problem = format!("{INDEX} lists {missing}, which is missing");
            return Err(incomplete(dir, problem));
        }
        return Ok(shards.iter().map(|name| dir.join(name)).collect());
    }
    let single = dir.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let files = files_in(dir)?;
    let has_extension = |wanted: &str| {
        let of = |path: &&PathBuf| {
            path.extension()
                .is_some_and(|e| e.eq_ignore_ascii_case(wanted))
        };
        files.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    match has_extension("safetensors").as_slice() {
        [one] => Ok(vec![one.clone()]),
        [] if !has_extension("bin").is_empty() || !has_extension("pth").is_empty() => {
            Err(incomplete(dir, PICKLE_ONLY))
        }
        [] => Err(incomplete(dir, "has no .safetensors files")),
        several => {
            let problem = format!("has {} .safetensors files but no {INDEX}", several.len());
            Err(incomplete(dir, problem))
        }
    }
}

/// Why weights in PyTorch's own format are not loaded.
pub(super) const PICKLE_ONLY: &str = "has its weights only as pickle files (.bin, .pth), which can run code when they \
     are read and are not loaded; convert them to safetensors";

/// The files an index names: plain names in the index's own folder.
pub(super) fn shards_of(index: &Path) -> Result<BTreeSet<String>, SourceError> {
    let size = fs::metadata(index)
        .map_err(|source| io_error(index, source))?
        .len();
    if size > MAX_INDEX_BYTES {
        return Err(incomplete(
            index,
            format!("has {size} bytes; at most {MAX_INDEX_BYTES}"),
        ));
    }
    let text = fs::read_to_string(index).map_err(|source| io_error(index, source))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| incomplete(index, error.to_string()))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| incomplete(index, "has no weight_map"))?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().unwrap_or_default();
        if !is_plain_name(file) || !file.ends_with(".safetensors") {
            let problem = format!(
                "puts {tensor} into {file:?}, which is not the name of a safetensors file beside it"
            );
            return Err(incomplete(index, problem));
        }
        shards.insert(file.to_owned());
    }
    if shards.is_empty() {
        return Err(incomplete(index, "has an empty weight_map"));
    }
    Ok(shards)
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(_)))
        && components.next().is_none()
        && !name.contains(['/', '\\', '\0'])
}

/// `…-00001-of-00003.gguf`: how many parts there are.
fn split_total(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (_, part) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let total = total
        .parse()
        .ok()
        .filter(|_| is_number(total) && is_number(part))?;
    (total > 1).then_some(total)
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| io_error(dir, source))? {
        let path = entry.map_err(|source| io_error(dir, source))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn incomplete(place: &Path, problem: impl Into<String>) -> SourceError {
    SourceError::Incomplete {
        place: place.display().to_string(),
        problem: problem.into(),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> SourceError {
    SourceError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
