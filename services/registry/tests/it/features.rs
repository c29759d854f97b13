//! `GetFeatures`, and labels on their way in.

use steering_proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use crate::{
    harness::{HOOK, MODEL, Server, by_index, by_label, field},
    sources::{D_IN, D_SAE, value, write_npz},
};

async fn server_with_sae() -> Server {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    server
}

#[tokio::test]
async fn features_have_their_own_numbers_in_the_order_asked_for() {
    let mut server = server_with_sae().await;
    server
        .labels("a", br#"{"nine": 9, "novem": 9, "two": 2}"#)
        .await
        .expect("labels");
    let references = vec![
        by_index("a", 9),
        by_label("a", "two"),
        by_label("", "novem"),
        by_index("a", 0),
    ];
    let features = server.features(references).await.expect("features");
    let found: Vec<_> = features
        .iter()
        .map(|f| (f.feature_index, f.label.as_str()))
        .collect();
    assert_eq!(found, [(9, "nine"), (2, "two"), (9, "novem"), (0, "")]);
    for feature in features {
        let index = feature.feature_index as usize;
        let row = |tensor| {
            (0..D_IN)
                .map(|c| value(tensor, index, c))
                .collect::<Vec<_>>()
        };
        assert_eq!(feature.encoder, row(1));
        assert_eq!(feature.decoder, row(2));
        assert_eq!(feature.encoder_bias, value(3, index, 0));
        let jump = v1::JumpReluActivation {
            threshold: value(5, index, 0),
        };
        assert_eq!(
            feature.activation,
            Some(v1::sae_feature::Activation::JumpRelu(jump))
        );
        assert_eq!(feature.input_normalization(), v1::InputNormalization::None);
        assert_eq!(
            (feature.hook_name.as_str(), feature.model_id.as_str()),
            (HOOK, MODEL)
        );
        assert_eq!(feature.sae_digest.len(), 64);
    }
}

#[tokio::test]
async fn what_does_not_exist_is_named_and_the_nearest_suggested() {
    let mut server = server_with_sae().await;
    server
        .labels("a", br#"{"baseball": 1, "basketball": 2, "tennis": 3}"#)
        .await
        .expect("labels");

    let status = server
        .features(vec![by_label("a", "basebal")])
        .await
        .expect_err("label");
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("\"baseball\""),
        "{}",
        status.message()
    );
    let info = status.get_details_error_info().expect("error info");
    assert_eq!(info.reason, "LABEL_NOT_FOUND");
    assert!(
        info.metadata["suggestions"].starts_with(r#"["baseball""#),
        "{info:?}"
    );

    let status = server
        .features(vec![by_index("b", 0)])
        .await
        .expect_err("SAE");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("\"a\""), "{}", status.message());

    let d_sae = u32::try_from(D_SAE).expect("small");
    for (references, expected) in [
        (
            vec![by_index("a", 0), by_index("a", d_sae)],
            "features[1].feature_index",
        ),
        (vec![by_index("a", u32::MAX)], "features[0].feature_index"),
        (vec![by_label("a", "")], "features[0].label"),
        (vec![v1::FeatureRef::default()], "features[0].feature"),
        (vec![], "features"),
        (vec![by_index("a", 0); 257], "features"),
    ] {
        let status = server.features(references).await.expect_err(expected);
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, expected)
        );
    }
    assert_eq!(
        server
            .features(vec![by_index("a", 0); 256])
            .await
            .expect("256")
            .len(),
        256
    );
}

#[tokio::test]
async fn an_unnamed_sae_is_the_only_one() {
    let mut server = Server::start().await;
    let status = server
        .features(vec![by_index("", 0)])
        .await
        .expect_err("none held");
    assert_eq!(status.code(), Code::NotFound);
    let path = write_npz(server.data.path(), "a.npz", 0);
    server.import(&path, "a").await.expect("import");
    assert_eq!(server.feature(by_index("", 3)).await.sae_id, "a");
    server.import(&path, "b").await.expect("import");
    let status = server
        .features(vec![by_index("", 0)])
        .await
        .expect_err("two held");
    assert_eq!(
        (status.code(), field(&status).as_str()),
        (Code::InvalidArgument, "features[0].sae_id")
    );
    assert!(status.message().contains("a, b"), "{}", status.message());
}

