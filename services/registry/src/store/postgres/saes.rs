//! Table `saes`.

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::PostgresStore;
use crate::{
    canonical::{Layout, normalization_name},
    error::{Error, Result},
    store::{
        Address, SaeRecord, Versions, now_ms,
        rows::{
            NEWEST_SAE, SAE_COLUMNS, SaeRow, prefix_end, sae_version_name, sae_version_names,
            same_place,
        },
    },
};

impl PostgresStore {
    pub(super) async fn insert_sae(&self, sae: &SaeRecord, new_version: bool) -> Result<SaeRecord> {
        let mut transaction = self.begin_result().await?;
        let held: Option<i64> = sqlx::query_scalar("SELECT id FROM saes WHERE name = $1")
            .bind(&sae.name)
            .fetch_optional(&mut *transaction)
            .await?;
        if held.is_some() && !new_version {
            return Err(Error::SaeExists {
                sae_id: sae.name.clone(),
            });
        }
        let mut query = select();
        push_address(&mut query, &Address::of(&sae.name, &sae.digest));
        let same: Option<SaeRow> = query
            .build_query_as()
            .fetch_optional(&mut *transaction)
            .await?;
        match same.map(SaeRow::into_record).transpose()? {
            Some(stored) => {
                same_place(&stored, sae)?;
                sqlx::query("UPDATE saes SET deleted_at_ms = NULL, stored = DEFAULT WHERE id = $1")
                    .bind(stored.key)
                    .execute(&mut *transaction)
                    .await?;
            }
            None => insert(&mut transaction, sae).await?,
        }
        point(&mut transaction, &sae.name).await?;
        let mut query = select();
        query.push("WHERE name = ").push_bind(&sae.name);
        let row: SaeRow = query.build_query_as().fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        row.into_record()
    }

    pub(super) async fn find_sae(&self, name: &str) -> Result<Option<SaeRecord>> {
        let mut query = select();
        query.push("WHERE name = ").push_bind(name);
        let row: Option<SaeRow> = query.build_query_as().fetch_optional(&self.pool).await?;
        row.map(SaeRow::into_record).transpose()
    }

    pub(super) async fn find_saes(
        &self,
        address: &Address,
        versions: Versions,
    ) -> Result<Vec<SaeRecord>> {
        let mut query = select();
        push_address(&mut query, address);
        query.push(" AND ").push(versions.of_saes());
        query.push(" ORDER BY stored DESC LIMIT 2");
        let rows: Vec<SaeRow> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(SaeRow::into_record).collect()
    }

    pub(super) async fn page_of_saes(&self, after: &str, limit: u32) -> Result<Vec<SaeRecord>> {
        let mut query = select();
        query.push("WHERE name > ").push_bind(after);
        query.push(" AND ").push(NEWEST_SAE);
        query
            .push(" ORDER BY name LIMIT ")
            .push_bind(i64::from(limit));
        let rows: Vec<SaeRow> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter().map(SaeRow::into_record).collect()
    }

    pub(super) async fn page_of_sae_versions(
        &self,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, SaeRecord)>> {
        let mut query = select();
        query.push("WHERE stored > ").push_bind(after);
        query.push(" AND ").push(versions.of_saes());
        query
            .push(" ORDER BY stored LIMIT ")
            .push_bind(i64::from(limit));
        let rows: Vec<SaeRow> = query.build_query_as().fetch_all(&self.pool).await?;
        rows.into_iter()
            .map(|row| Ok((row.stored, row.into_record()?)))
            .collect()
    }

    pub(super) async fn hide_saes(&self, address: &Address) -> Result<u32> {
        let mut query = QueryBuilder::new("UPDATE saes SET deleted_at_ms = ");
        query.push_bind(now_ms()).push(" ");
        self.change_saes(query, address, Versions::Live).await
    }

    pub(super) async fn show_saes(&self, address: &Address) -> Result<u32> {
        let query = QueryBuilder::new("UPDATE saes SET deleted_at_ms = NULL ");
        self.change_saes(query, address, Versions::Deleted).await
    }

