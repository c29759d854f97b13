//! What searches read.
//!
//! Statistics are never gathered, so where the planner would go another way, an index is
//! named, and CROSS JOIN keeps the order of tables.
//!
//! SQLite reads a bare `LIMIT ?` into the plan, and then makes the plan anew for each call
//! (`sqlite3ExprIsInteger`), which takes longer than most of them: so it is `LIMIT ? + 0`.
//!
//! sqlx hands each row from one thread to another, and wakes it up. So there is one row, of JSON,
//! where each search would get a short one for every SAE.

use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite, SqliteExecutor, pool::PoolConnection};
use tonic::async_trait;

use super::json;
use crate::{
    error::{Error, Result},
    store::{
        LabelReader, LabelRecord, LabelTexts, Posting, SaeFilter, SearchedSae,
        rows::{LABEL_COLUMNS, LabelRow, prefix_end},
    },
};

pub(super) fn select_labels(from: &str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(LABEL_COLUMNS).push(" FROM ").push(from);
    query
}

pub(super) async fn labels(
    executor: impl SqliteExecutor<'_>,
    mut query: QueryBuilder<Sqlite>,
) -> Result<Vec<LabelRecord>> {
    let rows: Vec<LabelRow> = query.build_query_as().fetch_all(executor).await?;
    rows.into_iter().map(LabelRow::into_record).collect()
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::Storage(Box::new(error)))
}

/// Of one search.
pub(super) struct Reader(pub(super) PoolConnection<Sqlite>);

#[async_trait]
impl LabelReader for Reader {
    async fn saes(&mut self, filter: &SaeFilter) -> Result<Vec<SearchedSae>> {
        let SaeFilter {
            key,
            model_id,
            hook_name,
        } = filter;
        let which = match key {
            Some(_) => "id = ?1",
            None => "?1 IS NULL AND name NOT LIKE '%@%'",
        };
        let saes = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT json_group_array(json_array(id, \
             COALESCE((SELECT MAX(i.id) FROM label_imports i WHERE i.sae = saes.id), 0))) \
             FROM saes WHERE {which} AND (?2 IS NULL OR model_id = ?2) AND (?3 IS NULL OR hook_name = ?3)",
        )));
        let saes: String = saes
            .bind(key)
            .bind(model_id)
            .bind(hook_name)
            .fetch_one(&mut *self.0)
            .await?;
        let mut saes: Vec<(i64, i64)> = from_json(&saes)?;
        saes.sort_unstable();
        let saes = saes.into_iter();
        Ok(saes
            .map(|(key, last_import)| SearchedSae { key, last_import })
            .collect())
    }

    async fn saes_with_text(&mut self, saes: &[i64], text: &str) -> Result<Vec<(i64, bool)>> {
        let found: String = sqlx::query_scalar(
            "SELECT json_group_array(json_array(sae, folded = ?2)) FROM \
             (SELECT s.value AS sae, (SELECT l.folded FROM labels l \
             INDEXED BY labels_text WHERE l.sae = s.value AND l.folded >= ?2 ORDER BY l.folded \
             LIMIT 1) AS folded FROM json_each(?1) s) WHERE folded < ?3",
        )
        .bind(json(saes))
        .bind(text)
        .bind(prefix_end(text))
        .fetch_one(&mut *self.0)
        .await?;
        let mut found: Vec<(i64, u8)> = from_json(&found)?;
        found.sort_unstable();
        let found = found.into_iter();
        Ok(found
            .map(|(sae, may_be_it)| (sae, may_be_it == 1))
            .collect())
    }

    async fn labels_by_text(&mut self, texts: LabelTexts<'_>) -> Result<Vec<LabelRecord>> {
        let LabelTexts {
            saes,
            text,
            exact,
            after,
            limit,
        } = texts;
        let mut query =
            select_labels("saes s CROSS JOIN labels l INDEXED BY labels_text ON l.sae = s.id ");
        // Row by row in order of the key, so that the first labels are found first.
        query.push("WHERE +s.id IN (SELECT value FROM json_each(");
        query.push_bind(json(saes)).push("))");
        let (after_text, after_key) = after.unwrap_or((text, if exact { 0 } else { i64::MAX }));
        if exact {
            query.push(" AND l.folded = ").push_bind(text);
            query.push(" AND l.id > ").push_bind(after_key);
        } else {
            query
                .push(" AND (l.folded, l.id) > (")
                .push_bind(after_text);
            query.push(", ").push_bind(after_key);
            query.push(") AND l.folded < ").push_bind(prefix_end(text));
        }
        query.push(" ORDER BY s.id, l.folded, l.id LIMIT ");
        query.push_bind(limit).push(" + 0");
        labels(&mut *self.0, query).await
    }

    async fn labels_by_key(&mut self, keys: &[i64]) -> Result<Vec<LabelRecord>> {
        let mut query = select_labels("json_each(");
        query.push_bind(json(keys));
        query.push(") k CROSS JOIN labels l ON l.id = k.value CROSS JOIN saes s ON s.id = l.sae");
        labels(&mut *self.0, query).await
    }

    async fn vocabulary(&mut self, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        Ok(sqlx::query_as(
            "SELECT id, word FROM label_vocabulary WHERE id > ? ORDER BY id LIMIT ? + 0",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn postings(&mut self, saes: &[i64], words: &[i64]) -> Result<Vec<Posting>> {
        Ok(sqlx::query_as(
            "SELECT p.sae, p.word, p.first, p.labels FROM json_each(?) s CROSS JOIN json_each(?) w \
             CROSS JOIN label_postings p ON p.sae = s.value AND p.word = w.value",
        )
        .bind(json(saes))
        .bind(json(words))
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn postings_of(
        &mut self,
        sae: i64,
        after: (i64, i64),
        limit: u32,
    ) -> Result<Vec<Posting>> {
        Ok(sqlx::query_as(
            "SELECT sae, word, first, labels FROM label_postings \
             WHERE sae = ? AND (word, first) > (?, ?) ORDER BY word, first LIMIT ? + 0",
        )
        .bind(sae)
        .bind(after.0)
        .bind(after.1)
        .bind(limit)
        .fetch_all(&mut *self.0)
        .await?)
    }
}