#[tokio::test]
async fn labels_are_stored_all_or_none_and_again_without_change() {
    let mut server = server_with_sae().await;
    let text = br#"{"x": 1, "y": 1, "z": 2}"#;
    for _ in 0..2 {
        let stored = server.labels("a", text).await.expect("labels");
        assert_eq!((stored.label_count, stored.feature_count), (3, 2));
        let sae = server
            .client
            .get_sae(v1::GetSaeRequest {
                sae_id: "a".to_owned(),
            })
            .await
            .expect("SAE");
        assert_eq!(sae.into_inner().sae.expect("SAE").label_count, 3);
    }
    for (text, expected) in [
        (&br#"{"new": 3, "far": 10}"#[..], "\"far\""),
        (
            br#"{"new": 3, "new": 4}"#,
            "\"new\" names feature 3 and feature 4",
        ),
        (
            b"{\"index\": 3, \"label\": \"new\"}\n{\"index\": 4, \"label\": \"new\"}",
            "\"new\" names",
        ),
        (b"", "empty"),
    ] {
        let status = server.labels("a", text).await.expect_err(expected);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(expected), "{}", status.message());
    }
    assert_eq!(
        server
            .features(vec![by_label("a", "new")])
            .await
            .expect_err("none")
            .code(),
        Code::NotFound
    );

    // A name given anew leaves the feature it named before.
    server.labels("a", br#"{"x": 5}"#).await.expect("labels");
    assert_eq!(server.feature(by_label("a", "x")).await.feature_index, 5);
    assert_eq!(server.feature(by_index("a", 1)).await.label, "y");

    let status = server.labels("none", text).await.expect_err("no such SAE");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(
        field(&server.labels("", text).await.expect_err("no name")),
        "header.sae_id"
    );
}

/// In another batch of the same import, and in another import.
#[tokio::test]
async fn a_label_that_comes_again_is_stored_once_as_it_came_last() {
    let mut server = server_with_sae().await;
    let row = |i: usize, score: f32| {
        let index = i % D_SAE;
        format!("{{\"index\": {index}, \"label\": \"label {i}\", \"score\": {score}}}\n")
    };
    let mut rows: String = (0..5000).map(|i| row(i, 0.25)).collect();
    rows += &row(7, 0.5);
    for (rows, count) in [(rows, 5000), (row(8, 0.75) + &row(5000, 1.0), 2)] {
        let stored = server.labels("a", rows.as_bytes()).await.expect("labels");
        assert_eq!(stored.label_count, count);
    }
    for (i, score) in [(6, 0.25), (7, 0.5), (8, 0.75), (5000, 1.0)] {
        let label = format!("label {i}");
        let found = server.search(&label).await.expect("search");
        assert_eq!((&found[0].label, found[0].score), (&label, Some(score)));
        assert_ne!(found.get(1).map(|found| &found.label), Some(&label));
    }
}

/// Takes minutes if any step looks at all labels for each.
#[tokio::test]
async fn many_labels_take_time_in_proportion() {
    let mut server = server_with_sae().await;
    let rows: String = (0..20_000)
        .map(|i| format!("{{\"index\": {}, \"label\": \"label {i}\"}}\n", i % D_SAE))
        .collect();
    for _ in 0..2 {
        let stored = server.labels("a", rows.as_bytes()).await.expect("labels");
        assert_eq!(
            (stored.label_count, stored.feature_count),
            (20_000, D_SAE as u64)
        );
    }
    assert_eq!(
        server
            .feature(by_label("a", "label 12345"))
            .await
            .feature_index,
        5
    );
    let status = server
        .features(vec![by_label("a", "labl 7")])
        .await
        .expect_err("no such label");
    assert!(
        status.message().contains("\"label 7\""),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn shared_descriptions_are_kept_and_refused_as_names() {
    let mut server = server_with_sae().await;
    let text = br#"[{"modelId": "m", "layer": "1-res", "index": "3", "description": "sports"},
        {"modelId": "m", "layer": "1-res", "index": "4", "description": "sports"}]"#;
    let stored = server.labels("a", text).await.expect("explanations");
    assert_eq!((stored.label_count, stored.feature_count), (2, 2));
    assert_eq!(server.feature(by_index("a", 4)).await.label, "sports");
    let status = server
        .features(vec![by_label("a", "sports")])
        .await
        .expect_err("ambiguous");
    assert_eq!(field(&status), "features[0].label");
    assert!(status.message().contains("3, 4"), "{}", status.message());
}

#[tokio::test]
async fn the_best_label_is_a_persons_then_the_highest_score() {
    let mut server = server_with_sae().await;
    let rows = r#"{"index": 1, "label": "low", "source": "auto", "score": 0.1}
{"index": 1, "label": "high", "source": "auto", "score": 0.9}
{"index": 2, "label": "scored", "source": "auto", "score": 1.0}
{"index": 2, "label": "by hand", "source": "manual"}"#;
    server.labels("a", rows.as_bytes()).await.expect("labels");
    assert_eq!(server.feature(by_index("a", 1)).await.label, "high");
    assert_eq!(server.feature(by_index("a", 2)).await.label, "by hand");
}
