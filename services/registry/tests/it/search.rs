//! `SearchFeatures` and `ListFeatures`: ranking and pages.

use steering_proto::v1;
use tonic::Code;

use crate::{
    harness::{Server, field},
    sources::write_npz,
};

const LABELS: &str = r#"{"Ball": 1, "ball games": 2, "baseball": 3, "ice-ball": 4, "the ballroom": 5,
    "foot ball": 6, "snowballs": 7, "tennis": 8, "ÄRGER": 9, "100% \"sure\"_": 0}"#;

async fn server() -> Server {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    for name in ["a", "b"] {
        server.import(&path, name).await.expect("import");
    }
    server.labels("a", LABELS.as_bytes()).await.expect("labels");
    server
}

async fn search(server: &mut Server, query: &str, page_size: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::SearchFeaturesRequest {
            query: query.to_owned(),
            sae_id: String::new(),
            page_size,
            page_token,
        };
        let page = server
            .client
            .search_features(request)
            .await
            .expect("search")
            .into_inner();
        assert!(page_size == 0 || page.features.len() <= page_size as usize);
        found.extend(page.features.into_iter().map(|feature| feature.label));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

#[tokio::test]
async fn exact_then_prefix_then_words_then_parts() {
    let mut server = server().await;
    let ranked = [
        "Ball",
        "ball games",
        "ice-ball",
        "the ballroom",
        "foot ball",
        "baseball",
        "snowballs",
    ];
    for page_size in [0, 1, 2, 3, 7] {
        assert_eq!(
            search(&mut server, "BALL", page_size).await,
            ranked,
            "{page_size}"
        );
    }
    assert_eq!(
        search(&mut server, "ba", 0).await,
        [
            "Ball",
            "ball games",
            "baseball",
            "ice-ball",
            "the ballroom",
            "foot ball"
        ]
    );
    assert_eq!(search(&mut server, "game ball", 0).await, ["ball games"]);
    assert_eq!(search(&mut server, "ärg", 0).await, ["ÄRGER"]);
    assert_eq!(
        search(&mut server, "\"sure\"_", 0).await,
        ["100% \"sure\"_"]
    );
    assert_eq!(search(&mut server, "%", 0).await, [""; 0]);
    assert_eq!(search(&mut server, "OR* NEAR(", 0).await, [""; 0]);
}

#[tokio::test]
async fn searches_and_listings_refuse_what_they_cannot_honour() {
    let mut server = server().await;
    let request = |query: &str, page_size, page_token: &str| v1::SearchFeaturesRequest {
        query: query.to_owned(),
        sae_id: "a".to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    for (request, expected) in [
        (request(" ", 0, ""), "query"),
        (request(&"x".repeat(501), 0, ""), "query"),
        (request("a", 1001, ""), "page_size"),
        (request("a", 0, "zz"), "page_token"),
    ] {
        let status = server
            .client
            .search_features(request)
            .await
            .expect_err(expected);
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, expected)
        );
    }
    let first = server
        .client
        .search_features(request("ball", 1, ""))
        .await
        .expect("page")
        .into_inner();
    let status = server
        .client
        .search_features(request("tennis", 1, &first.next_page_token))
        .await;
    assert_eq!(
        field(&status.expect_err("another search's token")),
        "page_token"
    );
    let elsewhere = v1::SearchFeaturesRequest {
        sae_id: "b".to_owned(),
        ..request("ball", 0, "")
    };
    let found = server
        .client
        .search_features(elsewhere)
        .await
        .expect("search")
        .into_inner();
    assert!(found.features.is_empty());
}

#[tokio::test]
async fn listings_go_by_feature_in_pages() {
    let mut server = server().await;
    let rows = r#"{"index": 3, "label": "again", "source": "auto"}"#;
    server.labels("a", rows.as_bytes()).await.expect("labels");
    for (source, expected) in [
        ("", vec![0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]),
        ("auto", vec![3]),
        ("nobody", vec![]),
    ] {
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListFeaturesRequest {
                sae_id: "a".to_owned(),
                source: source.to_owned(),
                page_size: 4,
                page_token,
                ..v1::ListFeaturesRequest::default()
            };
            let page = server
                .client
                .list_features(request)
                .await
                .expect("list")
                .into_inner();
            found.extend(page.features.iter().map(|feature| feature.feature_index));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected, "{source}");
    }
}
