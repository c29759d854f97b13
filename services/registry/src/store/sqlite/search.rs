//! What searches read.
//!
//! Statistics are never gathered, so where the planner would go another way, an index is
//! named, and CROSS JOIN keeps the order of tables.

use sqlx::{QueryBuilder, Sqlite};

use super::{SqliteStore, json};
use crate::{
    error::Result,
    store::{
        LabelRecord, LabelTexts, Posting,
        rows::{LABEL_COLUMNS, LabelRow, prefix_end},
    },
};

pub(super) fn select_labels(from: &str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(LABEL_COLUMNS).push(" FROM ").push(from);
    query
}

impl SqliteStore {
    pub(super) async fn labels(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<LabelRecord>> {
        let rows: Vec<LabelRow> = query.build_query_as().fetch_all(&self.readers).await?;
        rows.into_iter().map(LabelRow::into_record).collect()
    }

    pub(super) async fn find_labels_by_text(
        &self,
        texts: LabelTexts<'_>,
    ) -> Result<Vec<LabelRecord>> {
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
        query.push_bind(limit);
        self.labels(query).await
    }

    pub(super) async fn find_labels_by_key(&self, keys: &[i64]) -> Result<Vec<LabelRecord>> {
        let mut query = select_labels("json_each(");
        query.push_bind(json(keys));
        query.push(") k CROSS JOIN labels l ON l.id = k.value CROSS JOIN saes s ON s.id = l.sae");
        self.labels(query).await
    }

    pub(super) async fn find_vocabulary(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, String)>> {
        Ok(
            sqlx::query_as(
                "SELECT id, word FROM label_vocabulary WHERE id > ? ORDER BY id LIMIT ?",
            )
            .bind(after)
            .bind(limit)
            .fetch_all(&self.readers)
            .await?,
        )
    }

    pub(super) async fn find_postings(&self, saes: &[i64], words: &[i64]) -> Result<Vec<Posting>> {
        let rows: Vec<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT p.sae, p.word, p.first, p.labels FROM json_each(?) s CROSS JOIN json_each(?) w \
             CROSS JOIN label_postings p ON p.sae = s.value AND p.word = w.value",
        )
        .bind(json(saes))
        .bind(json(words))
        .fetch_all(&self.readers)
        .await?;
        let postings = rows.into_iter().map(|(sae, word, first, labels)| Posting {
            sae,
            word,
            first,
            labels,
        });
        Ok(postings.collect())
    }
}
