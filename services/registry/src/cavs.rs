//! Files of CAVs. One file per format; all become [`CavFile`].

mod gguf;
mod json;
mod safetensors;
mod torch;

use std::{path::Path, sync::Arc};

use steering_proto::{
    HookPoint, Invalid,
    payload::{Vector, digest},
};

use crate::{
    format::{FormatError, SourceFile, malformed},
    import::options::check_text,
    store::{Address, CavDirectionRecord, CavRecord, now_ms},
};

/// Longest name in bytes.
const NAME_LEN_MAX: usize = 200;
/// Longest model and origin in bytes.
const TEXT_LEN_MAX: usize = 500;
/// Most components of a vector.
const WIDTH_MAX: usize = 1 << 17;
/// Most CAVs of a file: each takes some memory besides its numbers.
const CAVS_MAX: usize = 1 << 16;
/// Fewest hex digits that address a version.
const DIGEST_PREFIX_MIN: usize = 8;

/// CAVs as a file has them.
#[derive(Debug, PartialEq)]
pub struct CavFile {
    /// In file order.
    pub cavs: Vec<CavEntry>,
    /// Model, if the file names one.
    pub model_id: Option<String>,
}

/// One CAV of a file.
#[derive(Debug, PartialEq)]
pub struct CavEntry {
    /// Its label; None in files without labels, which hold one CAV.
    pub name: Option<String>,
    /// Vectors, with hook points where the file says them.
    pub directions: Vec<(Option<HookPoint>, Vec<f32>)>,
}

impl CavFile {
    /// Reads a file of any known format. `scratch` takes inflated copies.
    pub fn read(source: &Arc<SourceFile>, scratch: &Path) -> Result<Self, FormatError> {
        let start = source.read_vec(0, source.len().min(64))?;
        let first = start.trim_ascii_start().first();
        if start.starts_with(b"GGUF") {
            gguf::read(source)
        } else if start.starts_with(b"PK") || start.first() == Some(&0x80) {
            torch::read(source, scratch)
        } else if start.get(8) == Some(&b'{') && first != Some(&b'{') && first != Some(&b'[') {
            safetensors::read(source)
        } else if matches!(first, Some(b'{' | b'[')) {
            json::read(source)
        } else {
            Err(malformed(
                "is no file of CAVs: a .pt of {\"cavs\", \"labels\"}, safetensors, a GGUF control vector or \
                 JSON is needed",
            ))
        }
    }

    /// Rows of a matrix and their labels.
    fn from_rows(values: &[f32], width: usize, labels: Vec<String>) -> Result<Self, FormatError> {
        let rows = values.chunks(width.max(1));
        check_counts(rows.len(), labels.len())?;
        let cavs = labels.into_iter().zip(rows).map(|(label, row)| CavEntry {
            name: Some(label),
            directions: vec![(None, row.to_vec())],
        });
        Ok(Self {
            cavs: cavs.collect(),
            model_id: None,
        })
    }
}

/// Each vector has a label, and there are not too many. To be asked before either is copied.
fn check_counts(vectors: usize, labels: usize) -> Result<(), FormatError> {
    if vectors > CAVS_MAX {
        return Err(malformed(format!(
            "has {vectors} vectors; at most {CAVS_MAX} are read"
        )));
    }
    if vectors != labels {
        return Err(malformed(format!(
            "has {vectors} vectors and {labels} labels"
        )));
    }
    Ok(())
}

/// What a request says about a file or a single CAV.
#[derive(Debug, Clone)]
pub struct CavContext {
    /// Hook point of vectors that come without one.
    pub hook: Option<HookPoint>,
    /// Model; empty if the request names none.
    pub model_id: String,
    /// Where it came from.
    pub origin: String,
}

/// Turns a file's CAVs into what is stored. `file_name` names a CAV without a label.
pub fn records(
    file: CavFile,
    context: &CavContext,
    file_name: &str,
) -> Result<Vec<CavRecord>, Invalid> {
    let model_id = match (context.model_id.as_str(), file.model_id) {
        ("", Some(model_id)) => model_id,
        ("", None) => {
            return Err(Invalid::field(
                "header.model_id",
                "is required: the file does not name the model",
            ));
        }
        (model_id, _) => model_id.to_owned(),
    };
    if file.cavs.is_empty() {
        return Err(Invalid::field("chunk", "the file holds no CAVs"));
    }
    let mut records: Vec<CavRecord> = Vec::with_capacity(file.cavs.len());
    let mut names = std::collections::HashSet::new();
    for (i, cav) in file.cavs.into_iter().enumerate() {
        let name = cav.name.unwrap_or_else(|| stem(file_name).to_owned());
        let mut directions = Vec::with_capacity(cav.directions.len());
        for (hook, values) in cav.directions {
            directions.push((resolve_hook(context.hook, hook)?, values));
        }
        let context = CavContext {
            model_id: model_id.clone(),
            ..context.clone()
        };
        let record = record(name, directions, &context)
            .map_err(|invalid| Invalid::field("chunk", format!("CAV {i}: {invalid}")))?;
        if !names.insert(record.name.clone()) {
            return Err(Invalid::field(
                "chunk",
                format!("label {:?} is in the file twice", record.name),
            ));
        }
        records.push(record);
    }
    Ok(records)
}

