//! Metadata: SAEs, labels, CAVs. One of the crate's two dynamic seams (the
//! other is the object store): SQLite for one process, PostgreSQL for several.
//!
//! A backend is tables and statements: what a row means is in `rows`, how words of labels
//! are listed in `words`, and how a search ranks in [`crate::registry::search`].

mod cav;
mod label;
pub mod postgres;
mod rows;
pub mod sqlite;
mod statistics;
mod training;
mod version;
mod words;

pub use cav::{CavDirectionRecord, CavRecord};
pub use label::{Evidence, EvidenceValue, FeatureNotes, LabelFacts, LabelRecord, NewLabel};
pub use statistics::{StatisticsBatches, StatisticsVersion, WhichStatistics};
pub use training::CavTraining;
pub use version::{Address, Versions};
pub use words::{LabelIds, Posting, push_number, words};

use std::{collections::HashMap, path::Path};

use futures::stream::BoxStream;
use steering_proto::{payload::InputNormalization, v1};
use tonic::async_trait;

use crate::{canonical::Layout, error::Result, statistics::FeatureStatistics};

/// An SAE, without its directions.
#[derive(Debug, Clone, PartialEq)]
pub struct SaeRecord {
    /// Key in the store; 0 before it is stored.
    pub key: i64,
    /// Name, without a digest.
    pub name: String,
    /// SHA-256 (hex) of the canonical object.
    pub digest: String,
    /// Hook point.
    pub hook_name: String,
    /// Model.
    pub model_id: String,
    /// Architecture, sizes, and where things are in the object.
    pub layout: Layout,
    /// Normalisation in front of the encoder.
    pub normalization: InputNormalization,
    /// Format it came in.
    pub format: String,
    /// Where it came from.
    pub origin: String,
    /// Milliseconds since 1970, UTC.
    pub created_at_ms: i64,
    /// Labels known.
    pub label_count: u64,
    /// When it was deleted, in milliseconds since 1970, UTC.
    pub deleted_at_ms: Option<i64>,
}

/// What a label import stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelCounts {
    /// Labels, without candidates.
    pub labels: u64,
    /// Distinct features they name.
    pub features: u64,
    /// Candidates.
    pub candidates: u64,
}

/// Which SAEs; all that fit.
#[derive(Debug, Clone, Default)]
pub struct SaeFilter {
    /// Only the one with this key.
    pub key: Option<i64>,
    /// Only those of this model.
    pub model_id: Option<String>,
    /// Only those at this hook point.
    pub hook_name: Option<String>,
}

/// An SAE, for a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct SearchedSae {
    /// Key in the store.
    pub key: i64,
    /// Its last import of labels, 0 before any: lists of words change with imports only, and those
    /// of one SAE come one after another.
    pub last_import: i64,
}

/// Labels by their text in lower case, candidates too.
#[derive(Debug, Clone, Copy)]
pub struct LabelTexts<'a> {
    /// Keys of SAEs.
    pub saes: &'a [i64],
    /// The text.
    pub text: &'a str,
    /// Labels that are the text; else those that start with it and are longer.
    pub exact: bool,
    /// Behind this text and key, in each SAE.
    pub after: Option<(&'a str, i64)>,
    /// Most labels to return.
    pub limit: u32,
}

/// One page of labels by feature and key.
#[derive(Debug, Clone, Copy)]
pub struct LabelPage<'a> {
    /// The SAE.
    pub sae: i64,
    /// Only this feature.
    pub feature_index: Option<u32>,
    /// Only this source.
    pub source: Option<&'a str>,
    /// Candidates too.
    pub candidates: bool,
    /// Continue behind this feature and key.
    pub after: (i64, i64),
    /// Most labels to return.
    pub limit: u32,
}

/// Labels of a file, in batches.
pub type LabelBatches<'a> = BoxStream<'a, Result<Vec<NewLabel>>>;

/// See [`Store::lock_objects`].
pub type ObjectsLock = Box<dyn Send>;

