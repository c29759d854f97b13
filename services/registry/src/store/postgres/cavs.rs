//! Tables `cavs` and `cav_directions`.

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::{Exclusive, PostgresStore};
use crate::{
    error::Result,
    store::{
        Address, CavRecord, Versions, now_ms,
        rows::{
            CAV_COLUMNS, CavRow, DirectionRow, cav_records, prefix_end, same_model, training_text,
            vector_bytes,
        },
    },
};

impl PostgresStore {
    pub(super) async fn insert_cavs(&self, cavs: &[CavRecord]) -> Result<Vec<CavRecord>> {
        let mut transaction = self.begin_exclusive(Exclusive::Cavs).await?;
        let mut stored = Vec::with_capacity(cavs.len());
        for cav in cavs {
            stored.push(store(&mut transaction, cav).await?);
        }
        let records = complete(&mut transaction, stored, false).await?;
        transaction.commit().await?;
        Ok(records)
    }

    pub(super) async fn page_of_cavs(
        &self,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<CavRecord>> {
        let mut query = select();
        query.push("WHERE name > ").push_bind(after);
        query.push(" AND name >= ").push_bind(prefix);
        query.push(" AND name < ").push_bind(prefix_end(prefix));
        query.push(
            " AND stored = (SELECT MAX(stored) FROM cavs newest WHERE newest.name = cavs.name \
             AND deleted_stored IS DISTINCT FROM stored)",
        );
        query
            .push(" ORDER BY name LIMIT ")
            .push_bind(i64::from(limit));
        self.cavs(query, false).await
    }

    pub(super) async fn page_of_cav_versions(
        &self,
        prefix: &str,
        versions: Versions,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, CavRecord)>> {
        let mut query = select();
        query.push("WHERE stored > ").push_bind(after);
        query.push(" AND name >= ").push_bind(prefix);
        query.push(" AND name < ").push_bind(prefix_end(prefix));
        query.push(" AND ").push(versions.of_cavs());
        query
            .push(" ORDER BY stored LIMIT ")
            .push_bind(i64::from(limit));
        let mut connection = self.pool.acquire().await?;
        let rows: Vec<CavRow> = query.build_query_as().fetch_all(&mut *connection).await?;
        let stored: Vec<i64> = rows.iter().map(|row| row.stored).collect();
        let records = complete(&mut connection, rows, false).await?;
        Ok(stored.into_iter().zip(records).collect())
    }

    pub(super) async fn find_cavs(
        &self,
        address: &Address,
        versions: Versions,
    ) -> Result<Vec<CavRecord>> {
        let mut query = select();
        push_address(&mut query, address, versions);
        query.push(" ORDER BY stored DESC LIMIT 2");
        self.cavs(query, true).await
    }

    async fn cavs(
        &self,
        mut query: QueryBuilder<Postgres>,
        with_numbers: bool,
    ) -> Result<Vec<CavRecord>> {
        let mut connection = self.pool.acquire().await?;
        let rows = query.build_query_as().fetch_all(&mut *connection).await?;
        complete(&mut connection, rows, with_numbers).await
    }

    pub(super) async fn hide_cavs(&self, address: &Address) -> Result<u32> {
        let mut query =
            QueryBuilder::new("UPDATE cavs SET deleted_stored = stored, deleted_at_ms = ");
        query.push_bind(now_ms()).push(" ");
        push_address(&mut query, address, Versions::Live);
        self.change(query).await
    }

    pub(super) async fn show_cavs(&self, address: &Address) -> Result<u32> {
        let mut query = QueryBuilder::new("UPDATE cavs SET deleted_stored = NULL ");
        push_address(&mut query, address, Versions::Deleted);
        self.change(query).await
    }

    pub(super) async fn remove_cavs(&self, address: &Address) -> Result<u32> {
        let mut query = QueryBuilder::new("DELETE FROM cavs ");
        push_address(&mut query, address, Versions::All);
        self.change(query).await
    }

    pub(super) async fn remove_deleted_cavs(&self, before_ms: i64) -> Result<u32> {
        let mut query = QueryBuilder::new("DELETE FROM cavs WHERE deleted_at_ms < ");
        query.push_bind(before_ms);
        query.push(" AND ").push(Versions::Deleted.of_cavs());
        self.change(query).await
    }

    async fn change(&self, mut query: QueryBuilder<Postgres>) -> Result<u32> {
        let changed = query.build().execute(&self.pool).await?.rows_affected();
        Ok(u32::try_from(changed).unwrap_or(u32::MAX))
    }

    pub(super) async fn find_cav_names(&self, limit: u32) -> Result<Vec<String>> {
        Ok(
            sqlx::query_scalar("SELECT DISTINCT name FROM cavs WHERE deleted_stored IS DISTINCT FROM stored ORDER BY name LIMIT $1")
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await?,
        )
    }
}

fn select() -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(CAV_COLUMNS).push(" FROM cavs ");
    query
}

fn push_address(query: &mut QueryBuilder<Postgres>, address: &Address, versions: Versions) {
    query.push("WHERE name = ").push_bind(address.name.clone());
    if let Some(prefix) = &address.digest_prefix {
        query.push(" AND digest >= ").push_bind(prefix.clone());
        query.push(" AND digest < ").push_bind(prefix_end(prefix));
    }
    query.push(" AND ").push(versions.of_cavs());
}

/// Adds a version, or makes the same one the newest again.
async fn store(connection: &mut PgConnection, cav: &CavRecord) -> Result<CavRow> {
    let mut insert = QueryBuilder::<Postgres>::new(
        "INSERT INTO cavs (name, digest, model_id, origin, created_at_ms, training, stored) \
         VALUES (",
    );
    let mut values = insert.separated(", ");
    values
        .push_bind(&cav.name)
        .push_bind(&cav.digest)
        .push_bind(&cav.model_id)
        .push_bind(&cav.origin)
        .push_bind(cav.created_at_ms)
        .push_bind(training_text(cav)?)
        .push("(SELECT COALESCE(MAX(stored), 0) + 1 FROM cavs)");
    insert.push(
        ") ON CONFLICT (name, digest) DO UPDATE SET stored = excluded.stored, \
         training = COALESCE(cavs.training, excluded.training) RETURNING ",
    );
    insert.push(CAV_COLUMNS);
    let row: CavRow = insert.build_query_as().fetch_one(&mut *connection).await?;
    same_model(&row, cav)?;
    for (position, direction) in (0_i64..).zip(&cav.directions) {
        sqlx::query(
            "INSERT INTO cav_directions (cav, position, hook_name, width, norm, vector) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(row.id)
        .bind(position)
        .bind(&direction.hook_name)
        .bind(i64::from(direction.width))
        .bind(direction.norm)
        .bind(vector_bytes(&direction.values))
        .execute(&mut *connection)
        .await?;
    }
    Ok(row)
}

/// Adds the directions.
async fn complete(
    connection: &mut PgConnection,
    cavs: Vec<CavRow>,
    with_numbers: bool,
) -> Result<Vec<CavRecord>> {
    let ids: Vec<i64> = cavs.iter().map(|cav| cav.id).collect();
    let directions: Vec<DirectionRow> = sqlx::query_as(
        "SELECT cav, hook_name, width, norm, CASE WHEN $1 THEN vector ELSE ''::bytea END AS vector \
         FROM cav_directions WHERE cav = ANY($2) ORDER BY cav, position",
    )
    .bind(with_numbers)
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    cav_records(cavs, directions, with_numbers)
}
