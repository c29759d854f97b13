//! Feature statistics, beside the same computed from all activations at once.

use std::time::Duration;

use futures::StreamExt;
use steering_proto::v1::{self, compute_feature_statistics_request::Message};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{Server, by_index, field};
use data::{Text, compute, config, encoded, import, listed, messages, request, texts, versions};

pub(crate) mod data;

/// Contexts as they should be: the strongest of each text, the five strongest of these.
fn contexts(texts: &[Text], fired: &[(usize, usize, f32)]) -> Vec<v1::FeatureContext> {
    let mut strongest: Vec<(usize, usize, f32)> = Vec::new();
    for &(text, token, activation) in fired {
        match strongest.last_mut() {
            Some(last) if last.0 == text && last.2 >= activation => {}
            Some(last) if last.0 == text => *last = (text, token, activation),
            _ => strongest.push((text, token, activation)),
        }
    }
    strongest.sort_by(|a, b| b.2.total_cmp(&a.2));
    strongest.truncate(5);
    let window = |tokens: &[v1::TextToken]| tokens.iter().map(|t| t.text.as_str()).collect();
    let context = |(text, at, activation): (usize, usize, f32)| {
        let tokens = &texts[text].tokens;
        v1::FeatureContext {
            activation,
            before: window(&tokens[at.saturating_sub(12)..at]),
            token: tokens[at].text.clone(),
            after: window(&tokens[at + 1..tokens.len().min(at + 13)]),
        }
    };
    strongest.into_iter().map(context).collect()
}

fn check(found: &v1::FeatureStatistics, fired: &[(usize, usize, f32)], token_count: u64) {
    let mut activations: Vec<f32> = fired.iter().map(|place| place.2).collect();
    activations.sort_by(f32::total_cmp);
    let count = activations.len();
    assert_eq!(found.active_count, count as u64);
    assert!((found.density - count as f64 / token_count as f64).abs() < 1e-12);
    assert_eq!(Some(&found.max_activation), activations.last());
    let mean = activations.iter().map(|&a| f64::from(a)).sum::<f64>() / count as f64;
    assert!((f64::from(found.mean_activation) / mean - 1.0).abs() < 1e-6);
    for (own, share) in [
        (found.p50_activation, 0.5),
        (found.p90_activation, 0.9),
        (found.p99_activation, 0.99),
    ] {
        let exact = activations[(share * count as f64).ceil() as usize - 1];
        assert!((own / exact - 1.0).abs() <= 0.02, "{share}: {own} {exact}");
        assert!(own <= found.max_activation);
    }
}

