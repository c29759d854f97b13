//! Table `saes`.

use sqlx::QueryBuilder;

use super::SqliteStore;
use crate::{
    canonical::{Layout, normalization_name},
    error::{Error, Result},
    store::{
        SaeRecord,
        rows::{SAE_COLUMNS, SaeRow},
    },
};

impl SqliteStore {
    pub(super) async fn insert_sae(&self, sae: &SaeRecord) -> Result<SaeRecord> {
        let SaeRecord {
            key: _,
            name,
            digest,
            hook_name,
            model_id,
            layout:
                Layout {
                    architecture,
                    d_in,
                    d_sae,
                    data_start,
                },
            normalization,
            format,
            origin,
            created_at_ms,
            label_count: _,
        } = sae;
        let result = sqlx::query(
            "INSERT INTO saes (name, digest, hook_name, model_id, d_in, d_sae, architecture, \
             input_normalization, data_start, format, origin, created_at_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(name)
        .bind(digest)
        .bind(hook_name)
        .bind(model_id)
        .bind(d_in)
        .bind(d_sae)
        .bind(architecture.as_str())
        .bind(normalization_name(*normalization))
        .bind(i64::try_from(*data_start).unwrap_or(i64::MAX))
        .bind(format)
        .bind(origin)
        .bind(created_at_ms)
        .execute(&self.writer)
        .await;
        match result {
            Ok(done) => Ok(SaeRecord {
                key: done.last_insert_rowid(),
                ..sae.clone()
            }),
            Err(error)
                if error
                    .as_database_error()
                    .is_some_and(sqlx::error::DatabaseError::is_unique_violation) =>
            {
                Err(Error::SaeExists {
                    sae_id: name.clone(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn find_sae(&self, name: &str) -> Result<Option<SaeRecord>> {
        let mut query = QueryBuilder::new("SELECT ");
        query
            .push(SAE_COLUMNS)
            .push(" FROM saes WHERE name = ")
            .push_bind(name);
        let row: Option<SaeRow> = query.build_query_as().fetch_optional(&self.readers).await?;
        row.map(SaeRow::into_record).transpose()
    }

    pub(super) async fn page_of_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        let mut query = QueryBuilder::new("SELECT ");
        query
            .push(SAE_COLUMNS)
            .push(" FROM saes WHERE name > ")
            .push_bind(after);
        query.push(" ORDER BY name LIMIT ").push_bind(limit);
        let rows: Vec<SaeRow> = query.build_query_as().fetch_all(&self.readers).await?;
        rows.into_iter().map(SaeRow::into_record).collect()
    }

    pub(super) async fn delete_sae(&self, name: &str) -> Result<Option<(String, bool)>> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let digest: Option<String> =
            sqlx::query_scalar("DELETE FROM saes WHERE name = ? RETURNING digest")
                .bind(name)
                .fetch_optional(&mut *transaction)
                .await?;
        let Some(digest) = digest else {
            return Ok(None);
        };
        let shared = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM saes WHERE digest = ?)")
            .bind(&digest)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some((digest, shared)))
    }

    pub(super) async fn find_digest(&self, digest: &str) -> Result<bool> {
        Ok(
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM saes WHERE digest = ?)")
                .bind(digest)
                .fetch_one(&self.writer)
                .await?,
        )
    }
}
