//! Table `saes`.

use sqlx::{FromRow, Row, sqlite::SqliteRow};

use super::SqliteStore;
use crate::{
    canonical::{Architecture, Layout, normalization_name, parse_normalization},
    error::{Error, Result},
    store::SaeRecord,
};

const COLUMNS: &str = "id, name, digest, hook_name, model_id, d_in, d_sae, architecture, \
                       input_normalization, data_start, format, origin, created_at_ms, label_count";

impl FromRow<'_, SqliteRow> for SaeRecord {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let bad = |column: &str| sqlx::Error::Decode(format!("saes.{column} is not valid").into());
        let architecture: String = row.try_get("architecture")?;
        let normalization: String = row.try_get("input_normalization")?;
        Ok(Self {
            key: row.try_get("id")?,
            name: row.try_get("name")?,
            digest: row.try_get("digest")?,
            hook_name: row.try_get("hook_name")?,
            model_id: row.try_get("model_id")?,
            layout: Layout {
                architecture: Architecture::parse(&architecture)
                    .ok_or_else(|| bad("architecture"))?,
                d_in: row.try_get("d_in")?,
                d_sae: row.try_get("d_sae")?,
                data_start: u64::try_from(row.try_get::<i64, _>("data_start")?)
                    .map_err(|_| bad("data_start"))?,
            },
            normalization: parse_normalization(&normalization)
                .ok_or_else(|| bad("input_normalization"))?,
            format: row.try_get("format")?,
            origin: row.try_get("origin")?,
            created_at_ms: row.try_get("created_at_ms")?,
            label_count: u64::try_from(row.try_get::<i64, _>("label_count")?)
                .map_err(|_| bad("label_count"))?,
        })
    }
}

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
        let mut query = sqlx::QueryBuilder::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM saes WHERE name = ")
            .push_bind(name);
        Ok(query.build_query_as().fetch_optional(&self.readers).await?)
    }

    pub(super) async fn page_of_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        let mut query = sqlx::QueryBuilder::new("SELECT ");
        query
            .push(COLUMNS)
            .push(" FROM saes WHERE name > ")
            .push_bind(after);
        query.push(" ORDER BY name LIMIT ").push_bind(limit);
        Ok(query.build_query_as().fetch_all(&self.readers).await?)
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