/// Where metadata is kept. Every write is one transaction: all of it is
/// durable when the call returns, or none of it is there.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// Makes an SAE the newest version of its name. One that is there already, deleted or not,
    /// becomes the newest again, and is returned as it is. Errors with `SaeExists` if the name
    /// is held and no new version is allowed.
    async fn add_sae(&self, sae: &SaeRecord, new_version: bool) -> Result<SaeRecord>;
    /// The newest version of that name.
    async fn sae(&self, name: &str) -> Result<Option<SaeRecord>>;
    /// Versions at an address, newest first, at most two.
    async fn saes_at(&self, address: &Address, versions: Versions) -> Result<Vec<SaeRecord>>;
    /// Newest versions by name, behind `after`.
    async fn list_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>>;
    /// Versions in the order of storing, behind `after`, each with its place in that order.
    async fn list_sae_versions(
        &self,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, SaeRecord)>>;
    /// Deletes the versions at an address, with all that is theirs; returns how many.
    async fn delete_saes(&self, address: &Address) -> Result<u32>;
    /// Brings the deleted versions at an address back; returns how many.
    async fn undelete_saes(&self, address: &Address) -> Result<u32>;
    /// Removes the versions at an address for good, deleted or not; or only those that were
    /// deleted before a time. Returns each one's digest, and whether another SAE has the same.
    async fn purge_saes(
        &self,
        address: &Address,
        deleted_before_ms: Option<i64>,
    ) -> Result<Vec<(String, bool)>>;
    /// Whether an SAE with these directions exists, deleted or not.
    async fn has_digest(&self, digest: &str) -> Result<bool>;
    /// Keeps other processes from giving an object its first row or taking its last,
    /// until the lock is dropped. A process holds one at a time.
    async fn lock_objects(&self) -> Result<ObjectsLock>;

    /// Stores labels of one SAE, all or none. A label that is there already
    /// (same feature, source) keeps its place. With `unique_names`, a label
    /// names one feature per source: two in the file are an error, and one
    /// stored before for another feature is replaced. Candidates name nothing, so
    /// any number of features may have the same, and they replace candidates only.
    async fn add_labels(
        &self,
        sae: &SaeRecord,
        labels: LabelBatches<'_>,
        unique_names: bool,
    ) -> Result<LabelCounts>;
    /// Features that have exactly this label (or, with `candidate`, this candidate
    /// label), at most `limit`.
    async fn features_labelled(
        &self,
        sae: i64,
        label: &str,
        candidate: bool,
        limit: u32,
    ) -> Result<Vec<u32>>;
    /// What labels tell of features, for each feature that has any.
    async fn feature_notes(&self, sae: i64, indices: &[u32]) -> Result<HashMap<u32, FeatureNotes>>;
    /// Labels that may look like `label`; bounded, in no order.
    async fn label_candidates(&self, sae: i64, label: &str) -> Result<Vec<String>>;
    /// What one search asks.
    async fn label_reader(&self) -> Result<Box<dyn LabelReader>>;
    /// Labels of an SAE by feature and key.
    async fn list_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>>;

    /// Stores a version of an SAE's statistics, all or nothing. One that is there already
    /// becomes the newest again.
    async fn add_statistics(
        &self,
        sae: &SaeRecord,
        version: &StatisticsVersion,
        features: StatisticsBatches<'_>,
    ) -> Result<StatisticsVersion>;
    /// Versions stored before `before`, newest first.
    async fn list_statistics_versions(
        &self,
        sae: i64,
        before: i64,
        limit: u32,
    ) -> Result<Vec<StatisticsVersion>>;
    /// A version of an SAE's statistics.
    async fn statistics_version(
        &self,
        sae: i64,
        which: WhichStatistics<'_>,
    ) -> Result<Option<StatisticsVersion>>;
    /// Statistics of those features that fired, in no order.
    async fn statistics_of(
        &self,
        version: i64,
        indices: &[u32],
        with_contexts: bool,
    ) -> Result<Vec<FeatureStatistics>>;
    /// Statistics of features that fired, from this index on.
    async fn list_statistics(
        &self,
        version: i64,
        from: u32,
        limit: u32,
    ) -> Result<Vec<FeatureStatistics>>;
    /// Removes a version; whether it was there.
    async fn remove_statistics(&self, version: i64) -> Result<bool>;

    /// Stores CAVs, all or none. A version that is there already becomes the
    /// newest again, and keeps what is said of it. Returns what is stored, in this order and
    /// without numbers.
    async fn add_cavs(&self, cavs: &[CavRecord]) -> Result<Vec<CavRecord>>;
    /// Newest versions by name, behind `after`, without numbers.
    async fn list_cavs(&self, prefix: &str, after: &str, limit: u32) -> Result<Vec<CavRecord>>;
    /// Versions of names that start with `prefix`, in the order of storing, behind `after`,
    /// each with its place in that order; without numbers.
    async fn list_cav_versions(
        &self,
        prefix: &str,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, CavRecord)>>;
    /// Versions at an address, newest first, at most two, with numbers.
    async fn cavs_at(&self, address: &Address, versions: Versions) -> Result<Vec<CavRecord>>;
    /// Deletes the versions at an address; returns how many.
    async fn delete_cavs(&self, address: &Address) -> Result<u32>;
    /// Brings the deleted versions at an address back to their places; returns how many.
    async fn undelete_cavs(&self, address: &Address) -> Result<u32>;
    /// Removes the versions at an address for good, deleted or not; returns how many.
    async fn purge_cavs(&self, address: &Address) -> Result<u32>;
    /// Removes what was deleted before a time for good; returns how many.
    async fn purge_deleted_cavs(&self, before_ms: i64) -> Result<u32>;
    /// Names of CAVs, at most `limit`.
    async fn cav_names(&self, limit: u32) -> Result<Vec<String>>;
    /// Names and digests of CAVs, all versions, deleted ones too, behind `after`.
    async fn cav_versions(&self, after: (&str, &str), limit: u32) -> Result<Vec<(String, String)>>;

    /// What the database itself finds wrong with its data.
    async fn damage(&self) -> Result<Vec<String>>;
    /// Writes all that is committed at one moment into a new SQLite file.
    async fn copy_to(&self, path: &Path) -> Result<()>;

    /// Ends all use of the store.
    async fn close(&self);
}

