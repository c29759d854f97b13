//! Stores that older versions made.

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use steering_proto::v1;

use crate::harness::{Data, Server, delete};

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
    let first = sqlx::migrate!("migrations/sqlite");
    first.run_to(1, &mut connection).await.expect("tables");
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

/// As a registry of before migration 50 stores an SAE, whatever its name stands for by now.
const OLD_INSERT: &str = "INSERT INTO saes (name, digest, hook_name, model_id, d_in, d_sae, \
    architecture, input_normalization, data_start, format, origin, created_at_ms) \
    VALUES ('old', 'dddddddd', 'h', 'm', 2, 100, 'relu', 'none', 8, 'npz', '/a.npz', 0) \
    ON CONFLICT (name) DO NOTHING";
/// And a version of a CAV, if it is there already.
const OLD_UPDATE: &str =
    "UPDATE cavs SET stored = (SELECT MAX(stored) + 1 FROM cavs) WHERE name = 'c'";
const OLD_CAVS: &str = "
    INSERT INTO cavs (name, digest, model_id, origin, created_at_ms, stored)
        VALUES ('c', 'cccccccc', 'm', 'o', 0, 7);
    INSERT INTO cav_directions SELECT id, 0, 'blocks.1.hook_resid_post', 1, 1.0, '\\x0000803f' FROM cavs";

#[tokio::test]
async fn a_database_is_shared_with_registries_that_know_no_versions() {
    let data = Data::new().await;
    let Some(database) = data.database.clone() else {
        return;
    };
    let mut connection = database.connect().await;
    let older = sqlx::migrate!("migrations/postgres");
    older.run_to(40, &mut connection).await.expect("tables");
    for statement in [OLD_INSERT, OLD_CAVS] {
        database.execute(statement).await;
    }
    let mut server = Server::start_with(data, Vec::new()).await;
    assert_eq!(server.sae_names().await, ["old"]);
    let count = async |server: &mut Server| {
        let request = v1::ListSaesRequest {
            show_deleted: true,
            ..Default::default()
        };
        let listed = server.client.list_saes(request).await.expect("list");
        let deleted = |sae: &v1::Sae| sae.delete_time.is_some();
        let (deleted, live) = listed
            .into_inner()
            .saes
            .iter()
            .map(deleted)
            .fold((0, 0), |(deleted, live), is| {
                (deleted + i32::from(is), live + i32::from(!is))
            });
        (live, deleted)
    };
    let remove = delete("old", false);
    server
        .client
        .delete_sae(remove.clone())
        .await
        .expect("delete");
    assert_eq!(count(&mut server).await, (0, 1));
    // The other stores the same once more; the deleted one goes when the name moves.
    database.execute(OLD_INSERT).await;
    assert_eq!(count(&mut server).await, (1, 1));
    assert_eq!(server.sae_names().await, ["old"]);
    server.client.delete_sae(remove).await.expect("delete");
    assert_eq!(count(&mut server).await, (0, 1));
    let request = v1::UndeleteSaeRequest {
        sae_id: "old@dddddddd".to_owned(),
    };
    server.client.undelete_sae(request).await.expect("undelete");
    assert_eq!(count(&mut server).await, (1, 0));

    let cavs = async |server: &mut Server| {
        let listed = server.client.list_cavs(v1::ListCavsRequest::default());
        listed.await.expect("list").into_inner().cavs.len()
    };
    assert_eq!(cavs(&mut server).await, 1);
    let request = v1::DeleteCavRequest {
        name: "c".to_owned(),
        purge: false,
    };
    server.client.delete_cav(request).await.expect("delete");
    assert_eq!(cavs(&mut server).await, 0);
    database.execute(OLD_UPDATE).await;
    assert_eq!(
        cavs(&mut server).await,
        1,
        "whoever stores it brings it back"
    );
}
