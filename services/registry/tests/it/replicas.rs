//! Several registries over one PostgreSQL database, and a database that goes away. These
//! tests do nothing where there is no server; see `tests/backends/with.sh`.

use std::time::{Duration, Instant};

use steering_proto::v1;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    cavs::create,
    harness::{Data, Server, by_label, delete, import_with, options},
    sources::write_npz,
};

/// Two registries over one database, with SAE "a".
async fn pair() -> Option<(Server, Server)> {
    let mut one = Server::start().await;
    let data = one.data.beside()?;
    let path = write_npz(one.data.path(), "a.npz", 0);
    one.import(&path, "a").await.expect("import");
    Some((one, Server::start_with(data, Vec::new()).await))
}

/// As a client does: once more where it is told to.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match call().await {
            Ok(done) => return done,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!(status.get_details_retry_info().is_some(), "{status}");
                assert!(Instant::now() < deadline, "{status}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_race_safely() {
    let Some((mut one, mut other)) = pair().await else {
        return;
    };
    const ROUNDS: u16 = 30;
    let write = async |server: &mut Server, mine: u16| {
        for i in 0..ROUNDS {
            let value = f32::from(1 + 2 * i + mine);
            let created = server.client.create_cav(create("raced", &[value])).await;
            created.expect("create");
            // Both name the same label, each for a feature of its own.
            let rows = format!("{{\"raced {i}\": {mine}, \"of {mine}\": {}}}", i % 8);
            server.labels("a", rows.as_bytes()).await.expect("labels");
        }
    };
    tokio::join!(write(&mut one, 0), write(&mut other, 1));
    // Directions are in the folder of the one that imported them.
    for (server, has_directions) in [(&mut one, true), (&mut other, false)] {
        let listed = server
            .client
            .list_cavs(v1::ListCavsRequest::default())
            .await;
        assert_eq!(
            listed.expect("list").into_inner().cavs.len(),
            1,
            "one newest version"
        );
        for i in 0..ROUNDS {
            let label = format!("raced {i}");
            let found = server.search(&label).await.expect("search");
            let exact = found.iter().filter(|found| found.label == label);
            assert_eq!(exact.count(), 1, "{label} names one feature");
            if has_directions {
                let named = server.features(vec![by_label("a", &label)]).await;
                named.expect("a name");
            }
        }
        let sae = v1::GetSaeRequest {
            sae_id: "a".to_owned(),
        };
        let sae = server
            .client
            .get_sae(sae)
            .await
            .expect("sae")
            .into_inner()
            .sae;
        assert_eq!(sae.map(|sae| sae.label_count), Some(u64::from(ROUNDS) + 2));
    }
    let delete = v1::DeleteCavRequest {
        name: "raced".to_owned(),
        purge: false,
    };
    let deleted = one
        .client
        .delete_cav(delete)
        .await
        .expect("delete")
        .into_inner();
    assert_eq!(
        deleted.removed_count,
        u32::from(2 * ROUNDS),
        "no acknowledged version is lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_is_seen_whole_or_not_at_all() {
    let Some((mut one, mut other)) = pair().await else {
        return;
    };
    let rows: Vec<String> = (0..3000)
        .map(|i| {
            format!(
                "{{\"index\": {}, \"label\": \"label {} word{i}\"}}",
                i % 8,
                i % 10
            )
        })
        .collect();
    let rows = rows.join("\n");
    let importing = tokio::spawn(async move {
        one.labels("a", rows.as_bytes()).await.expect("labels");
        one
    });
    let mut seen = Vec::new();
    loop {
        let is_done = importing.is_finished();
        let found = other.search("label 7").await.expect("search").len();
        seen.push(found);
        if is_done {
            break;
        }
    }
    assert!(
        seen.iter().all(|found| [0, 300].contains(found)),
        "{seen:?}"
    );
    assert_eq!(seen.last(), Some(&300), "{seen:?}");
    // Words that came in through the other registry.
    assert_eq!(other.search("word2999").await.expect("search").len(), 1);
    assert_eq!(other.search("word2999x").await.expect("search").len(), 1);
    importing.await.expect("import");
}

/// The database does not see to it that a label has an SAE: the registries do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_purged_sae_stays() {
    let Some((mut one, mut other)) = pair().await else {
        return;
    };
    let path = write_npz(one.data.path(), "b.npz", 1);
    let rows: String = (0..3000)
        .map(|i| format!("{{\"index\": {}, \"label\": \"label {i}\"}}\n", i % 8))
        .collect();
    one.labels("a", rows.as_bytes()).await.expect("labels");
    for _ in 0..10 {
        one.import(&path, "b").await.expect("import");
        let delete = delete("b", true);
        let (stored, deleted) = tokio::join!(
            one.labels("b", rows.as_bytes()),
            other.client.delete_sae(delete)
        );
        deleted.expect("delete");
        if let Err(status) = stored {
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
    }
    let database = one.data.database.as_ref().expect("database");
    for table in ["labels", "label_postings"] {
        let (kept, orphans) = database.rows_of_saes(table).await;
        assert!(kept > 0, "{table}");
        assert_eq!(orphans, 0, "{table}");
    }
}

/// Two registries import, delete, bring back and purge versions of the same names at once. Objects
/// are in the folder of either, so directions are not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_race_safely() {
    let Some((mut one, mut other)) = pair().await else {
        return;
    };
    const ROUNDS: usize = 24;
    let write = async |server: &mut Server, mine: usize| {
        // The last kept content is nobody else's; the other comes and goes.
        let kept = write_npz(server.data.path(), "kept.npz", 10 + mine);
        let shared = write_npz(server.data.path(), "shared.npz", 9);
        for i in 0..ROUNDS {
            let mut client = server.client.clone();
            let mut version = async |path| {
                let options = v1::SaeImportOptions {
                    new_version: true,
                    ..options("a")
                };
                import_with(&mut client, path, options).await
            };
            version(&kept).await.expect("import");
            let raced = version(&shared).await.expect("import");
            let address = format!("a@{}", raced.digest);
            let deleted = server.client.delete_sae(delete(&address, i % 3 == 0)).await;
            let request = v1::UndeleteSaeRequest { sae_id: address };
            let back = server.client.undelete_sae(request).await.map(drop);
            for done in [deleted.map(drop), back] {
                // The other one was faster.
                if let Err(status) = done {
                    assert_eq!(status.code(), Code::NotFound, "{status}");
                }
            }
            let values = [1.0, f32::from(u8::try_from(i % 2).expect("small"))];
            let created = server.client.create_cav(create("c", &values)).await;
            created.expect("create");
            let request = v1::DeleteCavRequest {
                name: "c".to_owned(),
                purge: i % 5 == 0,
            };
            if let Err(status) = server.client.delete_cav(request).await {
                assert_eq!(status.code(), Code::NotFound, "{status}");
            }
        }
        let mine = create("kept", &[2.0, 1.0 + mine as f32]);
        server.client.create_cav(mine).await.expect("create");
    };
    tokio::join!(write(&mut one, 0), write(&mut other, 1));
    for server in [&mut one, &mut other] {
        assert_eq!(server.sae_names().await, ["a"], "one newest version");
        let request = v1::ListSaesRequest {
            show_deleted: true,
            ..Default::default()
        };
        let listed = server.client.list_saes(request).await.expect("list");
        let saes = listed.into_inner().saes;
        let mut digests: Vec<&str> = saes.iter().map(|sae| &*sae.digest).collect();
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count, "each content once");
        // The first one, and what each has kept.
        let live = saes.iter().filter(|sae| sae.delete_time.is_none()).count();
        assert!(live >= 3, "{saes:?}");
        for sae in saes.iter().filter(|sae| sae.delete_time.is_none()) {
            let request = v1::GetSaeRequest {
                sae_id: format!("a@{}", sae.digest),
            };
            server.client.get_sae(request).await.expect("a version");
        }
        let all = v1::ListCavsRequest {
            all_versions: true,
            ..Default::default()
        };
        let cavs = server
            .client
            .list_cavs(all)
            .await
            .expect("list")
            .into_inner()
            .cavs;
        let kept = cavs.iter().filter(|cav| cav.name == "kept");
        assert_eq!(kept.count(), 2, "nobody deleted them: {cavs:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_and_comes_back_is_used_again() {
    let mut server = Server::start().await;
    let Some(database) = server.data.database.clone() else {
        return;
    };
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    let mut client = server.client.clone();
    let cutting = tokio::spawn(async move {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            database.cut().await;
        }
    });
    let mut stored = 0_u16;
    while !cutting.is_finished() || stored < 5 {
        let rows = format!("{{\"stored {stored}\": {}}}", stored % 8);
        patiently(async || server.labels("a", rows.as_bytes()).await).await;
        let request = create("cav", &[1.0 + f32::from(stored)]);
        patiently(async || client.create_cav(request.clone()).await).await;
        stored += 1;
    }
    cutting.await.expect("cutting");
    for i in 0..stored {
        let label = format!("stored {i}");
        patiently(async || server.features(vec![by_label("a", &label)]).await).await;
    }
}

#[tokio::test]
async fn nothing_tells_the_password() {
    let data = Data::in_folder(tempfile::tempdir().expect("folder"));
    for url in [
        "postgres://steer:hunter2@127.0.0.1:1/steer",
        "postgres://steer:hunter2@127.0.0.1:99999/steer",
        "mysql://steer:hunter2@127.0.0.1/steer",
        "hunter2",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let config = steering_registry::Config {
            database: Some(url.to_owned().into()),
            ..data.config()
        };
        let shown = format!("{config:?}");
        let error = steering_registry::run(config, listener, std::future::pending()).await;
        let error = error.expect_err(url);
        for text in [shown, error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
