//! Where a test's registry keeps its metadata: in its folder, or, where
//! `STEER_TEST_POSTGRES` names a server, in a database of its own.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{Connection, PgConnection};
use steering_registry::config::DatabaseUrl;

/// A PostgreSQL database; gone when dropped.
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// A new one, if there is a server.
    pub(crate) async fn create() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = std::env::var("STEER_TEST_POSTGRES").ok()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("steer_{}_{number}", std::process::id());
        let database = Self { server, name };
        database.execute_on_server("CREATE DATABASE").await;
        Some(database)
    }

    fn url_text(&self) -> String {
        // …/postgres?…
        let (start, end) = self.server.rsplit_once("/postgres?").unwrap_or_else(|| {
            panic!("STEER_TEST_POSTGRES is not …/postgres?…");
        });
        format!("{start}/{}?{end}", self.name)
    }

    pub(crate) fn url(&self) -> DatabaseUrl {
        self.url_text().into()
    }

    /// Cuts every connection, as a restart of the server would.
    pub(crate) async fn cut(&self) {
        let mut connection = PgConnection::connect(&self.server).await.expect("server");
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
            .bind(&self.name)
            .execute(&mut connection)
            .await
            .expect("cut");
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        let connection = PgConnection::connect(&self.url_text()).await;
        connection.expect("database")
    }

    /// Runs a statement.
    pub(crate) async fn execute(&self, statement: &str) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .expect("statement");
    }

    /// How many rows of a table belong to an SAE, and how many to none.
    pub(crate) async fn rows_of_saes(&self, table: &str) -> (i64, i64) {
        let mut connection = self.connect().await;
        let query = format!(
            "SELECT COUNT(s.id), COUNT(*) - COUNT(s.id) FROM {table} t LEFT JOIN saes s ON s.id = t.sae"
        );
        sqlx::query_as(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut connection)
            .await
            .expect("rows")
    }

    async fn execute_on_server(&self, what: &str) {
        let mut connection = PgConnection::connect(&self.server).await.expect("server");
        let statement = format!("{what} {}", self.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .expect("statement");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A test's runtime may be ending.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                runtime.block_on(async {
                    let Ok(mut connection) = PgConnection::connect(&self.server).await else {
                        return;
                    };
                    let statement = format!("DROP DATABASE {} WITH (FORCE)", self.name);
                    let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
                        .execute(&mut connection)
                        .await;
                });
            });
        });
    }
}
