//! What is in an export.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use steering_client::v1;

use super::files::FileEntry;
use crate::failure::hinted;

/// The manifest's name; it is there once an export is whole.
pub(super) const NAME: &str = "manifest.json";
/// The form of an export.
pub(super) const FORMAT: &str = "steer.export.v1";
/// Largest manifest read.
const LEN_MAX: u64 = 1 << 30;

/// Everything in an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: String,
    /// Every version, in the order of storing.
    pub(super) saes: Vec<SaeEntry>,
    /// Every version, in the order of storing.
    pub(super) cavs: Vec<CavEntry>,
}

/// A version of an SAE and what belongs to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SaeEntry {
    pub(super) sae_id: String,
    pub(super) digest: String,
    pub(super) hook_name: String,
    pub(super) model_id: String,
    pub(super) format: String,
    pub(super) origin: String,
    pub(super) created_at: Option<String>,
    pub(super) directions: FileEntry,
    /// None where there are none.
    pub(super) labels: Option<FileEntry>,
    /// Oldest first.
    pub(super) statistics: Vec<StatisticsEntry>,
}

/// A version of feature statistics.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsEntry {
    pub(super) digest: String,
    pub(super) origin: String,
    pub(super) data_digest: String,
    pub(super) model_id: String,
    pub(super) model_digest: String,
    pub(super) max_tokens: u32,
    pub(super) include_special_tokens: bool,
    pub(super) text_count: u64,
    pub(super) dropped_count: u64,
    pub(super) token_count: u64,
    pub(super) active_feature_count: u32,
    pub(super) created_at: Option<String>,
    pub(super) features: FileEntry,
}

/// A version of a CAV.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CavEntry {
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) model_id: String,
    pub(super) origin: String,
    pub(super) created_at: Option<String>,
    /// The contract's message `CavTraining` in hex: JSON would round its numbers.
    pub(super) training: Option<String>,
    pub(super) directions: Vec<DirectionEntry>,
    /// The same vectors for other programs. Not imported: the files above say all that these do.
    #[serde(default)]
    pub(super) copies: Vec<FileEntry>,
}

/// A CAV's vector at one hook point.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectionEntry {
    pub(super) hook_name: String,
    pub(super) vector: FileEntry,
}

impl Manifest {
    /// Reads a folder's manifest.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        if !path.exists() {
            return Err(hinted(
                format!("{} has no {NAME}", folder.display()),
                "it is no export, or one that was interrupted: export again",
            ));
        }
        let cannot = || format!("cannot read {}", path.display());
        let len = std::fs::metadata(&path).with_context(cannot)?.len();
        ensure!(len <= LEN_MAX, "{} has {len} bytes", path.display());
        let text = std::fs::read_to_string(&path).with_context(cannot)?;
        let manifest: Self = serde_json::from_str(&text).with_context(cannot)?;
        ensure!(
            manifest.format == FORMAT,
            "{} is of format {:?}; {FORMAT:?} is read",
            path.display(),
            manifest.format
        );
        Ok(manifest)
    }

    /// All other files.
    pub(super) fn files(&self) -> Vec<&FileEntry> {
        let mut files = Vec::new();
        for sae in &self.saes {
            files.push(&sae.directions);
            files.extend(&sae.labels);
            files.extend(sae.statistics.iter().map(|version| &version.features));
        }
        for cav in &self.cavs {
            files.extend(cav.directions.iter().map(|direction| &direction.vector));
            files.extend(&cav.copies);
        }
        files
    }
}

impl SaeEntry {
    /// What finds this version.
    pub(super) fn address(&self) -> String {
        format!("{}@{}", self.sae_id, self.digest)
    }
}

impl StatisticsEntry {
    pub(super) fn new(version: v1::FeatureStatisticsVersion, features: FileEntry) -> Self {
        let v1::FeatureStatisticsVersion {
            digest,
            sae_id: _, // the SAE's entry says both
            sae_digest: _,
            source,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at,
        } = version;
        let v1::CorpusSource {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        } = source.unwrap_or_default();
        Self {
            digest,
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at: created_at.map(|time| time.to_string()),
            features,
        }
    }

    /// The message, of an SAE.
    pub(super) fn to_wire(&self, sae: &SaeEntry) -> anyhow::Result<v1::FeatureStatisticsVersion> {
        Ok(v1::FeatureStatisticsVersion {
            digest: self.digest.clone(),
            sae_id: sae.address(),
            sae_digest: sae.digest.clone(),
            source: Some(v1::CorpusSource {
                origin: self.origin.clone(),
                data_digest: self.data_digest.clone(),
                model_id: self.model_id.clone(),
                model_digest: self.model_digest.clone(),
                max_tokens: self.max_tokens,
            }),
            include_special_tokens: self.include_special_tokens,
            text_count: self.text_count,
            dropped_count: self.dropped_count,
            token_count: self.token_count,
            active_feature_count: self.active_feature_count,
            created_at: time(self.created_at.as_deref())?,
        })
    }
}

/// A time as the manifest has it.
pub(super) fn time(text: Option<&str>) -> anyhow::Result<Option<prost_types::Timestamp>> {
    let parse = |text: &str| {
        let parsed = text.parse();
        parsed.map_err(|_| anyhow::anyhow!("the manifest's time {text:?} is none"))
    };
    text.map(parse).transpose()
}