    async fn change_saes(
        &self,
        mut query: QueryBuilder<Postgres>,
        address: &Address,
        versions: Versions,
    ) -> Result<u32> {
        let mut transaction = self.pool.begin().await?;
        push_address(&mut query, address);
        query.push(" AND ").push(versions.of_saes());
        let done = query.build().execute(&mut *transaction).await?;
        point(&mut transaction, &address.name).await?;
        transaction.commit().await?;
        Ok(u32::try_from(done.rows_affected()).unwrap_or(u32::MAX))
    }

    pub(super) async fn remove_saes(
        &self,
        address: &Address,
        deleted_before_ms: Option<i64>,
    ) -> Result<Vec<(String, bool)>> {
        let mut transaction = self.pool.begin().await?;
        let mut query = QueryBuilder::<Postgres>::new("DELETE FROM saes ");
        push_address(&mut query, address);
        if let Some(before) = deleted_before_ms {
            query.push(" AND deleted_at_ms < ").push_bind(before);
        }
        query.push(" RETURNING id, digest");
        let rows: Vec<(i64, String)> = query.build_query_as().fetch_all(&mut *transaction).await?;
        let (keys, digests): (Vec<i64>, Vec<String>) = rows.into_iter().unzip();
        remove_labels(&mut transaction, &keys).await?;
        point(&mut transaction, &address.name).await?;
        let mut removed = Vec::new();
        for digest in digests {
            let shared = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM saes WHERE digest = $1)")
                .bind(&digest)
                .fetch_one(&mut *transaction)
                .await?;
            removed.push((digest, shared));
        }
        transaction.commit().await?;
        Ok(removed)
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

fn select() -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(SAE_COLUMNS).push(" FROM saes ");
    query
}

fn push_address(query: &mut QueryBuilder<Postgres>, address: &Address) {
    let [first, end] = sae_version_names(&address.name);
    query
        .push("WHERE (name = ")
        .push_bind(address.name.clone())
        .push(" OR name >= ")
        .push_bind(first)
        .push(" AND name < ")
        .push_bind(end)
        .push(")");
    if let Some(prefix) = &address.digest_prefix {
        query.push(" AND digest >= ").push_bind(prefix.clone());
        query.push(" AND digest < ").push_bind(prefix_end(prefix));
    }
}

/// Adds a version that no name finds yet.
async fn insert(connection: &mut PgConnection, sae: &SaeRecord) -> Result<()> {
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
        deleted_at_ms: _,
    } = sae;
    sqlx::query(
        "INSERT INTO saes (name, digest, hook_name, model_id, d_in, d_sae, architecture, \
         input_normalization, data_start, format, origin, created_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(sae_version_name(name, digest))
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
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes what belongs to SAEs that were removed in the same transaction. Imports hold the SAE's
/// row, so that there is none now, and what they stored is seen.
async fn remove_labels(connection: &mut PgConnection, saes: &[i64]) -> Result<()> {
    for rows in [
        "DELETE FROM labels WHERE sae = ANY($1)",
        "DELETE FROM label_postings WHERE sae = ANY($1)",
    ] {
        sqlx::query(rows)
            .bind(saes)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Lets a name find its newest version that was not deleted, and no other.
async fn point(connection: &mut PgConnection, name: &str) -> Result<()> {
    // A registry from before migration 50 stores deleted content beside itself.
    let twice: Vec<i64> = sqlx::query_scalar(
        "DELETE FROM saes deleted USING saes held WHERE held.name = $1 \
         AND deleted.name = held.name || '@' || held.digest RETURNING deleted.id",
    )
    .bind(name)
    .fetch_all(&mut *connection)
    .await?;
    remove_labels(connection, &twice).await?;
    sqlx::query("UPDATE saes SET name = name || '@' || digest WHERE name = $1")
        .bind(name)
        .execute(&mut *connection)
        .await?;
    let [first, end] = sae_version_names(name);
    sqlx::query(
        "UPDATE saes SET name = $1 WHERE id = (SELECT id FROM saes WHERE name >= $2 AND name < $3 \
         AND deleted_at_ms IS NULL ORDER BY stored DESC LIMIT 1)",
    )
    .bind(name)
    .bind(first)
    .bind(end)
    .execute(&mut *connection)
    .await?;
    Ok(())
}
