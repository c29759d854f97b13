//! What searches read.

use sqlx::{AssertSqlSafe, PgExecutor, Postgres, QueryBuilder, pool::PoolConnection};
use tonic::async_trait;

use crate::{
    error::Result,
    store::{
        LabelReader, LabelRecord, LabelTexts, Posting, SaeFilter, SearchedSae,
        rows::{LABEL_COLUMNS, LabelRow, prefix_end},
    },
};

pub(super) fn select_labels(from: &str) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(LABEL_COLUMNS).push(" FROM ").push(from);
    query
}

pub(super) async fn labels(
    executor: impl PgExecutor<'_>,
    mut query: QueryBuilder<Postgres>,
) -> Result<Vec<LabelRecord>> {
    let rows: Vec<LabelRow> = query.build_query_as().fetch_all(executor).await?;
    rows.into_iter().map(LabelRow::into_record).collect()
}

/// Of one search.
pub(super) struct Reader(pub(super) PoolConnection<Postgres>);

#[async_trait]
impl LabelReader for Reader {
    async fn saes(&mut self, filter: &SaeFilter) -> Result<Vec<SearchedSae>> {
        let SaeFilter {
            key,
            model_id,
            hook_name,
        } = filter;
        // The sum keeps the server from looking through the imports of all SAEs for the last.
        let which = match key {
            Some(_) => "id = $1",
            None => "$1::bigint IS NULL AND name NOT LIKE '%@%'",
        };
        Ok(sqlx::query_as(AssertSqlSafe(format!(
            "SELECT id AS key, \
             COALESCE((SELECT MAX(i.id + 0) FROM label_imports i WHERE i.sae = saes.id), 0) AS last_import \
             FROM saes WHERE {which} AND ($2 IS NULL OR model_id = $2) \
             AND ($3 IS NULL OR hook_name = $3) ORDER BY id",
        )))
        .bind(key)
        .bind(model_id)
        .bind(hook_name)
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn saes_with_text(&mut self, saes: &[i64], text: &str) -> Result<Vec<(i64, bool)>> {
        Ok(sqlx::query_as(
            "SELECT s.id, l.start = left($2, 256) FROM unnest($1::bigint[]) s (id) \
             CROSS JOIN LATERAL (SELECT left(folded, 256) AS start FROM labels \
             WHERE sae = s.id AND left(folded, 256) >= left($2, 256) \
             ORDER BY sae, left(folded, 256), id LIMIT 1) l \
             WHERE l.start < left($2, 256) || $3 ORDER BY s.id",
        )
        .bind(saes)
        .bind(text)
        .bind(prefix_end(""))
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn labels_by_text(&mut self, texts: LabelTexts<'_>) -> Result<Vec<LabelRecord>> {
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
        labels(&mut *self.0, query).await
    }

    async fn labels_by_key(&mut self, keys: &[i64]) -> Result<Vec<LabelRecord>> {
        let mut query = select_labels("labels l JOIN saes s ON s.id = l.sae WHERE l.id = ANY(");
        query.push_bind(keys).push(")");
        labels(&mut *self.0, query).await
    }

    async fn vocabulary(&mut self, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        Ok(sqlx::query_as(
            "SELECT id, word FROM label_vocabulary WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn postings(&mut self, saes: &[i64], words: &[i64]) -> Result<Vec<Posting>> {
        Ok(sqlx::query_as(
            "SELECT sae, word, first, labels FROM label_postings \
             WHERE sae = ANY($1) AND word = ANY($2)",
        )
        .bind(saes)
        .bind(words)
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
             WHERE sae = $1 AND (word, first) > ($2, $3) ORDER BY sae, word, first LIMIT $4",
        )
        .bind(sae)
        .bind(after.0)
        .bind(after.1)
        .bind(i64::from(limit))
        .fetch_all(&mut *self.0)
        .await?)
    }
}