/// What searches ask. It holds one connection: to take and return one for each question
/// would cost more than most answers.
#[async_trait]
pub trait LabelReader: Send {
    /// SAEs, by key.
    async fn saes(&mut self, filter: &SaeFilter) -> Result<Vec<SearchedSae>>;
    /// Those of some SAEs in which a text may start with this one, ascending; and whether the first
    /// of these may be the very text. One look at an index for each SAE, and at nothing else.
    async fn saes_with_text(&mut self, saes: &[i64], text: &str) -> Result<Vec<(i64, bool)>>;
    /// Labels by SAE, text and key.
    async fn labels_by_text(&mut self, texts: LabelTexts<'_>) -> Result<Vec<LabelRecord>>;
    /// Labels by key, in any order, without those that are gone; candidates too.
    async fn labels_by_key(&mut self, keys: &[i64]) -> Result<Vec<LabelRecord>>;
    /// Words of all labels with a larger id than `after`, by id, at most `limit`. A word
    /// gets its id before any with a larger one is seen.
    async fn vocabulary(&mut self, after: i64, limit: u32) -> Result<Vec<(i64, String)>>;
    /// Which labels of these SAEs have these words; in any order, several lists of a word
    /// may overlap.
    async fn postings(&mut self, saes: &[i64], words: &[i64]) -> Result<Vec<Posting>>;
    /// All lists of an SAE behind this word and first label, in this order, at most `limit`.
    async fn postings_of(
        &mut self,
        sae: i64,
        after: (i64, i64),
        limit: u32,
    ) -> Result<Vec<Posting>>;
}

impl SaeRecord {
    /// The wire's message.
    pub fn to_wire(&self) -> v1::Sae {
        v1::Sae {
            sae_id: self.name.clone(),
            digest: self.digest.clone(),
            hook_name: self.hook_name.clone(),
            model_id: self.model_id.clone(),
            d_in: self.layout.d_in,
            d_sae: self.layout.d_sae,
            architecture: self.layout.architecture.as_str().to_owned(),
            input_normalization: self.normalization.to_wire().into(),
            format: self.format.clone(),
            origin: self.origin.clone(),
            created_at: Some(timestamp(self.created_at_ms)),
            label_count: self.label_count,
            delete_time: self.deleted_at_ms.map(timestamp),
        }
    }
}

/// The wire's time.
pub fn timestamp(ms: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: ms.div_euclid(1000),
        // Below 10^9, so it fits.
        nanos: i32::try_from(ms.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

/// Milliseconds since 1970 of a time on the wire.
pub fn milliseconds(time: &prost_types::Timestamp) -> i64 {
    let prost_types::Timestamp { seconds, nanos } = time;
    seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(nanos / 1_000_000))
}

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| {
            i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
        })
}
