//! What labels rest on: kept, handed out, and no name given to what failed.

use steering_proto::v1::{self, label_evidence::Value};
use tonic::Code;

use crate::{
    harness::{Server, by_index, by_label, field},
    sources::write_npz,
};

const ROWS: &str = r#"
{"index": 3, "label": "baseball", "source": "demo", "score": 0.9, "passed": true, "strength": 12.5,
 "max_activation": 8.0, "evidence": {"topic_precision": 0.97, "density": 0.01, "tokens": "bat, pitch"}}
{"index": 5, "label": "baseball", "source": "demo", "passed": false, "max_activation": 4.0, "evidence": {"on_topic": 0.2}}
{"index": 6, "label": "chess", "source": "demo", "passed": false}
"#;

async fn server() -> Server {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    let counts = server.labels("a", ROWS.as_bytes()).await.expect("labels");
    assert_eq!(
        (
            counts.label_count,
            counts.feature_count,
            counts.candidate_count
        ),
        (1, 1, 2)
    );
    server
}

async fn list(server: &mut Server, request: v1::ListFeaturesRequest) -> Vec<v1::FeatureLabel> {
    let request = v1::ListFeaturesRequest {
        sae_id: "a".to_owned(),
        ..request
    };
    let page = server.client.list_features(request).await.expect("list");
    page.into_inner().features
}

#[tokio::test]
async fn evidence_comes_back_in_the_order_it_was_given() {
    let mut server = server().await;
    let labels = list(
        &mut server,
        v1::ListFeaturesRequest {
            feature_index: Some(3),
            ..v1::ListFeaturesRequest::default()
        },
    )
    .await;
    let [label] = labels.as_slice() else {
        panic!("{labels:?}");
    };
    assert_eq!(
        (label.strength, label.max_activation, label.candidate),
        (Some(12.5), Some(8.0), false)
    );
    let evidence: Vec<_> = label
        .evidence
        .iter()
        .map(|entry| (entry.name.as_str(), entry.value.clone()))
        .collect();
    assert_eq!(
        evidence,
        [
            ("topic_precision", Some(Value::Number(0.97))),
            ("density", Some(Value::Number(0.01))),
            ("tokens", Some(Value::Text("bat, pitch".to_owned()))),
        ]
    );
    let features = server
        .features(vec![by_label("a", "baseball"), by_index("a", 5)])
        .await
        .expect("features");
    assert_eq!(features[0].feature_index, 3);
    assert_eq!(features[0].max_activation, Some(8.0));
    // Known of the feature, whatever became of its label.
    assert_eq!(
        (features[1].label.as_str(), features[1].max_activation),
        ("", Some(4.0))
    );
}

#[tokio::test]
async fn candidates_are_no_names() {
    let mut server = server().await;
    let status = server
        .features(vec![by_label("a", "chess")])
        .await
        .expect_err("a candidate");
    assert_eq!(
        (status.code(), field(&status).as_str()),
        (Code::InvalidArgument, "features[0].label")
    );
    assert!(status.message().contains("feature_index 6"), "{status}");
    let search = v1::SearchFeaturesRequest {
        query: "chess".to_owned(),
        ..v1::SearchFeaturesRequest::default()
    };
    let found = server.client.search_features(search).await.expect("search");
    assert!(found.into_inner().features.is_empty());
    let indices = |labels: Vec<v1::FeatureLabel>| -> Vec<u32> {
        labels.iter().map(|label| label.feature_index).collect()
    };
    let named = list(&mut server, v1::ListFeaturesRequest::default()).await;
    assert_eq!(indices(named), [3]);
    let all = list(
        &mut server,
        v1::ListFeaturesRequest {
            include_candidates: true,
            ..v1::ListFeaturesRequest::default()
        },
    )
    .await;
    assert_eq!(indices(all), [3, 5, 6]);
    let sae = v1::GetSaeRequest {
        sae_id: "a".to_owned(),
    };
    let sae = server.client.get_sae(sae).await.expect("sae").into_inner();
    assert_eq!(sae.sae.map(|sae| sae.label_count), Some(1));
}

#[tokio::test]
async fn a_candidate_becomes_a_name_when_it_passes_later() {
    let mut server = server().await;
    let rows = r#"{"index": 6, "label": "chess", "source": "demo", "passed": true}"#;
    server.labels("a", rows.as_bytes()).await.expect("labels");
    let features = server.features(vec![by_label("a", "chess")]).await;
    assert_eq!(features.expect("a name")[0].feature_index, 6);
    // A new candidate takes no name away.
    let rows = r#"{"index": 7, "label": "chess", "source": "demo", "passed": false}"#;
    server.labels("a", rows.as_bytes()).await.expect("labels");
    let features = server.features(vec![by_label("a", "chess")]).await;
    assert_eq!(features.expect("still a name")[0].feature_index, 6);
}

#[tokio::test]
async fn evidence_is_bounded_and_flat() {
    let mut server = server().await;
    let many: Vec<String> = (0..65).map(|i| format!("\"e{i}\": {i}")).collect();
    let long = "x".repeat(1001);
    for (evidence, expected) in [
        (format!("{{{}}}", many.join(",")), "at most 64"),
        (r#"{"a": [1]}"#.to_owned(), "neither a number nor a text"),
        (format!(r#"{{"a": "{long}"}}"#), "at most 1000 bytes"),
        (r#"{"": 1}"#.to_owned(), "1 to 100 bytes"),
        ("7".to_owned(), "an object of numbers and texts"),
    ] {
        let row = format!(r#"{{"index": 9, "label": "nine", "evidence": {evidence}}}"#);
        let status = server
            .labels("a", row.as_bytes())
            .await
            .expect_err(expected);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(expected), "{status}");
    }
    assert_eq!(
        list(&mut server, v1::ListFeaturesRequest::default())
            .await
            .len(),
        1
    );
}