fn resolve_hook(
    requested: Option<HookPoint>,
    stated: Option<HookPoint>,
) -> Result<HookPoint, Invalid> {
    let field = "header.hook_name";
    match (requested, stated) {
        (Some(requested), Some(stated)) if requested != stated => Err(Invalid::field(
            field,
            format!("is {requested}, but the file says {stated}; leave it empty or let them agree"),
        )),
        (_, Some(hook)) | (Some(hook), None) => Ok(hook),
        (None, None) => Err(Invalid::field(
            field,
            "is required: the file does not say where its vectors belong (e.g. blocks.21.hook_resid_post)",
        )),
    }
}

/// What is stored of one CAV: everything checked, norms and digest computed.
pub fn record(
    name: String,
    directions: Vec<(HookPoint, Vec<f32>)>,
    context: &CavContext,
) -> Result<CavRecord, Invalid> {
    check_name(&name)?;
    check_text(&context.model_id, "model_id", TEXT_LEN_MAX)?;
    check_text(&context.origin, "origin", TEXT_LEN_MAX)?;
    if context.model_id.is_empty() {
        return Err(Invalid::field("model_id", "is required"));
    }
    if directions.is_empty() {
        return Err(Invalid::field(
            "directions",
            "is empty; at least one is needed",
        ));
    }
    let mut hooks: Vec<HookPoint> = Vec::with_capacity(directions.len());
    let mut checked = Vec::with_capacity(directions.len());
    for (i, (hook, values)) in directions.into_iter().enumerate() {
        let within = format!("directions[{i}]");
        if hooks.contains(&hook) {
            return Err(Invalid::field(
                format!("{within}.hook_name"),
                format!("{hook} is there twice"),
            ));
        }
        hooks.push(hook);
        checked.push(direction(hook, values).map_err(|invalid| invalid.within(&within))?);
    }
    let mut record = CavRecord {
        digest: String::new(),
        name,
        model_id: context.model_id.clone(),
        origin: context.origin.clone(),
        created_at_ms: now_ms(),
        directions: checked,
        training: None,
        deleted_at_ms: None,
    };
    record.digest = numbers_digest(&record);
    Ok(record)
}

/// SHA-256 (hex) of a CAV's hook points and numbers: what its digest must be.
pub fn numbers_digest(cav: &CavRecord) -> String {
    let (names, lists): (Vec<&str>, Vec<&[f32]>) = cav
        .directions
        .iter()
        .map(|direction| (direction.hook_name.as_str(), direction.values.as_slice()))
        .unzip();
    digest(&format!("cav {}", names.join(" ")), &lists)
}

fn direction(hook: HookPoint, values: Vec<f32>) -> Result<CavDirectionRecord, Invalid> {
    let vector = Vector::try_from(steering_proto::v1::Vector {
        name: String::new(),
        values,
    })
    .map_err(|invalid| invalid.within("vector"))?;
    let norm = vector.norm();
    if vector.values.len() > WIDTH_MAX {
        return Err(Invalid::field(
            "vector",
            format!(
                "has {} components; at most {WIDTH_MAX}",
                vector.values.len()
            ),
        ));
    }
    if norm == 0.0 {
        return Err(Invalid::field("vector", "is zero: it has no direction"));
    }
    if norm > f64::from(f32::MAX) {
        return Err(Invalid::field(
            "vector",
            format!(
                "has a norm of {norm:e}; at most {:e}, float32's largest",
                f32::MAX
            ),
        ));
    }
    Ok(CavDirectionRecord {
        hook_name: hook.to_string(),
        // At most WIDTH_MAX.
        width: u32::try_from(vector.values.len()).unwrap_or(u32::MAX),
        norm: norm as f32,
        values: vector.values,
    })
}

/// Checks a CAV's name.
pub(crate) fn check_name(name: &str) -> Result<(), Invalid> {
    if name.trim().is_empty() {
        return Err(Invalid::field("name", "is required"));
    }
    check_text(name, "name", NAME_LEN_MAX)?;
    if parse_address(name)?.digest_prefix.is_some() {
        return Err(Invalid::field(
            "name",
            format!("{name:?} ends like a version (@ and hex digits)"),
        ));
    }
    Ok(())
}

/// Parses `name` or `name@digest`. An "@" that no digest follows belongs to the name.
pub fn parse_address(text: &str) -> Result<Address, Invalid> {
    if text.is_empty() {
        return Err(Invalid::field("name", "is required"));
    }
    if let Some((name, version)) = text.rsplit_once('@')
        && !name.is_empty()
        && (DIGEST_PREFIX_MIN..=64).contains(&version.len())
        && version.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Ok(Address {
            name: name.to_owned(),
            digest_prefix: Some(version.to_lowercase()),
        });
    }
    Ok(Address {
        name: text.to_owned(),
        digest_prefix: None,
    })
}

/// A file's name without folders and extension.
fn stem(file_name: &str) -> &str {
    Path::new(file_name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
