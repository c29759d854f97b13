//! CAVs: versions, addresses, refusals.

use futures::StreamExt;
use steering_proto::v1;
use tonic::Code;

use crate::{
    harness::{HOOK, MODEL, Server, field},
    sources::zip,
};

pub(crate) fn create(name: &str, values: &[f32]) -> v1::CreateCavRequest {
    let direction = v1::CavDirection {
        hook_name: HOOK.to_owned(),
        vector: Some(v1::Vector {
            name: String::new(),
            values: values.to_vec(),
        }),
        ..Default::default()
    };
    v1::CreateCavRequest {
        name: name.to_owned(),
        model_id: MODEL.to_owned(),
        directions: vec![direction],
        origin: "test".to_owned(),
        ..Default::default()
    }
}

async fn store(server: &mut Server, name: &str, values: &[f32]) -> v1::Cav {
    let response = server
        .client
        .create_cav(create(name, values))
        .await
        .expect("store");
    response.into_inner().cav.expect("CAV")
}

async fn values(server: &mut Server, name: &str) -> Result<Vec<f32>, tonic::Status> {
    let cav = server
        .client
        .get_cav(v1::GetCavRequest {
            name: name.to_owned(),
        })
        .await?;
    let direction = cav.into_inner().cav.expect("CAV").directions.remove(0);
    Ok(direction.vector.expect("vector").values)
}

