//! What is deleted is nowhere, comes back as it was, and is purged when it is time.

use std::time::Duration;

use futures::StreamExt;
use steering_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    cavs::create,
    harness::{Server, by_index, by_label, delete, import_with, options},
    sources::{D_IN, write_npz},
    statistics::data::{Text, compute, config, messages, versions},
};

/// A registry with SAE "a", which has labels and statistics, and two versions of CAV "c".
async fn filled() -> Server {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    let labels = br#"{"hockey": 3, "ice hockey": 4, "puck": 3}"#;
    server.labels("a", labels).await.expect("labels");
    let token = |special| v1::TextToken {
        text: "w".to_owned(),
        special,
    };
    let text = Text {
        tokens: vec![token(true), token(false), token(false)],
        rows: vec![vec![9.0; D_IN]; 3],
    };
    compute(&server, messages(config("a"), &[text]))
        .await
        .expect("statistics");
    for values in [[1.0, 2.0], [2.0, 1.0]] {
        let created = server.client.create_cav(create("c", &values)).await;
        created.expect("CAV");
    }
    server
}

/// All that reads tell of "a" and "c"; errors by their codes.
async fn told(server: &mut Server) -> Vec<String> {
    fn say<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> String {
        match answer {
            Ok(answer) => format!("{:?}", answer.into_inner()),
            Err(status) => format!("{:?}", status.code()),
        }
    }
    let mut client = server.client.clone();
    let get = v1::GetSaeRequest {
        sae_id: "a".to_owned(),
    };
    let list = v1::ListFeaturesRequest {
        sae_id: "a".to_owned(),
        ..Default::default()
    };
    let search = |sae_id: &str| v1::SearchFeaturesRequest {
        query: "hockey".to_owned(),
        sae_id: sae_id.to_owned(),
        ..Default::default()
    };
    let features = |reference| v1::GetFeaturesRequest {
        features: vec![reference],
        include_statistics: true,
    };
    let similar = v1::FindSimilarFeaturesRequest {
        query: Some(v1::find_similar_features_request::Query::Vector(
            v1::Vector {
                name: String::new(),
                values: vec![1.0; D_IN],
            },
        )),
        sae_ids: Vec::new(),
        top_k: 2,
    };
    let statistics = v1::ListFeatureStatisticsVersionsRequest {
        sae_id: "a".to_owned(),
        ..Default::default()
    };
    let cav = v1::GetCavRequest {
        name: "c".to_owned(),
    };
    let all = v1::ListCavsRequest {
        all_versions: true,
        ..Default::default()
    };
    vec![
        say(client.get_sae(get).await),
        say(client.list_saes(v1::ListSaesRequest::default()).await),
        say(client.list_features(list).await),
        say(client.search_features(search("a")).await),
        say(client.search_features(search("")).await),
        say(client.get_features(features(by_label("a", "puck"))).await),
        say(client.get_features(features(by_index("a", 3))).await),
        say(client.get_features(features(by_index("", 3))).await),
        say(client.find_similar_features(similar).await),
        say(client.list_feature_statistics_versions(statistics).await),
        say(client.list_cavs(v1::ListCavsRequest::default()).await),
        say(client.list_cavs(all).await),
        say(client.get_cav(cav).await),
    ]
}

async fn download(server: &mut Server, sae_id: &str) -> Result<Vec<u8>, Status> {
    let request = v1::DownloadSaeRequest {
        sae_id: sae_id.to_owned(),
    };
    let mut chunks = server.client.download_sae(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend(chunk?.chunk);
    }
    Ok(bytes)
}

pub(crate) fn undelete(sae_id: &str) -> v1::UndeleteSaeRequest {
    v1::UndeleteSaeRequest {
        sae_id: sae_id.to_owned(),
    }
}

pub(crate) fn delete_cav(name: &str, purge: bool) -> v1::DeleteCavRequest {
    v1::DeleteCavRequest {
        name: name.to_owned(),
        purge,
    }
}

