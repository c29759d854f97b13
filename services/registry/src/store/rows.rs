//! Rows as databases hold them, and the records that they are. Every backend selects
//! columns of these names; whole numbers have 64 bits there.

use std::collections::HashMap;

use steering_proto::Invalid;

use super::{
    CavDirectionRecord, CavRecord, Evidence, LabelFacts, LabelRecord, SaeRecord, Versions,
};
use crate::{
    canonical::{Architecture, Layout, parse_normalization},
    error::{Error, Result},
};

/// Columns of [`SaeRow`].
pub(super) const SAE_COLUMNS: &str = "id, name, digest, hook_name, model_id, d_in, d_sae, \
     architecture, input_normalization, data_start, format, origin, created_at_ms, label_count, \
     stored, deleted_at_ms";

#[derive(Debug, sqlx::FromRow)]
pub(super) struct SaeRow {
    id: i64,
    name: String,
    digest: String,
    hook_name: String,
    model_id: String,
    d_in: i64,
    d_sae: i64,
    architecture: String,
    input_normalization: String,
    data_start: i64,
    format: String,
    origin: String,
    created_at_ms: i64,
    label_count: i64,
    pub(super) stored: i64,
    deleted_at_ms: Option<i64>,
}

impl SaeRow {
    pub(super) fn into_record(self) -> Result<SaeRecord> {
        let bad = |column| Error::DataLoss(format!("SAE {:?}: {column} is not valid", self.name));
        Ok(SaeRecord {
            key: self.id,
            layout: Layout {
                architecture: Architecture::parse(&self.architecture)
                    .ok_or_else(|| bad("architecture"))?,
                d_in: u32::try_from(self.d_in).map_err(|_| bad("d_in"))?,
                d_sae: u32::try_from(self.d_sae).map_err(|_| bad("d_sae"))?,
                data_start: u64::try_from(self.data_start).map_err(|_| bad("data_start"))?,
            },
            normalization: parse_normalization(&self.input_normalization)
                .ok_or_else(|| bad("input_normalization"))?,
            label_count: u64::try_from(self.label_count).map_err(|_| bad("label_count"))?,
            name: sae_name(&self.name).to_owned(),
            digest: self.digest,
            hook_name: self.hook_name,
            model_id: self.model_id,
            format: self.format,
            origin: self.origin,
            created_at_ms: self.created_at_ms,
            deleted_at_ms: self.deleted_at_ms,
        })
    }
}

/// Condition on `saes`: the row that a name finds.
pub(super) const NEWEST_SAE: &str = "name NOT LIKE '%@%'";

/// The name of a row, which older and deleted versions have as `name@digest`.
fn sae_name(stored: &str) -> &str {
    stored.split_once('@').map_or(stored, |(name, _)| name)
}

/// The name of a row that no name finds.
pub(super) fn sae_version_name(name: &str, digest: &str) -> String {
    format!("{name}@{digest}")
}

/// Names of rows that a name does not find: from the first text on, below the second.
pub(super) fn sae_version_names(name: &str) -> [String; 2] {
    // "A" comes behind "@".
    [format!("{name}@"), format!("{name}A")]
}

/// The version's row once more; the same content at another place is an error.
pub(super) fn same_place(stored: &SaeRecord, sae: &SaeRecord) -> Result<()> {
    if (&stored.hook_name, &stored.model_id) == (&sae.hook_name, &sae.model_id) {
        return Ok(());
    }
    Err(Error::SaeVersionExists {
        sae_id: sae.name.clone(),
        digest: sae.digest.clone(),
        hook_name: stored.hook_name.clone(),
        model_id: stored.model_id.clone(),
    })
}

impl Versions {
    /// Condition on rows of `saes`.
    pub(super) fn of_saes(self) -> &'static str {
        match self {
            Self::Live => "deleted_at_ms IS NULL",
            Self::Deleted => "deleted_at_ms IS NOT NULL",
            Self::All => "TRUE",
        }
    }

    /// Condition on rows of `cavs`.
    pub(super) fn of_cavs(self) -> &'static str {
        match self {
            Self::Live => "deleted_stored IS DISTINCT FROM stored",
            Self::Deleted => "deleted_stored IS NOT DISTINCT FROM stored",
            Self::All => "TRUE",
        }
    }
}

/// Columns of [`LabelRow`], of tables `labels l` and `saes s`.
pub(super) const LABEL_COLUMNS: &str = "l.id, l.sae, s.name AS sae_name, l.feature_index, \
     l.label, l.folded, l.source, l.score, l.candidate, l.strength, l.max_activation, l.evidence";

#[derive(Debug, sqlx::FromRow)]
pub(super) struct LabelRow {
    id: i64,
    sae: i64,
    sae_name: String,
    feature_index: i64,
    label: String,
    folded: String,
    source: String,
    score: Option<f32>,
    candidate: bool,
    strength: Option<f32>,
    max_activation: Option<f32>,
    evidence: Option<String>,
}