#[tokio::test]
async fn statistics_are_those_of_all_activations() {
    let mut server = Server::start().await;
    for folder in [
        "gemma_scope_npz",
        "saelens_v6_jumprelu",
        "saelens_v6_gated",
        "saelens_v6_layer_norm",
        "saelens_v6_batchtopk_inference",
    ] {
        import(&mut server, folder).await;
        let texts = texts(7, 120);
        let version = compute(&server, messages(config(folder), &texts))
            .await
            .expect(folder);
        let tokens: usize = texts.iter().map(|text| text.tokens.len() - 1).sum();
        assert_eq!(
            (version.text_count, version.token_count),
            (120, tokens as u64)
        );
        assert_eq!((version.dropped_count, version.digest.len()), (3, 64));
        assert_eq!(version.source, config("").source);
        let found = listed(&server, folder, "").await;
        let fired = encoded(&server, folder, &texts).await;
        let indices: Vec<u32> = found.iter().map(|feature| feature.feature_index).collect();
        let expected: Vec<u32> = (0..40).filter(|&i| !fired[i as usize].is_empty()).collect();
        assert_eq!(indices, expected, "{folder}");
        assert_eq!(version.active_feature_count as usize, expected.len());
        assert!(expected.len() > 10, "{folder}");
        for feature in &found {
            let fired = &fired[feature.feature_index as usize];
            check(feature, fired, version.token_count);
            assert_eq!(feature.top_contexts, contexts(&texts, fired), "{folder}");
            assert_eq!(feature.digest, version.digest);
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn special_tokens_count_where_asked_for() {
    let mut server = Server::start().await;
    import(&mut server, "gemma_scope_npz").await;
    let texts = texts(1, 5);
    let all = v1::FeatureStatisticsConfig {
        include_special_tokens: true,
        ..config("")
    };
    let without = compute(&server, messages(config(""), &texts))
        .await
        .expect("without");
    let with = compute(&server, messages(all, &texts)).await.expect("with");
    assert_eq!(with.token_count, without.token_count + 5);
    assert!(with.include_special_tokens && with.digest != without.digest);
    let strongest = listed(&server, "", "").await;
    let strongest = strongest
        .iter()
        .max_by(|a, b| a.max_activation.total_cmp(&b.max_activation));
    assert_eq!(strongest.expect("one").top_contexts[0].token, "<bos>");
    server.stop().await;
}

#[tokio::test]
async fn the_newest_version_is_used_and_survives_a_restart() {
    let mut server = Server::start().await;
    import(&mut server, "gemma_scope_npz").await;
    let one = compute(&server, messages(config(""), &texts(1, 40)))
        .await
        .expect("one");
    let two = compute(&server, messages(config(""), &texts(2, 40)))
        .await
        .expect("two");
    let again = compute(&server, messages(config(""), &texts(1, 40)))
        .await
        .expect("again");
    assert_eq!(
        (&again.digest, again.created_at),
        (&one.digest, one.created_at)
    );
    let data = server.stop().await;
    let server = Server::start_with(data, Vec::new()).await;
    let digests = |versions: Vec<v1::FeatureStatisticsVersion>| -> Vec<String> {
        versions.into_iter().map(|version| version.digest).collect()
    };
    let stored = digests(versions(&server, "").await);
    assert_eq!(stored, [one.digest.clone(), two.digest.clone()]);
    let newest = listed(&server, "", "").await;
    assert_eq!(newest, listed(&server, "", &one.digest[..8]).await);
    assert_ne!(newest, listed(&server, "", &two.digest).await);

    let delete = |digest: &str| v1::DeleteFeatureStatisticsRequest {
        digest: digest.to_owned(),
        ..Default::default()
    };
    let mut client = server.client.clone();
    client
        .delete_feature_statistics(delete(&one.digest))
        .await
        .expect("removed");
    assert_eq!(digests(versions(&server, "").await), [two.digest]);
    let gone = client
        .delete_feature_statistics(delete(&one.digest))
        .await
        .expect_err("gone");
    assert_eq!(gone.code(), Code::NotFound);
    for (digest, name) in [("", "digest"), ("abc", "digest"), ("no digits", "digest")] {
        let status = client
            .delete_feature_statistics(delete(digest))
            .await
            .expect_err(name);
        assert_eq!(field(&status), name);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_measured_maximum_goes_before_a_stated_one() {
    let mut server = Server::start().await;
    import(&mut server, "gemma_scope_npz").await;
    let lines: String = (0..40)
        .map(|i| format!("{{\"index\": {i}, \"label\": \"l{i}\", \"max_activation\": 777.0}}\n"))
        .collect();
    server
        .labels("gemma_scope_npz", lines.as_bytes())
        .await
        .expect("labels");
    // One token that counts, on which not every feature fires.
    let mut texts = texts(3, 1);
    texts[0].tokens.truncate(2);
    texts[0].rows.truncate(2);
    let refs = || (0..40).map(|i| by_index("", i)).collect::<Vec<_>>();
    let with_statistics = || v1::GetFeaturesRequest {
        features: refs(),
        include_statistics: true,
    };
    let none = server
        .client
        .get_features(with_statistics())
        .await
        .expect("none")
        .into_inner();
    assert!(
        none.features
            .iter()
            .all(|feature| feature.max_activation == Some(777.0))
    );
    assert!(
        none.statistics
            .iter()
            .all(|statistics| statistics.digest.is_empty())
    );

    let version = compute(&server, messages(config(""), &texts))
        .await
        .expect("computed");
    let found = server
        .client
        .get_features(with_statistics())
        .await
        .expect("found")
        .into_inner();
    let mut silent = 0;
    for (feature, statistics) in found.features.iter().zip(&found.statistics) {
        assert_eq!(statistics.digest, version.digest);
        assert_eq!(statistics.feature_index, feature.feature_index);
        let expected = match statistics.active_count {
            0 => 777.0,
            _ => statistics.max_activation,
        };
        silent += usize::from(statistics.active_count == 0);
        assert_eq!(feature.max_activation, Some(expected));
    }
    assert!((1..40).contains(&silent), "{silent}");
    let plain = server.features(refs()).await.expect("plain");
    assert_eq!(plain, found.features, "with or without statistics");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_wrong_or_ends_early_stores_nothing() {
    let mut server = Server::start().await;
    import(&mut server, "gemma_scope_npz").await;
    let texts = texts(4, 3);
    let good = messages(config(""), &texts);
    let rows = |values: Vec<f32>| Message::Rows(v1::ActivationRows { values });
    let end = |text_count| {
        Message::End(v1::FeatureStatisticsEnd {
            text_count,
            dropped_count: 0,
        })
    };
    let last = good.len() - 1;
    let with = |at: usize, message: Message| {
        let mut messages = good.clone();
        messages.insert(at, message);
        messages
    };
    let cases = [
        (good[..last].to_vec(), "end"),
        (good[1..].to_vec(), "config"),
        (with(1, good[0].clone()), "config"),
        (with(1, end(0)), "end"),
        (with(1, rows(vec![1.0; 20])), "values"),
        (with(last, rows(vec![1.0; 20])), "values"),
        (with(2, rows(vec![1.0; 21])), "rows.values"),
        (with(2, rows(vec![f32::NAN; 20])), "rows.values[0]"),
        ([&good[..2], &[end(1)][..]].concat(), "rows"),
        (with(2, good[1].clone()), "rows"),
        (
            with(1, Message::Text(v1::TextTokens::default())),
            "text.tokens",
        ),
        ([&good[..last], &[end(4)][..]].concat(), "end.text_count"),
        (vec![good[0].clone(), end(0)], "end"),
    ];
    for (messages, expected) in cases {
        let status = compute(&server, messages).await.expect_err(expected);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(field(&status), expected, "{status:?}");
    }
    // Whoever sends goes away in the middle.
    let (sender, receiver) = tokio::sync::mpsc::channel(100);
    for message in &good[..last] {
        sender.send(request(message.clone())).await.expect("sent");
    }
    let mut client = server.client.clone();
    let call = client.compute_feature_statistics(ReceiverStream::new(receiver));
    let waited = tokio::time::timeout(Duration::from_millis(300), call).await;
    assert!(waited.is_err(), "it waits for more");
    drop(sender);
    assert_eq!(versions(&server, "").await, []);
    assert_eq!(server.files().len(), 1, "the SAE: {:?}", server.files());
    compute(&server, good).await.expect("nothing is in the way");
    server.stop().await;
}

#[tokio::test]
async fn two_are_computed_at_once_and_a_third_waits() {
    let mut server = Server::start().await;
    import(&mut server, "gemma_scope_npz").await;
    import(&mut server, "saelens_v6_gated").await;
    let texts = texts(5, 60);
    let names = ["gemma_scope_npz", "saelens_v6_gated"];
    let mut alone = Vec::new();
    for name in names {
        alone.push(
            compute(&server, messages(config(name), &texts))
                .await
                .expect(name)
                .digest,
        );
    }
    let mut running = Vec::new();
    for name in names {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut client = server.client.clone();
        let requests = ReceiverStream::new(receiver).map(request);
        let call = tokio::spawn(async move { client.compute_feature_statistics(requests).await });
        running.push((sender, messages(config(name), &texts), call));
    }
    // Both are in the middle of it.
    for (sender, messages, _) in &mut running {
        for message in messages.drain(..messages.len() / 2) {
            sender.send(message).await.expect("taken");
        }
    }
    let third = compute(&server, messages(config(names[0]), &texts))
        .await
        .expect_err("a third");
    assert_eq!(third.code(), Code::ResourceExhausted);
    let mut digests = Vec::new();
    for (sender, messages, call) in running {
        for message in messages {
            sender.send(message).await.expect("taken");
        }
        drop(sender);
        let done = call
            .await
            .expect("no panic")
            .expect("computed")
            .into_inner();
        digests.push(done.version.expect("a version").digest);
    }
    assert_eq!(digests, alone);
    server.stop().await;
}