#[tokio::test]
async fn versions_are_immutable_and_the_last_stored_is_the_newest() {
    let mut server = Server::start().await;
    let first = store(&mut server, "sports", &[3.0, 4.0]).await;
    assert_eq!(
        (first.directions[0].width, first.directions[0].norm),
        (2, 5.0)
    );
    assert!(first.created_at.is_some());
    let same = store(&mut server, "sports", &[3.0, 4.0]).await;
    assert_eq!(
        (same.digest.as_str(), same.created_at),
        (first.digest.as_str(), first.created_at)
    );
    let second = store(&mut server, "sports", &[0.5, 0.0]).await;
    assert_eq!(
        values(&mut server, "sports").await.expect("newest"),
        [0.5, 0.0]
    );
    for digits in [8, 20, 64] {
        let address = format!("sports@{}", &first.digest[..digits]);
        assert_eq!(
            values(&mut server, &address).await.expect("version"),
            [3.0, 4.0]
        );
    }
    store(&mut server, "sports", &[3.0, 4.0]).await;
    assert_eq!(
        values(&mut server, "sports").await.expect("newest again"),
        [3.0, 4.0]
    );

    let removed = v1::DeleteCavRequest {
        name: format!("sports@{}", first.digest),
        purge: false,
    };
    assert_eq!(
        server
            .client
            .delete_cav(removed)
            .await
            .expect("delete")
            .into_inner()
            .removed_count,
        1
    );
    assert_eq!(
        values(&mut server, "sports").await.expect("the other"),
        [0.5, 0.0]
    );
    assert_ne!(first.digest, second.digest);
    let all = v1::DeleteCavRequest {
        name: "sports".to_owned(),
        purge: false,
    };
    assert_eq!(
        server
            .client
            .delete_cav(all.clone())
            .await
            .expect("delete")
            .into_inner()
            .removed_count,
        1
    );
    assert_eq!(
        server
            .client
            .delete_cav(all)
            .await
            .expect_err("gone")
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn listings_show_the_newest_of_each_name_without_numbers() {
    let mut server = Server::start().await;
    for name in ["b", "a.x", "a.y", "c"] {
        store(&mut server, name, &[1.0, 2.0]).await;
    }
    let newest = store(&mut server, "a.x", &[2.0, 2.0]).await;
    let request = |prefix: &str, page_size, page_token| v1::ListCavsRequest {
        prefix: prefix.to_owned(),
        page_size,
        page_token,
        ..Default::default()
    };
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = server
            .client
            .list_cavs(request("", 3, token))
            .await
            .expect("list")
            .into_inner();
        names.extend(page.cavs.iter().map(|cav| cav.name.clone()));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a.x", "a.y", "b", "c"]);
    let page = server
        .client
        .list_cavs(request("a.", 0, String::new()))
        .await
        .expect("list")
        .into_inner();
    assert_eq!(page.cavs.len(), 2);
    assert_eq!(page.cavs[0].digest, newest.digest);
    assert_eq!(page.cavs[0].directions[0].vector, None);
}

#[tokio::test]
async fn bad_cavs_are_refused_by_field() {
    let mut server = Server::start().await;
    store(&mut server, "sports", &[1.0]).await;
    type Spoil = fn(&mut v1::CreateCavRequest);
    let cases: [(&str, Spoil); 8] = [
        ("name", |r| r.name.clear()),
        ("name", |r| r.name = "a\nb".to_owned()),
        ("model_id", |r| r.model_id.clear()),
        ("directions", |r| r.directions.clear()),
        ("directions[0].hook_name", |r| {
            r.directions[0].hook_name = "layer 3".to_owned();
        }),
        ("directions[0].vector", |r| r.directions[0].vector = None),
        ("directions[0].vector", |r| {
            r.directions[0].vector = Some(v1::Vector {
                values: vec![0.0],
                ..Default::default()
            });
        }),
        ("directions[0].vector.values[0]", |r| {
            r.directions[0].vector = Some(v1::Vector {
                values: vec![f32::NAN],
                ..Default::default()
            });
        }),
    ];
    for (expected, spoil) in cases {
        let mut request = create("x", &[1.0]);
        spoil(&mut request);
        let status = server.client.create_cav(request).await.expect_err(expected);
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, expected)
        );
    }
    let other_model = v1::CreateCavRequest {
        model_id: "another".to_owned(),
        ..create("sports", &[1.0])
    };
    let status = server
        .client
        .create_cav(other_model)
        .await
        .expect_err("same numbers, other model");
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = values(&mut server, "sport")
        .await
        .expect_err("no such name");
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("\"sports\""),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn files_need_a_place_and_a_model_and_distinct_names() {
    let mut server = Server::start().await;
    let header = |hook: &str, model: &str| v1::CavImportHeader {
        hook_name: hook.to_owned(),
        model_id: model.to_owned(),
        file_name: "x.json".to_owned(),
    };
    let file = br#"[{"label": "a", "cav": [1, 2]}, {"label": "b", "cav": [3, 4]}]"#;
    for (bytes, header, expected) in [
        (&file[..], header("", MODEL), "header.hook_name"),
        (file, header(HOOK, ""), "header.model_id"),
        (file, header("nowhere", MODEL), "header.hook_name"),
        (
            br#"[{"label": "a", "cav": [1]}, {"label": "a", "cav": [2]}]"#,
            header(HOOK, MODEL),
            "chunk",
        ),
        (
            br#"[{"label": "a", "cav": [1]}, {"label": "b", "cav": []}]"#,
            header(HOOK, MODEL),
            "chunk",
        ),
        (b"[]", header(HOOK, MODEL), "chunk"),
        (b"", header(HOOK, MODEL), "chunk"),
    ] {
        let status = server.cavs(bytes, header).await.expect_err(expected);
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, expected),
            "{status:?}"
        );
    }
    let listed = server
        .client
        .list_cavs(v1::ListCavsRequest::default())
        .await
        .expect("list")
        .into_inner();
    assert!(listed.cavs.is_empty(), "all or nothing");
    let stored = server
        .cavs(file, header(HOOK, MODEL))
        .await
        .expect("import");
    assert_eq!(
        stored
            .iter()
            .map(|cav| cav.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(stored[0].origin, "x.json");
}

/// `{"cavs": tensor[2, 1], "labels": [label, …]}` as `torch.save` writes it; every label but the
/// first is a reference to the first.
fn torch_file(label: &str, labels: usize) -> Vec<u8> {
    let text = |text: &str| {
        let len = u32::try_from(text.len()).expect("short");
        [b"X", &len.to_le_bytes()[..], text.as_bytes()].concat()
    };
    let pickle = [
        &b"\x80\x02}("[..],
        &text("cavs"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x02tQK\0K\x02K\x01\x86K\x01K\x01\x86\x89ccollections\nOrderedDict\n)RtR",
        &text("labels"),
        b"](",
        &text(label),
        b"q\x01",
        &b"h\x01".repeat(labels - 1),
        b"eu.",
    ]
    .concat();
    let numbers = [1.0_f32, 2.0].map(f32::to_le_bytes).concat();
    let entries = [("a/data.pkl", pickle), ("a/data/0", numbers)];
    zip(
        &entries.map(|(name, bytes)| (name.to_owned(), bytes)),
        false,
    )
}

#[tokio::test]
async fn labels_of_a_pickle_are_counted_and_measured_before_they_are_copied() {
    let mut server = Server::start().await;
    let header = v1::CavImportHeader {
        hook_name: HOOK.to_owned(),
        model_id: MODEL.to_owned(),
        file_name: "x.pt".to_owned(),
    };
    for (label, labels, expected) in [
        // 40 GB, were they copied first.
        ("a".repeat(1 << 20), 40_000, "2 vectors and 40000 labels"),
        ("a".repeat(201), 2, "\"labels\"[0] has 201 bytes"),
        ("a".to_owned(), 2, "twice"),
    ] {
        let file = torch_file(&label, labels);
        let status = server.cavs(&file, header.clone()).await;
        let status = status.expect_err(expected);
        assert_eq!(field(&status), "chunk");
        assert!(status.message().contains(expected), "{status:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn few_files_are_imported_at_once() {
    use v1::import_cavs_request::Content;
    let mut server = Server::start().await;
    let header = v1::CavImportHeader {
        hook_name: HOOK.to_owned(),
        model_id: MODEL.to_owned(),
        file_name: "x.json".to_owned(),
    };
    // Four clients that send no more than a header, and try until they may.
    let idle: Vec<_> = (0..4)
        .map(|_| {
            let first = v1::ImportCavsRequest {
                content: Some(Content::Header(header.clone())),
            };
            let mut client = server.client.clone();
            tokio::spawn(async move {
                loop {
                    let messages = futures::stream::iter([first.clone()]);
                    let refused = client.import_cavs(messages.chain(futures::stream::pending()));
                    refused.await.expect_err("no end");
                }
            })
        })
        .collect();
    let file = br#"[{"label": "a", "cav": [1, 2]}]"#;
    let mut import = async |refused: bool| {
        while server.cavs(file, header.clone()).await.is_err() != refused {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        server.cavs(file, header.clone()).await
    };
    let status = import(true).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    idle.iter().for_each(tokio::task::JoinHandle::abort);
    import(false).await.expect("room");
    server.stop().await;
}
