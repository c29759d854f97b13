//! Metadata in PostgreSQL, for any number of registries at once.
//!
//! What must not happen twice at a time is kept apart by the database: imports of labels
//! of one SAE by the SAE's row, everything else by the advisory locks below.

mod cavs;
mod labels;
mod saes;
mod search;
mod statistics;
mod upkeep;
mod words;

use std::{collections::HashMap, path::Path, str::FromStr, time::Duration};

use sqlx::{
    Connection, PgPool, Postgres, Transaction,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use steering_proto::Invalid;
use tonic::async_trait;

use super::{
    Address, CavRecord, FeatureNotes, LabelBatches, LabelCounts, LabelPage, LabelReader,
    LabelRecord, ObjectsLock, SaeRecord, StatisticsBatches, StatisticsVersion, Store, Versions,
    WhichStatistics,
};
use crate::{
    config::DatabaseUrl,
    error::{Error, Result},
    statistics::FeatureStatistics,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a call waits for a connection, a new one included.
const ACQUIRE_WAIT: Duration = Duration::from_secs(5);
/// A connection unused for longer is asked whether it is there before it is used; asking
/// each time would double the questions.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long a write waits for another one.
const LOCK_WAIT: &str = "30s";
/// The same of one that stores what took long to make or to send: a training, an SAE, a file of
/// labels. Millions of labels are one transaction of minutes.
const RESULT_LOCK_WAIT: &str = "SET LOCAL lock_timeout = '10min'";
/// After this many seconds a server looks whether a silent registry, which may hold
/// locks, is still there.
const KEEPALIVE_IDLE: &str = "30";

/// Every statement here is a walk along an index that exists for it. What the server knows
/// of its tables lags behind a load, and would make it read and sort all of one for a few
/// rows; so other plans are ruled out, and the plan is made once.
const PLANS: [(&str, &str); 6] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    // The costs of what is ruled out would look worth compiling.
    ("jit", "off"),
];

/// Things that one transaction at a time does; numbers of advisory locks.
#[derive(Debug, Clone, Copy)]
#[repr(i64)]
enum Exclusive {
    /// An object gains its first row or loses its last.
    Objects = 0x7374_6565_7201,
    /// Words get ids.
    Vocabulary,
    /// CAVs get their place in the order of versions.
    Cavs,
    /// Statistics get theirs.
    Statistics,
}

/// Metadata in a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Opens a database and brings its schema up to date; of several that start at once
    /// one does.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_WAIT)
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    if metadata.idle_for > TRUSTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(connect_options(url)?)
            .await?;
        MIGRATIONS.run(&pool).await?;
        Ok(Self { pool })
    }

    /// Opens the database of registries that may be running, to read. It must be of this version.
    pub async fn open_read_only(url: &DatabaseUrl) -> Result<Self> {
        Self::connect_read_only(connect_options(url)?).await
    }

    /// A transaction that stores a result.
    async fn begin_result(&self) -> Result<Transaction<'static, Postgres>> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(RESULT_LOCK_WAIT)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// One that no other of its kind runs beside.
    async fn begin_exclusive(&self, what: Exclusive) -> Result<Transaction<'static, Postgres>> {
        let mut transaction = self.begin_result().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(what as i64)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }
}

fn connect_options(url: &DatabaseUrl) -> Result<PgConnectOptions> {
    let schemes = ["postgres://", "postgresql://"];
    let is_url = schemes
        .iter()
        .any(|scheme| url.secret().starts_with(scheme));
    // The error might tell parts of the password.
    let options = PgConnectOptions::from_str(url.secret())
        .ok()
        .filter(|_| is_url)
        .ok_or_else(|| {
            Invalid::field(
                "--database",
                "is no postgres://USER:PASSWORD@HOST:PORT/NAME",
            )
        })?;
    Ok(options
        .application_name("steer-registry")
        .options([
            ("lock_timeout", LOCK_WAIT),
            ("tcp_keepalives_idle", KEEPALIVE_IDLE),
        ])
        .options(PLANS))
}

#[async_trait]
impl Store for PostgresStore {
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
        Ok(Box::new(self.begin_exclusive(Exclusive::Objects).await?))
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
        Ok(Box::new(search::Reader(self.pool.acquire().await?)))
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

    /// Nothing: PostgreSQL verifies pages as it reads them, where it was told to
    /// (`data_checksums`), and keeps its references itself.
    async fn damage(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn copy_to(&self, _: &Path) -> Result<()> {
        let text = "a PostgreSQL database is copied with pg_dump";
        Err(Error::NotAllowed(text.to_owned()))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
