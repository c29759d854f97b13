//! What is done to the database as a whole.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{ACQUIRE_WAIT, MIGRATIONS, PostgresStore};
use crate::error::{Error, Result};

impl PostgresStore {
    /// For reading beside registries that run. The schema must be of this version.
    pub(super) async fn connect_read_only(options: PgConnectOptions) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(ACQUIRE_WAIT)
            .connect_with(options.options([("default_transaction_read_only", "on")]))
            .await?;
        let known: Option<String> =
            sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
                .fetch_one(&pool)
                .await?;
        let versions: Vec<i64> = match known {
            None => Vec::new(),
            Some(_) => {
                sqlx::query_scalar(
                    "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version",
                )
                .fetch_all(&pool)
                .await?
            }
        };
        let expected = MIGRATIONS.iter().map(|migration| migration.version);
        if !expected.eq(versions) {
            let text = "the database is of another version of steer-registry, or no registry has \
                        used it: use that version, or serve it once with this one";
            return Err(Error::NotAllowed(text.to_owned()));
        }
        Ok(Self { pool })
    }

    /// Names and digests of CAVs, all versions.
    pub(super) async fn page_of_versions(
        &self,
        after: (&str, &str),
        limit: u32,
    ) -> Result<Vec<(String, String)>> {
        Ok(sqlx::query_as(
            "SELECT name, digest FROM cavs WHERE (name, digest) > ($1, $2) ORDER BY name, digest LIMIT $3",
        )
        .bind(after.0)
        .bind(after.1)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?)
    }
}
