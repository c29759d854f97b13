//! Tables `cavs` and `cav_directions`.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{SqliteStore, prefix_end};
use crate::{
    error::{Error, Result},
    store::{CavAddress, CavDirectionRecord, CavRecord},
};

#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: i64,
    name: String,
    digest: String,
    model_id: String,
    origin: String,
    created_at_ms: i64,
    stored: i64,
    training: Option<String>,
}

const COLUMNS: &str =
    "SELECT id, name, digest, model_id, origin, created_at_ms, stored, training FROM cavs ";

impl SqliteStore {
    pub(super) async fn insert_cavs(&self, cavs: &[CavRecord]) -> Result<Vec<CavRecord>> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut stored = Vec::with_capacity(cavs.len());
        for cav in cavs {
            stored.push(store(&mut transaction, cav).await?);
        }
        transaction.commit().await?;
        Ok(stored)
    }

    pub(super) async fn page_of_cavs(
        &self,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<CavRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        query.push("WHERE name > ").push_bind(after);
        query.push(" AND name >= ").push_bind(prefix);
        query.push(" AND name < ").push_bind(prefix_end(prefix));
        query.push(
            " AND stored = (SELECT MAX(stored) FROM cavs newest WHERE newest.name = cavs.name)",
        );
        query.push(" ORDER BY name LIMIT ").push_bind(limit);
        let rows: Vec<Row> = query.build_query_as().fetch_all(&self.readers).await?;
        let mut cavs = Vec::with_capacity(rows.len());
        let mut connection = self.readers.acquire().await?;
        for row in rows {
            cavs.push(complete(&mut connection, row, false).await?);
        }
        Ok(cavs)
    }

    pub(super) async fn page_of_cav_versions(
        &self,
        prefix: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, CavRecord)>> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        query.push("WHERE stored > ").push_bind(after);
        query.push(" AND name >= ").push_bind(prefix);
        query.push(" AND name < ").push_bind(prefix_end(prefix));
        query.push(" ORDER BY stored LIMIT ").push_bind(limit);
        let rows: Vec<Row> = query.build_query_as().fetch_all(&self.readers).await?;
        let mut cavs = Vec::with_capacity(rows.len());
        let mut connection = self.readers.acquire().await?;
        for row in rows {
            let stored = row.stored;
            cavs.push((stored, complete(&mut connection, row, false).await?));
        }
        Ok(cavs)
    }

    pub(super) async fn find_cavs(&self, address: &CavAddress) -> Result<Vec<CavRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        push_address(&mut query, address);
        query.push(" ORDER BY stored DESC LIMIT 2");
        let rows: Vec<Row> = query.build_query_as().fetch_all(&self.readers).await?;
        let mut cavs = Vec::with_capacity(rows.len());
        let mut connection = self.readers.acquire().await?;
        for row in rows {
            cavs.push(complete(&mut connection, row, true).await?);
        }
        Ok(cavs)
    }

    pub(super) async fn delete_cavs(&self, address: &CavAddress) -> Result<u32> {
        let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM cavs ");
        push_address(&mut query, address);
        let removed = query.build().execute(&self.writer).await?.rows_affected();
        Ok(u32::try_from(removed).unwrap_or(u32::MAX))
    }

    pub(super) async fn find_cav_names(&self, limit: u32) -> Result<Vec<String>> {
        Ok(
            sqlx::query_scalar("SELECT DISTINCT name FROM cavs ORDER BY name LIMIT ?")
                .bind(limit)
                .fetch_all(&self.readers)
                .await?,
        )
    }
}

fn push_address(query: &mut QueryBuilder<Sqlite>, address: &CavAddress) {
    query.push("WHERE name = ").push_bind(address.name.clone());
    if let Some(prefix) = &address.digest_prefix {
        query.push(" AND digest >= ").push_bind(prefix.clone());
        query.push(" AND digest < ").push_bind(prefix_end(prefix));
    }
}

/// Adds a version, or makes the same one the newest again.
async fn store(connection: &mut SqliteConnection, cav: &CavRecord) -> Result<CavRecord> {
    let CavRecord {
        name,
        digest,
        model_id,
        origin,
        created_at_ms,
        directions,
        training,
    } = cav;
    let training = training.as_ref().map(serde_json::to_string).transpose();
    let training = training.map_err(|error| Error::Storage(Box::new(error)))?;
    let row: Row = sqlx::query_as(
        "INSERT INTO cavs (name, digest, model_id, origin, created_at_ms, training, stored) \
         VALUES (?, ?, ?, ?, ?, ?, (SELECT COALESCE(MAX(stored), 0) + 1 FROM cavs)) \
         ON CONFLICT (name, digest) DO UPDATE SET stored = excluded.stored, training = COALESCE(excluded.training, cavs.training) \
         RETURNING id, name, digest, model_id, origin, created_at_ms, stored, training",
    )
    .bind(name)
    .bind(digest)
    .bind(model_id)
    .bind(origin)
    .bind(created_at_ms)
    .bind(training)
    .fetch_one(&mut *connection)
    .await?;
    if row.model_id != *model_id {
        return Err(Error::CavExists {
            name: row.name,
            stored_model_id: row.model_id,
        });
    }
    for (position, direction) in (0_i64..).zip(directions) {
        let vector: Vec<u8> = direction
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        sqlx::query(
            "INSERT INTO cav_directions (cav, position, hook_name, width, norm, vector) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(row.id)
        .bind(position)
        .bind(&direction.hook_name)
        .bind(direction.width)
        .bind(direction.norm)
        .bind(vector)
        .execute(&mut *connection)
        .await?;
    }
    complete(connection, row, false).await
}

async fn complete(
    connection: &mut SqliteConnection,
    row: Row,
    with_numbers: bool,
) -> Result<CavRecord> {
    let rows: Vec<(String, u32, f32, Vec<u8>)> = sqlx::query_as(
        "SELECT hook_name, width, norm, CASE ? WHEN 1 THEN vector ELSE x'' END FROM cav_directions \
         WHERE cav = ? ORDER BY position",
    )
    .bind(with_numbers)
    .bind(row.id)
    .fetch_all(connection)
    .await?;
    let mut directions = Vec::with_capacity(rows.len());
    for (hook_name, width, norm, bytes) in rows {
        let (cells, rest) = bytes.as_chunks::<4>();
        let values: Vec<f32> = cells.iter().map(|cell| f32::from_le_bytes(*cell)).collect();
        if !rest.is_empty() || (with_numbers && values.len() as u64 != u64::from(width)) {
            return Err(Error::DataLoss(format!(
                "CAV {}@{} has a vector of the wrong length",
                row.name, row.digest
            )));
        }
        directions.push(CavDirectionRecord {
            hook_name,
            width,
            norm,
            values,
        });
    }
    let Row {
        id: _,
        name,
        digest,
        model_id,
        origin,
        created_at_ms,
        stored: _,
        training,
    } = row;
    let training = training.map(|json| serde_json::from_str(&json)).transpose();
    let training = training
        .map_err(|error| Error::DataLoss(format!("CAV {name}@{digest}: its training: {error}")))?;
    Ok(CavRecord {
        name,
        digest,
        model_id,
        origin,
        created_at_ms,
        directions,
        training,
    })
}