/// Names of what was deleted: SAEs, then CAVs.
async fn deleted(server: &mut Server) -> Vec<String> {
    let saes = v1::ListSaesRequest {
        show_deleted: true,
        ..Default::default()
    };
    let cavs = v1::ListCavsRequest {
        show_deleted: true,
        ..Default::default()
    };
    let saes = server.client.list_saes(saes).await.expect("SAEs");
    let cavs = server.client.list_cavs(cavs).await.expect("CAVs");
    let saes = saes.into_inner().saes.into_iter();
    let cavs = cavs.into_inner().cavs.into_iter();
    saes.map(|sae| (sae.sae_id, sae.delete_time))
        .chain(cavs.map(|cav| (cav.name, cav.delete_time)))
        .filter_map(|(name, deleted)| deleted.map(|_| name))
        .collect()
}

#[tokio::test]
async fn what_is_deleted_is_nowhere_and_comes_back_as_it_was() {
    let mut server = filled().await;
    let before = told(&mut server).await;
    let file = download(&mut server, "a").await.expect("file");
    let done = server.client.delete_sae(delete("a", false)).await;
    let done = done.expect("delete").into_inner();
    assert_eq!(done.removed_count, 1);
    assert!(done.purge_time.is_some());
    let done = server.client.delete_cav(delete_cav("c", false)).await;
    assert_eq!(done.expect("delete").into_inner().removed_count, 2);

    let absent = "NotFound".to_owned();
    let none = |name: &str| {
        format!(
            "{name} {{ {} }}",
            match name {
                "ListSaesResponse" => "saes: [], next_page_token: \"\"",
                "ListCavsResponse" => "cavs: [], next_page_token: \"\"",
                _ => "features: [], next_page_token: \"\", truncated: false",
            }
        )
    };
    let expected = vec![
        absent.clone(),
        none("ListSaesResponse"),
        absent.clone(),
        absent.clone(),
        none("SearchFeaturesResponse"),
        absent.clone(),
        absent.clone(),
        absent.clone(),
        // No SAE is of that width.
        "InvalidArgument".to_owned(),
        absent.clone(),
        none("ListCavsResponse"),
        none("ListCavsResponse"),
        absent,
    ];
    assert_eq!(told(&mut server).await, expected);
    let status = download(&mut server, "a").await.expect_err("deleted");
    assert_eq!(status.code(), Code::NotFound);
    let status = server.labels("a", br#"{"x": 1}"#).await;
    let status = status.expect_err("deleted");
    let reason = status.get_details_error_info().expect("info").reason;
    assert_eq!((status.code(), &*reason), (Code::NotFound, "SAE_DELETED"));
    let status = server.client.delete_sae(delete("a", false)).await;
    assert_eq!(status.expect_err("deleted").code(), Code::NotFound);
    assert_eq!(deleted(&mut server).await, ["a", "c", "c"]);

    // Also over a restart.
    let mut server = Server::start_with(server.stop().await, Vec::new()).await;
    assert_eq!(deleted(&mut server).await, ["a", "c", "c"]);
    let back = server.client.undelete_sae(undelete("a")).await;
    assert_eq!(back.expect("undelete").into_inner().restored_count, 1);
    let request = v1::UndeleteCavRequest {
        name: "c".to_owned(),
    };
    let back = server.client.undelete_cav(request.clone()).await;
    assert_eq!(back.expect("undelete").into_inner().restored_count, 2);
    assert_eq!(told(&mut server).await, before);
    assert!(download(&mut server, "a").await.expect("file") == file);
    // Again changes nothing; what never was cannot come back.
    let back = server.client.undelete_cav(request).await;
    assert_eq!(back.expect("undelete").into_inner().restored_count, 0);
    let status = server.client.undelete_sae(undelete("b")).await;
    assert_eq!(status.expect_err("nothing").code(), Code::NotFound);
}

#[tokio::test]
async fn what_is_stored_again_comes_back() {
    let mut server = filled().await;
    let before = told(&mut server).await;
    server
        .client
        .delete_sae(delete("a", false))
        .await
        .expect("delete");
    let path = server.data.path().join("a.npz");
    let elsewhere = v1::SaeImportOptions {
        hook_name: "blocks.9.hook_resid_post".to_owned(),
        ..options("a")
    };
    let status = import_with(&mut server.client, &path, elsewhere)
        .await
        .expect_err("another hook point");
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    server.import(&path, "a").await.expect("import");
    assert_eq!(told(&mut server).await, before);

    // The older version comes back as the newest: it was stored last.
    let done = server.client.delete_cav(delete_cav("c", false)).await;
    done.expect("delete");
    let created = server.client.create_cav(create("c", &[1.0, 2.0])).await;
    let created = created.expect("CAV").into_inner().cav.expect("CAV");
    assert_eq!(created.delete_time, None);
    assert_eq!(deleted(&mut server).await, ["c"]);
    let request = v1::UndeleteCavRequest {
        name: "c".to_owned(),
    };
    server.client.undelete_cav(request).await.expect("undelete");
    let newest = server
        .client
        .list_cavs(v1::ListCavsRequest::default())
        .await
        .expect("list")
        .into_inner()
        .cavs;
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].digest, created.digest);
}

