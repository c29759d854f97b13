//! What searches read.

use sqlx::{Postgres, QueryBuilder};

use super::PostgresStore;
use crate::{
    error::Result,
    store::{
        LabelRecord, LabelTexts, Posting,
        rows::{LABEL_COLUMNS, LabelRow, prefix_end},
    },
};

pub(super) fn select_labels(from: &str) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(LABEL_COLUMNS).push(" FROM ").push(from);
    query
}

impl PostgresStore {
    pub(super) async fn labels(
        &self,
        mut query: QueryBuilder<Postgres>,
    ) -> Result<Vec<LabelRecord>> {
        let rows: Vec<LabelRow> = query.build_query_as().fetch_all(&self.pool).await?;
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
        // One short range of the index per SAE. The index has the beginnings of texts, so
        // the rest of a condition looks at the text itself.
        let mut query = select_labels("saes s CROSS JOIN LATERAL (SELECT * FROM labels ");
        query.push("WHERE sae = s.id");
        if exact {
            let after_key = after.map_or(0, |(_, key)| key);
            query.push(" AND left(folded, 256) = left(").push_bind(text);
            query.push(", 256) AND folded = ").push_bind(text);
            query.push(" AND id > ").push_bind(after_key);
        } else {
            let (after_text, after_key) = after.unwrap_or((text, 0));
            query
                .push(" AND (left(folded, 256), id) > (left(")
                .push_bind(after_text);
            query.push(", 256), ").push_bind(after_key);
            query
                .push(") AND left(folded, 256) < ")
                .push_bind(prefix_end(text));
            query.push(" AND folded > ").push_bind(text);
            query.push(" AND folded < ").push_bind(prefix_end(text));
        }
        query.push(" ORDER BY sae, left(folded, 256), id LIMIT ");
        query.push_bind(i64::from(limit));
        query.push(") l WHERE s.id = ANY(").push_bind(saes);
        query.push(") ORDER BY s.id, left(l.folded, 256), l.id LIMIT ");
        query.push_bind(i64::from(limit));
        self.labels(query).await
    }

    pub(super) async fn find_labels_by_key(&self, keys: &[i64]) -> Result<Vec<LabelRecord>> {
        let mut query = select_labels("labels l JOIN saes s ON s.id = l.sae WHERE l.id = ANY(");
        query.push_bind(keys).push(")");
        self.labels(query).await
    }

    pub(super) async fn find_vocabulary(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, String)>> {
        Ok(sqlx::query_as(
            "SELECT id, word FROM label_vocabulary WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?)
    }

    pub(super) async fn find_postings(&self, saes: &[i64], words: &[i64]) -> Result<Vec<Posting>> {
        let rows: Vec<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT sae, word, first, labels FROM label_postings \
             WHERE sae = ANY($1) AND word = ANY($2)",
        )
        .bind(saes)
        .bind(words)
        .fetch_all(&self.pool)
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
