//! The index of words: brought up to date after labels came in.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{SqliteStore, WRITE_WAIT, json};
use crate::{error::Result, store::words::Gathered};

/// Labels read at once.
const LABELS_READ: u32 = 10_000;
/// Rows per INSERT.
const ROWS_PER_INSERT: usize = 500;
/// Words looked up at once.
const WORDS_PER_QUERY: usize = 5_000;

impl SqliteStore {
    /// Indexes what an older version stored.
    pub(super) async fn index_labels(&self) -> Result<()> {
        let saes: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM saes WHERE EXISTS (SELECT 1 FROM labels WHERE sae = saes.id) \
             AND NOT EXISTS (SELECT 1 FROM label_postings WHERE sae = saes.id)",
        )
        .fetch_all(&self.writer)
        .await?;
        for sae in saes {
            let mut transaction = self.begin(WRITE_WAIT).await?;
            index_words(&mut transaction, sae, 0).await?;
            transaction.commit().await?;
        }
        Ok(())
    }
}

/// Adds the labels of an SAE with a larger id than `after`.
pub(super) async fn index_words(
    connection: &mut SqliteConnection,
    sae: i64,
    mut after: i64,
) -> Result<()> {
    let mut gathered = Gathered::default();
    loop {
        let labels: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, folded FROM labels WHERE id > ? AND +sae = ? ORDER BY id LIMIT ? + 0",
        )
        .bind(after)
        .bind(sae)
        .bind(LABELS_READ)
        .fetch_all(&mut *connection)
        .await?;
        for (id, folded) in &labels {
            gathered.add(*id, folded);
            after = *id;
        }
        let is_last = labels.is_empty();
        if gathered.is_full() || (is_last && !gathered.is_empty()) {
            write(connection, sae, std::mem::take(&mut gathered)).await?;
        }
        if is_last {
            return Ok(());
        }
    }
}

async fn write(connection: &mut SqliteConnection, sae: i64, gathered: Gathered) -> Result<()> {
    let lists = gathered.into_sorted();
    let mut ids: HashMap<String, i64> = HashMap::with_capacity(lists.len());
    for lists in lists.chunks(WORDS_PER_QUERY) {
        let words: Vec<&str> = lists.iter().map(|(word, _)| &**word).collect();
        let words = json(&words);
        sqlx::query("INSERT OR IGNORE INTO label_vocabulary (word) SELECT value FROM json_each(?)")
            .bind(&words)
            .execute(&mut *connection)
            .await?;
        let known: Vec<(String, i64)> = sqlx::query_as(
            "SELECT v.word, v.id FROM json_each(?) w CROSS JOIN label_vocabulary v ON v.word = w.value",
        )
        .bind(&words)
        .fetch_all(&mut *connection)
        .await?;
        ids.extend(known);
    }
    let mut rows: Vec<_> = lists
        .into_iter()
        .filter_map(|(word, list)| Some((*ids.get(&*word)?, list)))
        .collect();
    // In the order of the table, so that each page is written once.
    rows.sort_unstable_by_key(|&(id, _)| id);
    for rows in rows.chunks(ROWS_PER_INSERT) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT OR REPLACE INTO label_postings (sae, word, first, labels) ",
        );
        query.push_values(rows, |mut values, (word, list)| {
            values
                .push_bind(sae)
                .push_bind(word)
                .push_bind(list.first)
                .push_bind(&list.labels);
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
