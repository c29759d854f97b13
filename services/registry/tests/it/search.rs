//! `SearchFeatures` and `ListFeatures`: ranking and pages.

use steering_proto::v1;
use tonic::Code;

use crate::{
    harness::{Server, by_label, delete, field, import_with},
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
            page_size,
            page_token,
            ..v1::SearchFeaturesRequest::default()
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
async fn typing_errors_are_forgiven_where_nothing_else_matches() {
    let mut server = server().await;
    for page_size in [0, 1] {
        assert_eq!(search(&mut server, "tenis", page_size).await, ["tennis"]);
        assert_eq!(search(&mut server, "tennsi", page_size).await, ["tennis"]);
        let near = ["Ball", "ball games", "ice-ball", "foot ball"];
        assert_eq!(search(&mut server, "bell", page_size).await, near);
        assert_eq!(
            search(&mut server, "bell gam", page_size).await,
            ["ball games"]
        );
        assert_eq!(
            search(&mut server, "basbal", page_size).await,
            ["baseball"; 0]
        );
        assert_eq!(
            search(&mut server, "baesballl", page_size).await,
            ["baseball"]
        );
    }
    // "foot" is there, so that "food" is not meant.
    let rows = br#"{"index": 1, "label": "food", "source": "auto"}"#;
    server.labels("a", rows).await.expect("labels");
    assert_eq!(search(&mut server, "food", 0).await, ["food"]);
}

#[tokio::test]
async fn searches_go_through_all_saes_and_keep_to_those_asked_for() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    for i in 0..9 {
        let options = v1::SaeImportOptions {
            sae_id: format!("s{i}"),
            hook_name: format!("blocks.{}.hook_resid_post", i % 3),
            model_id: format!("model-{}", i % 2),
            ..Default::default()
        };
        import_with(&mut server.client, &path, options)
            .await
            .expect("import");
        let rows = format!(
            r#"[{{"index": 1, "label": "red apple {i}"}}, {{"index": 2, "label": "apples", "source": "s{i}"}},
                {{"index": 3, "label": "pineapple", "passed": false}}, {{"index": 4, "label": "pineapples"}}]"#
        );
        server
            .labels(&format!("s{i}"), rows.as_bytes())
            .await
            .expect("labels");
    }
    let mut ask = async |request: v1::SearchFeaturesRequest| {
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::SearchFeaturesRequest {
                query: "Apple".to_owned(),
                page_size: 4,
                page_token,
                ..request.clone()
            };
            let page = server
                .client
                .search_features(request)
                .await
                .expect("search");
            let page = page.into_inner();
            found.extend(
                page.features
                    .into_iter()
                    .map(|f| (f.sae_id, f.feature_index)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    let expected = |kept: &dyn Fn(usize) -> bool| -> Vec<(String, u32)> {
        let saes = || (0..9).filter(|i| kept(*i)).map(|i| format!("s{i}"));
        // Prefix, words, parts.
        [2, 1, 4]
            .into_iter()
            .flat_map(|index| saes().map(move |sae| (sae, index)))
            .collect()
    };
    let all = v1::SearchFeaturesRequest::default();
    assert_eq!(ask(all.clone()).await, expected(&|_| true));
    let of_model = v1::SearchFeaturesRequest {
        model_id: "model-1".to_owned(),
        ..all.clone()
    };
    assert_eq!(ask(of_model.clone()).await, expected(&|i| i % 2 == 1));
    let of_both = v1::SearchFeaturesRequest {
        hook_name: "blocks.2.hook_resid_post".to_owned(),
        ..of_model
    };
    assert_eq!(ask(of_both).await, expected(&|i| i == 5));
    let of_source = v1::SearchFeaturesRequest {
        source: "s7".to_owned(),
        ..all.clone()
    };
    assert_eq!(ask(of_source).await, [("s7".to_owned(), 2)]);
    let of_nobody = v1::SearchFeaturesRequest {
        model_id: "model".to_owned(),
        ..all
    };
    assert!(ask(of_nobody).await.is_empty());
}

#[tokio::test]
async fn the_work_of_one_call_is_bounded_and_pages_miss_nothing() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    let mut rows = String::new();
    for i in 0..6000 {
        // Every label but one is somebody else's.
        let source = if i == 4321 { "mine" } else { "theirs" };
        rows += &format!("{{\"index\": 1, \"label\": \"number {i}\", \"source\": \"{source}\"}}\n");
    }
    server.labels("a", rows.as_bytes()).await.expect("labels");
    let (mut calls, mut found, mut page_token) = (0, Vec::new(), String::new());
    loop {
        let request = v1::SearchFeaturesRequest {
            query: "number".to_owned(),
            source: "mine".to_owned(),
            page_token,
            ..v1::SearchFeaturesRequest::default()
        };
        let page = server
            .client
            .search_features(request)
            .await
            .expect("search")
            .into_inner();
        calls += 1;
        found.extend(page.features.into_iter().map(|feature| feature.label));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["number 4321"]);
    assert!((4..12).contains(&calls), "{calls} calls");
}

#[tokio::test]
async fn labels_that_are_gone_are_not_found() {
    let mut server = server().await;
    server.labels("a", br#"{"Ball": 7}"#).await.expect("labels");
    let found = server.search("ball").await.expect("search");
    let first = &found[0];
    assert_eq!((first.label.as_str(), first.feature_index), ("Ball", 7));
    assert_eq!(
        found.iter().filter(|label| label.label == "Ball").count(),
        1
    );
    server
        .client
        .delete_sae(delete("a", true))
        .await
        .expect("delete");
    assert!(server.search("ball").await.expect("search").is_empty());
    let long = "long ".repeat(800);
    let rows = format!(r#"{{"{long}": 1, "{long}er": 2, "x": 3}}"#);
    server.labels("b", rows.as_bytes()).await.expect("labels");
    assert_eq!(server.search("long lo").await.expect("search").len(), 2);
    assert_eq!(server.feature(by_label("b", &long)).await.feature_index, 1);
    let status = server.labels("b", br#"{"a\u0000b": 1}"#).await;
    let status = status.expect_err("a NUL character");
    assert!(status.message().contains("NUL"), "{status}");
}

#[tokio::test]
async fn searches_and_listings_refuse_what_they_cannot_honour() {
    let mut server = server().await;
    let request = |query: &str, page_size, page_token: &str| v1::SearchFeaturesRequest {
        query: query.to_owned(),
        sae_id: "a".to_owned(),
        page_size,
        page_token: page_token.to_owned(),
        ..v1::SearchFeaturesRequest::default()
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

#[tokio::test]
async fn a_word_that_starts_many_others_hides_nothing() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    let mut rows: Vec<String> = (0..700)
        .map(|i| format!(r#"{{"index": 1, "label": "item 9{i:03}"}}"#))
        .collect();
    rows.push(r#"{"index": 2, "label": "okapi 99999z"}"#.to_owned());
    rows.extend((0..700).map(|i| format!(r#"{{"index": 3, "label": "item abc{i:03}"}}"#)));
    rows.push(r#"{"index": 3, "label": "okapi xabc"}"#.to_owned());
    rows.push(r#"{"index": 3, "label": "okapi abcz"}"#.to_owned());
    let labels = rows.join("\n");
    server.labels("a", labels.as_bytes()).await.expect("labels");
    let mut found = async |query: &str| {
        let request = v1::SearchFeaturesRequest {
            query: query.to_owned(),
            page_size: 1000,
            ..v1::SearchFeaturesRequest::default()
        };
        let page = server.client.search_features(request).await;
        let page = page.expect("search").into_inner();
        assert!(page.next_page_token.is_empty(), "one page");
        (page.features, page.truncated)
    };
    let (labels, truncated) = found("9 okapi").await;
    let labels: Vec<&str> = labels.iter().map(|label| label.label.as_str()).collect();
    assert_eq!((labels, truncated), (vec!["okapi 99999z"], false));
    let (labels, truncated) = found("9 item").await;
    assert_eq!((labels.len(), truncated), (700, false));
    // What was passed over among better matches is found where it fits.
    let (labels, _) = found("abc okapi").await;
    let labels: Vec<&str> = labels.iter().map(|label| label.label.as_str()).collect();
    assert_eq!(labels, ["okapi abcz", "okapi xabc"]);
    let (labels, truncated) = found("9").await;
    assert_eq!((labels.len(), truncated), (500, true));
}
