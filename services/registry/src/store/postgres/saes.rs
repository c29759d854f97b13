//! Table `saes`.

use sqlx::{Postgres, QueryBuilder};

use super::PostgresStore;
use crate::{
    canonical::{Layout, normalization_name},
    error::{Error, Result},
    store::{
        SaeRecord,
        rows::{SAE_COLUMNS, SaeRow},
    },
};

impl PostgresStore {
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
        let key: Option<i64> = sqlx::query_scalar(
            "INSERT INTO saes (name, digest, hook_name, model_id, d_in, d_sae, architecture, \
             input_normalization, data_start, format, origin, created_at_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT (name) DO NOTHING RETURNING id",
        )
        .bind(name)
        .bind(digest)
        .bind(hook_name)
        .bind(model_id)
        .bind(i64::from(*d_in))
        .bind(i64::from(*d_sae))
        .bind(architecture.as_str())
        .bind(normalization_name(*normalization))
        .bind(i64::try_from(*data_start).unwrap_or(i64::MAX))
        .bind(format)
        .bind(origin)
        .bind(created_at_ms)
        .fetch_optional(&self.pool)
        .await?;
        match key {
            Some(key) => Ok(SaeRecord { key, ..sae.clone() }),
            None => Err(Error::SaeExists {
                sae_id: name.clone(),
            }),
        }
    }

    pub(super) async fn find_sae(&self, name: &str) -> Result<Option<SaeRecord>> {
        let mut query = QueryBuilder::<Postgres>::new("SELECT ");
        query
            .push(SAE_COLUMNS)
            .push(" FROM saes WHERE name = ")
            .push_bind(name);
        let row: Option<SaeRow> = query.build_query_as().fetch_optional(&self.pool).await?;
        row.map(SaeRow::into_record).transpose()
    }

    pub(super) async fn page_of_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        let mut query = QueryBuilder::<Postgres>::new("SELECT ");
        query
            .push(SAE_COLUMNS)
            .push(" FROM saes WHERE name > ")
            .push_bind(after);
        query
            .push(" ORDER BY name LIMIT ")
            .push_bind(i64::from(limit));
        let rows: Vec<SaeRow> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(SaeRow::into_record).collect()
    }

    pub(super) async fn delete_sae(&self, name: &str) -> Result<Option<(String, bool)>> {
        let mut transaction = self.pool.begin().await?;
        let deleted: Option<(i64, String)> =
            sqlx::query_as("DELETE FROM saes WHERE name = $1 RETURNING id, digest")
                .bind(name)
                .fetch_optional(&mut *transaction)
                .await?;
        let Some((key, digest)) = deleted else {
            return Ok(None);
        };
        // Imports hold the SAE's row, so that there is none now, and what they stored is seen.
        for rows in [
            "DELETE FROM labels WHERE sae = $1",
            "DELETE FROM label_postings WHERE sae = $1",
        ] {
            sqlx::query(rows)
                .bind(key)
                .execute(&mut *transaction)
                .await?;
        }
        let shared = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM saes WHERE digest = $1)")
            .bind(&digest)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some((digest, shared)))
    }

    pub(super) async fn find_digest(&self, digest: &str) -> Result<bool> {
        Ok(
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM saes WHERE digest = $1)")
                .bind(digest)
                .fetch_one(&self.pool)
                .await?,
        )
    }
}
