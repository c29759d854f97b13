//! The index of words: brought up to date after labels came in.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::Exclusive;
use crate::{error::Result, store::words::Gathered};

/// Labels read at once.
const LABELS_READ: i64 = 10_000;

/// Adds the labels of an SAE with a larger id than `after`.
pub(super) async fn index_words(
    connection: &mut PgConnection,
    sae: i64,
    mut after: i64,
) -> Result<()> {
    let mut gathered = Gathered::default();
    loop {
        // By id: another index, which the sum keeps away, would find and sort them all
        // each time.
        let labels: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, folded FROM labels WHERE id > $1 AND sae + 0 = $2 ORDER BY id LIMIT $3",
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

async fn write(connection: &mut PgConnection, sae: i64, gathered: Gathered) -> Result<()> {
    let lists = gathered.into_sorted();
    let ids = word_ids(connection, lists.iter().map(|(word, _)| &**word).collect()).await?;
    let mut rows: Vec<_> = lists
        .into_iter()
        .filter_map(|(word, list)| Some((*ids.get(&*word)?, list)))
        .collect();
    // In the order of the table's index.
    rows.sort_unstable_by_key(|&(id, _)| id);
    let mut words = Vec::with_capacity(rows.len());
    let mut firsts = Vec::with_capacity(rows.len());
    let mut labels = Vec::with_capacity(rows.len());
    for (word, list) in rows {
        words.push(word);
        firsts.push(list.first);
        labels.push(list.labels);
    }
    sqlx::query(
        "INSERT INTO label_postings (sae, word, first, labels) \
         SELECT $1, * FROM UNNEST($2::bigint[], $3::bigint[], $4::bytea[])",
    )
    .bind(sae)
    .bind(words)
    .bind(firsts)
    .bind(labels)
    .execute(connection)
    .await?;
    Ok(())
}

/// Ids of words, new ones for those that have none. The lock is held until the import is
/// committed, so that words are seen in the order of their ids.
async fn word_ids(connection: &mut PgConnection, words: Vec<&str>) -> Result<HashMap<String, i64>> {
    let mut ids = known_ids(connection, &words).await?;
    let new: Vec<&str> = words
        .into_iter()
        .filter(|&word| !ids.contains_key(word))
        .collect();
    if new.is_empty() {
        return Ok(ids);
    }
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(Exclusive::Vocabulary as i64)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO label_vocabulary (word) SELECT word FROM UNNEST($1::text[]) word \
         WHERE NOT EXISTS (SELECT 1 FROM label_vocabulary v WHERE v.word = word)",
    )
    .bind(&new)
    .execute(&mut *connection)
    .await?;
    ids.extend(known_ids(connection, &new).await?);
    Ok(ids)
}

async fn known_ids(connection: &mut PgConnection, words: &[&str]) -> Result<HashMap<String, i64>> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT word, id FROM label_vocabulary WHERE word = ANY($1)")
            .bind(words)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}
