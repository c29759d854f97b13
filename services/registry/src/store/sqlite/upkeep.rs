//! What is done to the file as a whole: looked at, verified, copied.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::{BUSY_WAIT, MIGRATIONS, SqliteStore};
use crate::error::{Error, Result};

/// Most problems that are told.
const PROBLEMS_MAX: u32 = 100;

impl SqliteStore {
    /// Opens the file of a registry that may be running, to read. It must be of this version.
    pub async fn open_read_only(path: &Path) -> Result<Self> {
        if !path.exists() {
            let text = format!(
                "{} is not there: no registry has used this folder",
                path.display()
            );
            return Err(Error::NotAllowed(text));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY_WAIT);
        let pool = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options)
            .await?;
        let versions: Vec<i64> = sqlx::query_scalar(
            "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version",
        )
        .fetch_all(&pool)
        .await?;
        if !MIGRATIONS
            .iter()
            .map(|migration| migration.version)
            .eq(versions)
        {
            let text = "the database is of another version of steer-registry: use that, or serve it \
                        once with this one";
            return Err(Error::NotAllowed(text.to_owned()));
        }
        Ok(Self {
            writer: pool.clone(),
            readers: pool,
        })
    }

    /// What SQLite itself finds wrong: pages, indices, references.
    pub(super) async fn find_damage(&self) -> Result<Vec<String>> {
        let checked: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "PRAGMA integrity_check({PROBLEMS_MAX})"
        )))
        .fetch_all(&self.readers)
        .await?;
        let mut problems: Vec<String> = checked.into_iter().filter(|line| line != "ok").collect();
        let dangling: Vec<(String, Option<i64>, String, i64)> =
            sqlx::query_as("PRAGMA foreign_key_check")
                .fetch_all(&self.readers)
                .await?;
        let dangling = dangling.into_iter().take(PROBLEMS_MAX as usize);
        problems.extend(dangling.map(|(table, row, parent, _)| {
            let row = row.map_or(String::new(), |row| format!(" {row}"));
            format!("row{row} of {table} belongs to none of {parent}")
        }));
        Ok(problems)
    }

    /// Writes what is committed at this moment into a new file.
    pub(super) async fn write_copy(&self, path: &Path) -> Result<()> {
        sqlx::query("VACUUM INTO ?")
            .bind(path.display().to_string())
            .execute(&self.readers)
            .await?;
        Ok(std::fs::File::open(path)?.sync_all()?)
    }

    /// Names and digests of CAVs, all versions.
    pub(super) async fn page_of_versions(
        &self,
        after: (&str, &str),
        limit: u32,
    ) -> Result<Vec<(String, String)>> {
        Ok(sqlx::query_as(
            "SELECT name, digest FROM cavs WHERE (name, digest) > (?, ?) ORDER BY name, digest LIMIT ?",
        )
        .bind(after.0)
        .bind(after.1)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?)
    }
}