#[tokio::test]
async fn a_purge_leaves_nothing() {
    let mut server = filled().await;
    assert_eq!(server.files().len(), 1);
    server
        .client
        .delete_sae(delete("a", false))
        .await
        .expect("delete");
    assert_eq!(server.files().len(), 1, "it may be wanted back");
    let done = server.client.delete_sae(delete("a", true)).await;
    let done = done.expect("purge").into_inner();
    assert_eq!((done.removed_count, done.purge_time), (1, None));
    assert!(server.files().is_empty(), "{:?}", server.files());
    let done = server.client.delete_cav(delete_cav("c", true)).await;
    let done = done.expect("purge").into_inner();
    assert_eq!((done.removed_count, done.purge_time), (2, None));
    assert!(deleted(&mut server).await.is_empty());
    for status in [
        server.client.undelete_sae(undelete("a")).await.map(drop),
        server
            .client
            .delete_cav(delete_cav("c", true))
            .await
            .map(drop),
    ] {
        assert_eq!(status.expect_err("gone").code(), Code::NotFound);
    }
    let path = server.data.path().join("a.npz");
    server.import(&path, "a").await.expect("import");
    assert_eq!(server.feature(by_index("a", 3)).await.label, "");
    assert!(versions(&server, "a").await.is_empty());
    if let Some(database) = &server.data.database {
        for table in ["labels", "label_postings"] {
            assert_eq!(database.rows_of_saes(table).await, (0, 0), "{table}");
        }
    }
}

/// Waits until so much is left: names of what is deleted, and files. Files go last.
async fn purged(server: &mut Server, names: &[&str], files: usize) {
    let mut left = (Vec::new(), 0);
    for _ in 0..2400 {
        left = (deleted(server).await, server.files().len());
        if left.0 == names && left.1 == files {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("there are still {left:?}");
}

#[tokio::test]
async fn deleted_versions_are_kept_for_so_many_days() {
    let mut server = filled().await;
    let path = write_npz(server.data.path(), "b.npz", 1);
    server.import(&path, "b").await.expect("import");
    for name in ["a", "b"] {
        let done = server.client.delete_sae(delete(name, false)).await;
        done.expect("delete");
    }
    server
        .client
        .delete_cav(delete_cav("c", false))
        .await
        .expect("delete");
    let data = server.stop().await;
    let day = 24 * 60 * 60 * 1000_i64;
    for (table, which) in [("saes", "name LIKE 'a@%'"), ("cavs", "stored = 2")] {
        let statement = format!(
            "UPDATE {table} SET deleted_at_ms = deleted_at_ms - {} WHERE {which}",
            30 * day + 1000
        );
        data.execute(&statement).await;
    }
    // An hour less than that, and one that came back.
    data.execute(&format!(
        "UPDATE saes SET deleted_at_ms = deleted_at_ms - {} WHERE name LIKE 'b@%'",
        30 * day - 60 * 60 * 1000
    ))
    .await;
    let mut server = Server::start_with(data, Vec::new()).await;
    purged(&mut server, &["b", "c"], 1).await;

    // A registry that keeps none purges at once, and what others kept.
    let data = server.stop().await;
    let config = steering_registry::Config {
        keep_deleted_days: 0,
        ..data.config()
    };
    let mut server = Server::start_configured(data, config).await;
    purged(&mut server, &[], 0).await;
    server.import(&path, "b").await.expect("import");
    let done = server.client.delete_sae(delete("b", false)).await;
    assert_eq!(done.expect("delete").into_inner().purge_time, None);
    assert!(server.files().is_empty(), "{:?}", server.files());
}
