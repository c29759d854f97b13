//! Stores that older versions made.

use std::borrow::Cow;

use sqlx::{Connection, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions};

use crate::harness::{Data, Server};

/// As the first version would have: its tables, and rows in them.
const ROWS: &str = "
INSERT INTO saes VALUES (7, 'old', 'd', 'blocks.0.hook_resid_post', 'm', 2, 100, 'relu', 'none', 8,
    'npz', '/a.npz', 0, 3);
INSERT INTO label_imports VALUES (1, 7, 0);
INSERT INTO labels VALUES (1, 7, 3, 'Ice Hockey', 'ice hockey', 'manual', 0.5, 1),
    (2, 7, 4, 'baseball', 'baseball', 'manual', NULL, 1), (3, 7, 5, 'ball', 'ball', 'manual', NULL, 1);
";

#[tokio::test]
async fn the_oldest_store_opens_and_its_labels_are_found() {
    let folder = tempfile::tempdir().expect("folder");
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("registry.sqlite"))
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .expect("file");
    let all = sqlx::migrate!("migrations/sqlite");
    let first = all.iter().filter(|migration| migration.version == 1);
    let first = Migrator {
        migrations: Cow::Owned(first.cloned().collect()),
        ..Migrator::DEFAULT
    };
    first.run(&mut connection).await.expect("tables");
    sqlx::raw_sql(ROWS)
        .execute(&mut connection)
        .await
        .expect("rows");
    connection.close().await.expect("close");

    let mut server = Server::start_with(Data::in_folder(folder), Vec::new()).await;
    for (query, expected) in [
        ("hockey", vec![3]),
        ("ICE", vec![3]),
        ("ball", vec![5, 4]),
        ("hockye", vec![3]),
    ] {
        let found = server.search(query).await.expect("search");
        let found: Vec<u32> = found.iter().map(|label| label.feature_index).collect();
        assert_eq!(found, expected, "{query}");
    }
    server
        .labels("old", br#"{"hockey stick": 9}"#)
        .await
        .expect("labels");
    assert_eq!(server.search("hockey").await.expect("search").len(), 2);
    // Nothing is left to do at the next start.
    let mut server = Server::start_with(server.stop().await, Vec::new()).await;
    assert_eq!(server.search("hockey").await.expect("search").len(), 2);
}
