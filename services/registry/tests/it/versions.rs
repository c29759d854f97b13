//! Versions of an SAE: a name finds the one stored last, `name@digest` any.

use futures::StreamExt;
use steering_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    harness::{Server, by_index, by_label, delete, field, import_with, options},
    sources::{value, write_npz},
};

async fn import(server: &mut Server, seed: usize) -> Result<v1::Sae, Status> {
    let path = write_npz(server.data.path(), &format!("{seed}.npz"), seed);
    let options = v1::SaeImportOptions {
        new_version: true,
        ..options("a")
    };
    import_with(&mut server.client, &path, options).await
}

/// A registry with two versions of SAE "a", each with a label of its own.
async fn two() -> (Server, v1::Sae, v1::Sae) {
    let mut server = Server::start().await;
    let first = import(&mut server, 0).await.expect("import");
    server.labels("a", br#"{"old": 3}"#).await.expect("labels");
    let second = import(&mut server, 1).await.expect("new version");
    server.labels("a", br#"{"new": 4}"#).await.expect("labels");
    (server, first, second)
}

async fn newest(server: &mut Server, address: &str) -> Result<String, Status> {
    let request = v1::GetSaeRequest {
        sae_id: address.to_owned(),
    };
    let sae = server.client.get_sae(request).await?.into_inner().sae;
    let sae = sae.expect("SAE");
    assert_eq!(sae.sae_id, "a");
    Ok(sae.digest)
}

/// Digests of all versions that were not deleted, as they were stored.
async fn history(server: &mut Server) -> Vec<String> {
    let (mut digests, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSaesRequest {
            page_size: 1,
            page_token,
            all_versions: true,
            show_deleted: false,
        };
        let page = server.client.list_saes(request).await.expect("list");
        let page = page.into_inner();
        digests.extend(page.saes.into_iter().map(|sae| sae.digest));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return digests;
        }
    }
}

#[tokio::test]
async fn a_name_finds_the_newest_and_a_digest_any() {
    let (mut server, first, second) = two().await;
    assert_ne!(first.digest, second.digest);
    assert_eq!(server.sae_names().await, ["a"]);
    assert_eq!(history(&mut server).await, [&*first.digest, &second.digest]);
    let path = server.data.path().join("0.npz");
    let status = server.import(&path, "a").await.expect_err("it is held");
    assert_eq!(status.code(), Code::AlreadyExists);

    let old = format!("a@{}", &first.digest[..8]);
    assert_eq!(
        newest(&mut server, "a").await.expect("found"),
        second.digest
    );
    for digits in [8, 20, 64] {
        let address = format!("a@{}", &first.digest[..digits]);
        assert_eq!(
            newest(&mut server, &address).await.expect("found"),
            first.digest
        );
    }
    let feature = server.feature(by_label(&old, "old")).await;
    assert_eq!(feature.decoder[5], value(2, 3, 5));
    assert_eq!(
        (&*feature.sae_id, &feature.sae_digest),
        ("a", &first.digest)
    );
    let feature = server.feature(by_index("a", 3)).await;
    assert_eq!(feature.decoder[5], value(3, 3, 5));
    // Labels are a version's own, and a search finds those of the newest.
    assert!(server.features(vec![by_label("a", "old")]).await.is_err());
    assert!(server.search("old").await.expect("search").is_empty());
    assert_eq!(server.search("new").await.expect("search").len(), 1);
    let request = v1::SearchFeaturesRequest {
        query: "old".to_owned(),
        sae_id: old.clone(),
        model_id: first.model_id.clone(),
        ..Default::default()
    };
    let found = server
        .client
        .search_features(request)
        .await
        .expect("search");
    let found = found.into_inner().features;
    assert_eq!((found.len(), &*found[0].sae_id), (1, "a"));
    server
        .labels(&old, br#"{"older": 5}"#)
        .await
        .expect("labels");
    assert_eq!(
        server.feature(by_label(&old, "older")).await.feature_index,
        5
    );
    let request = v1::DownloadSaeRequest { sae_id: old };
    let mut chunks = server
        .client
        .download_sae(request)
        .await
        .expect("file")
        .into_inner();
    let mut len = 0;
    while let Some(chunk) = chunks.next().await {
        len += chunk.expect("chunk").chunk.len();
    }
    assert!(len > 100);
    for address in ["a@00000000", "a@zz", "b@00000000"] {
        let status = newest(&mut server, address).await.expect_err(address);
        assert_eq!(status.code(), Code::NotFound, "{address}");
    }
}

#[tokio::test]
async fn a_version_stored_again_is_the_newest_with_its_labels() {
    let (mut server, first, second) = two().await;
    import(&mut server, 0).await.expect("again");
    assert_eq!(newest(&mut server, "a").await.expect("found"), first.digest);
    assert_eq!(history(&mut server).await, [&*second.digest, &first.digest]);
    assert_eq!(server.feature(by_label("a", "old")).await.feature_index, 3);
    assert_eq!(server.search("old").await.expect("search").len(), 1);
    assert!(server.search("new").await.expect("search").is_empty());
    assert_eq!(server.files().len(), 2, "{:?}", server.files());
    // And over a restart.
    let mut server = Server::start_with(server.stop().await, Vec::new()).await;
    assert_eq!(newest(&mut server, "a").await.expect("found"), first.digest);
}

#[tokio::test]
async fn versions_are_deleted_one_by_one_or_all() {
    let (mut server, first, second) = two().await;
    let third = import(&mut server, 2).await.expect("third");
    let at = |sae: &v1::Sae| format!("a@{}", sae.digest);
    let count = async |server: &mut Server, address: &str, purge| {
        let done = server.client.delete_sae(delete(address, purge)).await;
        done.map(|done| done.into_inner().removed_count)
    };
    let undelete = async |server: &mut Server, address: String| {
        let request = v1::UndeleteSaeRequest { sae_id: address };
        let done = server.client.undelete_sae(request).await;
        done.expect("undelete").into_inner().restored_count
    };
    // The one before the deleted one is the newest.
    assert_eq!(
        count(&mut server, &at(&third), false).await.expect("one"),
        1
    );
    assert_eq!(
        newest(&mut server, "a").await.expect("found"),
        second.digest
    );
    assert_eq!(
        count(&mut server, &at(&first), false).await.expect("one"),
        1
    );
    let status = newest(&mut server, &at(&first)).await.expect_err("deleted");
    assert_eq!(
        status.get_details_error_info().expect("info").reason,
        "SAE_DELETED"
    );
    assert_eq!(undelete(&mut server, at(&third)).await, 1);
    assert_eq!(newest(&mut server, "a").await.expect("found"), third.digest);
    assert_eq!(undelete(&mut server, "a".to_owned()).await, 1);
    assert_eq!(
        history(&mut server).await,
        [&*first.digest, &second.digest, &third.digest]
    );

    assert_eq!(count(&mut server, "a", false).await.expect("all"), 3);
    assert!(server.sae_names().await.is_empty());
    // The name is free: no leave for a new version is needed.
    let path = write_npz(server.data.path(), "3.npz", 3);
    let fourth = server.import(&path, "a").await.expect("import");
    assert_eq!(history(&mut server).await, [&*fourth.digest]);
    assert_eq!(undelete(&mut server, at(&second)).await, 1);
    assert_eq!(
        newest(&mut server, "a").await.expect("found"),
        fourth.digest
    );
    assert_eq!(
        server
            .feature(by_label(&at(&second), "new"))
            .await
            .feature_index,
        4
    );
    assert_eq!(
        count(&mut server, &at(&fourth), true).await.expect("one"),
        1
    );
    assert_eq!(
        newest(&mut server, "a").await.expect("found"),
        second.digest
    );
    assert_eq!(server.files().len(), 3, "{:?}", server.files());
    // A purge of the name takes what was deleted along.
    assert_eq!(count(&mut server, "a", true).await.expect("all"), 3);
    assert!(server.files().is_empty(), "{:?}", server.files());
    let status = count(&mut server, "", false).await.expect_err("no name");
    assert_eq!(field(&status), "sae_id");
}

#[tokio::test]
async fn names_that_begin_alike_are_kept_apart() {
    let mut server = Server::start().await;
    let paths = [0, 1].map(|i| write_npz(server.data.path(), &format!("{i}.npz"), i));
    for name in ["a", "a.b", "a-b", "a/b", "a0", "aA", "aa", "A"] {
        server.import(&paths[0], name).await.expect(name);
    }
    let options = v1::SaeImportOptions {
        new_version: true,
        ..options("a")
    };
    import_with(&mut server.client, &paths[1], options)
        .await
        .expect("import");
    let done = server.client.delete_sae(delete("a", false)).await;
    assert_eq!(done.expect("delete").into_inner().removed_count, 2);
    let mut names = server.sae_names().await;
    names.sort();
    assert_eq!(names, ["A", "a-b", "a.b", "a/b", "a0", "aA", "aa"]);
    for name in names {
        server.feature(by_index(&name, 1)).await;
    }
}