impl LabelRow {
    pub(super) fn into_record(self) -> Result<LabelRecord> {
        let bad = |column| Error::DataLoss(format!("label {}: {column} is not valid", self.id));
        let evidence = self.evidence.as_deref().map(serde_json::from_str);
        Ok(LabelRecord {
            key: self.id,
            sae: self.sae,
            feature_index: feature_index(self.feature_index)?,
            facts: LabelFacts {
                score: self.score,
                candidate: self.candidate,
                strength: self.strength,
                max_activation: self.max_activation,
                evidence: evidence
                    .transpose()
                    .map_err(|_| bad("evidence"))?
                    .unwrap_or_default(),
            },
            sae_id: sae_name(&self.sae_name).to_owned(),
            label: self.label,
            folded: self.folded,
            source: self.source,
        })
    }
}

pub(super) fn feature_index(stored: i64) -> Result<u32> {
    u32::try_from(stored).map_err(|_| Error::DataLoss(format!("feature {stored} cannot be")))
}

/// The error for a label that names two features of one import, if one was found.
pub(super) fn ambiguous(found: Option<(String, i64, i64)>) -> Result<()> {
    let Some((label, one, other)) = found else {
        return Ok(());
    };
    let message = format!(
        "label {label:?} names feature {one} and feature {other}; a label names one feature"
    );
    Err(Invalid::field("chunk", message).into())
}

/// Writes the column `evidence`.
pub(super) fn evidence_text(evidence: &[Evidence]) -> Option<String> {
    let json = || serde_json::to_string(evidence).ok();
    (!evidence.is_empty()).then(json).flatten()
}

/// Columns of [`CavRow`].
pub(super) const CAV_COLUMNS: &str = "id, name, digest, model_id, origin, created_at_ms, stored, \
     training, CASE WHEN deleted_stored = stored THEN deleted_at_ms END AS deleted_at_ms";

#[derive(Debug, sqlx::FromRow)]
pub(super) struct CavRow {
    pub(super) id: i64,
    name: String,
    digest: String,
    pub(super) model_id: String,
    origin: String,
    created_at_ms: i64,
    /// Place in the order of storing.
    pub(super) stored: i64,
    training: Option<String>,
    deleted_at_ms: Option<i64>,
}

/// Of a CAV; `vector` is empty in listings.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct DirectionRow {
    cav: i64,
    hook_name: String,
    width: i64,
    norm: f32,
    vector: Vec<u8>,
}

/// Puts CAVs, in their order, together with their directions, in theirs.
pub(super) fn cav_records(
    cavs: Vec<CavRow>,
    directions: Vec<DirectionRow>,
    with_numbers: bool,
) -> Result<Vec<CavRecord>> {
    let mut of_cav: HashMap<i64, Vec<DirectionRow>> = HashMap::new();
    for direction in directions {
        of_cav.entry(direction.cav).or_default().push(direction);
    }
    cavs.into_iter()
        .map(|cav| {
            let directions = of_cav.remove(&cav.id).unwrap_or_default();
            cav.into_record(directions, with_numbers)
        })
        .collect()
}

impl CavRow {
    fn into_record(self, directions: Vec<DirectionRow>, with_numbers: bool) -> Result<CavRecord> {
        let damaged =
            |what: String| Error::DataLoss(format!("CAV {}@{}: {what}", self.name, self.digest));
        let directions = directions
            .into_iter()
            .map(|row| {
                let record = row.into_record(with_numbers);
                record.ok_or_else(|| damaged("a vector has the wrong length".to_owned()))
            })
            .collect::<Result<Vec<_>>>()?;
        let training = self.training.as_deref().map(serde_json::from_str);
        let training = training
            .transpose()
            .map_err(|error| damaged(format!("its training: {error}")))?;
        Ok(CavRecord {
            name: self.name,
            digest: self.digest,
            model_id: self.model_id,
            origin: self.origin,
            created_at_ms: self.created_at_ms,
            directions,
            training,
            deleted_at_ms: self.deleted_at_ms,
        })
    }
}

impl DirectionRow {
    fn into_record(self, with_numbers: bool) -> Option<CavDirectionRecord> {
        let width = u32::try_from(self.width).ok()?;
        let (cells, rest) = self.vector.as_chunks::<4>();
        let values: Vec<f32> = cells.iter().map(|cell| f32::from_le_bytes(*cell)).collect();
        let complete = !with_numbers || values.len() as u64 == u64::from(width);
        (rest.is_empty() && complete).then_some(CavDirectionRecord {
            hook_name: self.hook_name,
            width,
            norm: self.norm,
            values,
        })
    }
}

/// Writes the column `vector`.
pub(super) fn vector_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Writes the column `training`.
pub(super) fn training_text(cav: &CavRecord) -> Result<Option<String>> {
    let json = cav.training.as_ref().map(serde_json::to_string).transpose();
    json.map_err(|error| Error::Storage(Box::new(error)))
}

/// The version's row once more; the same numbers of another model are an error.
pub(super) fn same_model(row: &CavRow, cav: &CavRecord) -> Result<()> {
    if row.model_id == cav.model_id {
        return Ok(());
    }
    Err(Error::CavExists {
        name: row.name.clone(),
        stored_model_id: row.model_id.clone(),
    })
}

/// The smallest text above every text that starts with `prefix`, for an index range.
pub(super) fn prefix_end(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}
