//! Metadata in one SQLite file: write-ahead log, synced on every commit, one
//! writer and several readers.

mod cavs;
mod labels;
mod saes;
mod search;
mod statistics;
mod upkeep;
mod words;

use std::{collections::HashMap, path::Path, time::Duration};

use sqlx::{
    Connection, Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tonic::async_trait;

use super::{
    Address, CavRecord, FeatureNotes, LabelBatches, LabelCounts, LabelPage, LabelReader,
    LabelRecord, ObjectsLock, SaeRecord, StatisticsBatches, StatisticsVersion, Store, Versions,
    WhichStatistics,
};
use crate::{
    error::{Error, Result},
    statistics::FeatureStatistics,
};

const READERS_MAX: u32 = 8;
/// How long a write waits for those before it.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How long one waits that stores what took long to make or to send: a training, an SAE, a file
/// of labels. Millions of labels are one transaction of minutes.
const RESULT_WAIT: Duration = Duration::from_secs(600);
/// How long SQLite waits for another process.
const BUSY_WAIT: Duration = Duration::from_secs(10);
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
/// Pages kept by the writer, in KiB (as SQLite counts what is negative): a large import
/// changes pages of its indexes many times and should write them once.
const WRITER_CACHE: &str = "-131072";
/// Pages kept by each reader: the inner pages of all indexes.
const READER_CACHE: &str = "-16384";

/// Metadata in an SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    /// One connection: writes are serial, as in SQLite itself.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, creating it if need be, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_WAIT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(RESULT_WAIT)
            // After a commit for which the disk had no room, SQLite has left the transaction
            // and sqlx has not: such a connection never writes again.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options.clone().pragma("cache_size", WRITER_CACHE))
            .await?;
        MIGRATIONS.run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .min_connections(1)
            // A file does not hang up.
            .test_before_acquire(false)
            .connect_with(options.read_only(true).pragma("cache_size", READER_CACHE))
            .await?;
        let store = Self { writer, readers };
        store.index_labels().await?;
        Ok(store)
    }

    /// Begins a write when those before it are done; they come in the order of asking.
    async fn begin(&self, wait: Duration) -> Result<Transaction<'static, Sqlite>> {
        let begun = self.writer.begin_with("BEGIN IMMEDIATE");
        match tokio::time::timeout(wait, begun).await {
            Ok(begun) => Ok(begun?),
            Err(_) => Err(Error::Unavailable(
                "the database is busy with another write",
            )),
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn add_sae(&self, sae: &SaeRecord, new_version: bool) -> Result<SaeRecord> {
        self.insert_sae(sae, new_version).await
    }

    async fn sae(&self, name: &str) -> Result<Option<SaeRecord>> {
        self.find_sae(name).await
    }

    async fn saes_at(&self, address: &Address, versions: Versions) -> Result<Vec<SaeRecord>> {
        self.find_saes(address, versions).await
    }

    async fn list_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        self.page_of_saes(after, limit).await
    }

    async fn list_sae_versions(
        &self,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, SaeRecord)>> {
        self.page_of_sae_versions(versions, after, limit).await
    }

    async fn delete_saes(&self, address: &Address) -> Result<u32> {
        self.hide_saes(address).await
    }

    async fn undelete_saes(&self, address: &Address) -> Result<u32> {
        self.show_saes(address).await
    }

    async fn purge_saes(
        &self,
        address: &Address,
        deleted_before_ms: Option<i64>,
    ) -> Result<Vec<(String, bool)>> {
        self.remove_saes(address, deleted_before_ms).await
    }

    async fn has_digest(&self, digest: &str) -> Result<bool> {
        self.find_digest(digest).await
    }

    async fn lock_objects(&self) -> Result<ObjectsLock> {
        // No other process uses the file.
        Ok(Box::new(()))
    }

    async fn add_labels(
        &self,
        sae: &SaeRecord,
        labels: LabelBatches<'_>,
        unique_names: bool,
    ) -> Result<LabelCounts> {
        self.insert_labels(sae, labels, unique_names).await
    }

    async fn features_labelled(
        &self,
        sae: i64,
        label: &str,
        candidate: bool,
        limit: u32,
    ) -> Result<Vec<u32>> {
        self.find_label(sae, label, candidate, limit).await
    }

    async fn feature_notes(&self, sae: i64, indices: &[u32]) -> Result<HashMap<u32, FeatureNotes>> {
        self.find_notes(sae, indices).await
    }

    async fn label_candidates(&self, sae: i64, label: &str) -> Result<Vec<String>> {
        self.find_candidates(sae, label).await
    }

    async fn label_reader(&self) -> Result<Box<dyn LabelReader>> {
        Ok(Box::new(search::Reader(self.readers.acquire().await?)))
    }

    async fn list_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>> {
        self.page_of_labels(page).await
    }

    async fn add_statistics(
        &self,
        sae: &SaeRecord,
        version: &StatisticsVersion,
        features: StatisticsBatches<'_>,
    ) -> Result<StatisticsVersion> {
        self.insert_statistics(sae, version, features).await
    }

    async fn list_statistics_versions(
        &self,
        sae: i64,
        before: i64,
        limit: u32,
    ) -> Result<Vec<StatisticsVersion>> {
        self.page_of_statistics_versions(sae, before, limit).await
    }

    async fn statistics_version(
        &self,
        sae: i64,
        which: WhichStatistics<'_>,
    ) -> Result<Option<StatisticsVersion>> {
        self.find_statistics_version(sae, which).await
    }

    async fn statistics_of(
        &self,
        version: i64,
        indices: &[u32],
        with_contexts: bool,
    ) -> Result<Vec<FeatureStatistics>> {
        self.find_statistics(version, indices, with_contexts).await
    }

    async fn list_statistics(
        &self,
        version: i64,
        from: u32,
        limit: u32,
    ) -> Result<Vec<FeatureStatistics>> {
        self.page_of_statistics(version, from, limit).await
    }

    async fn remove_statistics(&self, version: i64) -> Result<bool> {
        self.delete_statistics(version).await
    }

    async fn add_cavs(&self, cavs: &[CavRecord]) -> Result<Vec<CavRecord>> {
        self.insert_cavs(cavs).await
    }

    async fn list_cavs(&self, prefix: &str, after: &str, limit: u32) -> Result<Vec<CavRecord>> {
        self.page_of_cavs(prefix, after, limit).await
    }

    async fn list_cav_versions(
        &self,
        prefix: &str,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, CavRecord)>> {
        self.page_of_cav_versions(prefix, versions, after, limit)
            .await
    }

    async fn cavs_at(&self, address: &Address, versions: Versions) -> Result<Vec<CavRecord>> {
        self.find_cavs(address, versions).await
    }

    async fn delete_cavs(&self, address: &Address) -> Result<u32> {
        self.hide_cavs(address).await
    }

    async fn undelete_cavs(&self, address: &Address) -> Result<u32> {
        self.show_cavs(address).await
    }

    async fn purge_cavs(&self, address: &Address) -> Result<u32> {
        self.remove_cavs(address).await
    }

    async fn purge_deleted_cavs(&self, before_ms: i64) -> Result<u32> {
        self.remove_deleted_cavs(before_ms).await
    }

    async fn cav_names(&self, limit: u32) -> Result<Vec<String>> {
        self.find_cav_names(limit).await
    }

    async fn cav_versions(&self, after: (&str, &str), limit: u32) -> Result<Vec<(String, String)>> {
        self.page_of_versions(after, limit).await
    }

    async fn damage(&self) -> Result<Vec<String>> {
        self.find_damage().await
    }

    async fn copy_to(&self, path: &Path) -> Result<()> {
        self.write_copy(path).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// A list as one value; `json_each` makes rows of it.
fn json(values: &[impl serde::Serialize]) -> String {
    // Numbers and texts always serialise.
    serde_json::to_string(values).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_wait_longer_than_other_writes_and_in_turn() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("registry.sqlite");
        let store = SqliteStore::open(&path).await.expect("store");
        let long = store.begin(WRITE_WAIT).await.expect("alone");
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.add_cavs(&[]).await }
        });
        let brief = store.begin(Duration::from_millis(50)).await;
        assert!(matches!(brief, Err(Error::Unavailable(_))), "{brief:?}");
        assert!(!waiting.is_finished());
        assert!(store.writer.options().get_acquire_timeout() >= RESULT_WAIT);
        long.commit().await.expect("commit");
        waiting.await.expect("task").expect("its turn came");
    }
}
