//! API keys: who is turned away, and how.

use steering_proto::access::{Access, Scope, access};
use steering_service::{Operation, Security};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{
    GET_MODEL, HEALTH, LIST_SAES, REFLECTION, Tried, call, call_with, code, entry, lines, rpcs,
    secret, until, with_keys,
};

const IN: Code = Code::Unimplemented; // let in: there is nothing behind the door

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("error info").reason
}

async fn refused(tried: &Tried, headers: &[(&'static str, &str)], wanted: &str) {
    let status = call(&tried.plain(), GET_MODEL, headers)
        .await
        .expect_err("refused");
    assert_eq!(
        status.code(),
        Code::Unauthenticated,
        "{headers:?}: {status}"
    );
    assert_eq!(reason(&status), wanted, "{headers:?}");
}

#[tokio::test]
async fn no_rpc_is_let_in_without_a_key_or_with_a_wrong_one() {
    let (_folder, security) = with_keys(&[entry("root", &[Scope::Admin])]);
    let tried = Tried::start(&security, &Operation::default()).await;
    let channel = tried.plain();
    let mut all = rpcs();
    assert!(all.len() >= 20, "{all:?}");
    all.push(REFLECTION.to_owned());
    all.push("/steering.v1.ModelWorkerService/Nothing".to_owned());
    for path in all {
        let none = code(call(&channel, &path, &[]).await);
        assert_eq!(none, Code::Unauthenticated, "{path}");
        let wrong = call_with(&channel, &path, "wrong").await;
        assert_eq!(wrong, Code::Unauthenticated, "{path}");
    }
    assert_eq!(code(call(&channel, HEALTH, &[]).await), Code::Ok);
}

#[tokio::test]
async fn every_rpc_takes_its_own_scope_and_no_other() {
    let name = |scope: Scope| scope.name().to_owned();
    let entries: Vec<_> = Scope::ALL
        .map(|scope| entry(&name(scope), &[scope]))
        .to_vec();
    let (_folder, security) = with_keys(&entries);
    let tried = Tried::start(&security, &Operation::default()).await;
    let channel = tried.plain();
    for path in rpcs() {
        let Some(Access::Scope(needed)) = access(&path) else {
            panic!("{path} has no scope");
        };
        for scope in Scope::ALL {
            let wanted = if scope == needed || scope == Scope::Admin {
                IN
            } else {
                Code::PermissionDenied
            };
            let got = call_with(&channel, &path, &secret(scope.name())).await;
            assert_eq!(got, wanted, "{path} with {}", scope.name());
        }
    }
    let read = secret(Scope::RegistryRead.name());
    let undeclared = call_with(&channel, "/steering.v1.ModelWorkerService/Nothing", &read).await;
    assert_eq!(undeclared, Code::PermissionDenied);
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let (_folder, security) = with_keys(&[entry("reader", &[Scope::RegistryRead])]);
    let tried = Tried::start(&security, &Operation::default()).await;
    let headers = [("authorization", "Bearer reader-secret")];
    let status = call(&tried.plain(), GET_MODEL, &headers)
        .await
        .expect_err("refused");
    let info = status.get_details_error_info().expect("error info");
    assert_eq!(
        (info.reason.as_str(), info.metadata["scope"].as_str()),
        ("MISSING_SCOPE", "generate")
    );
    assert!(status.message().contains("generate"), "{status}");
}

#[tokio::test]
async fn malformed_headers_are_refused() {
    let (_folder, security) = with_keys(&[entry("a", &[Scope::Admin])]);
    let tried = Tried::start(&security, &Operation::default()).await;
    let long = format!("Bearer {}", "x".repeat(257));
    let malformed: [&[(&'static str, &str)]; 11] = [
        &[("authorization", "")],
        &[("authorization", "a-secret")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Bearer  a-secret")],
        &[("authorization", "Bearer a-secret ")],
        &[("authorization", "Bearer a-secret a-secret")],
        &[("authorization", "Basic a-secret")],
        &[("authorization", "Bearer schl\u{fc}ssel")],
        &[("authorization", &long)],
        &[
            ("authorization", "Bearer a-secret"),
            ("authorization", "Bearer a-secret"),
        ],
    ];
    for headers in malformed {
        refused(&tried, headers, "MALFORMED_API_KEY").await;
    }
    refused(&tried, &[], "NO_API_KEY").await;
    refused(&tried, &[("x-api-key", "a-secret")], "NO_API_KEY").await;
    for unknown in ["a-secre", "a-secrett", "A-SECRET", "b-secret", "*", "null"] {
        let header = format!("Bearer {unknown}");
        refused(&tried, &[("authorization", &header)], "UNKNOWN_API_KEY").await;
    }
    // The hash, which may have leaked, is no key.
    let hash = format!("Bearer {}", entry("a", &[]).sha256);
    refused(&tried, &[("authorization", &hash)], "UNKNOWN_API_KEY").await;
    // RFC 7235: the scheme's case does not matter.
    let status = call(
        &tried.plain(),
        GET_MODEL,
        &[("authorization", "bEARER a-secret")],
    )
    .await;
    assert_eq!(code(status), IN);
}

#[tokio::test]
async fn expired_keys_are_refused() {
    let mut old = entry("old", &[Scope::Admin]);
    old.expires = Some("2020-01-01T00:00:00Z".to_owned());
    let mut fresh = entry("fresh", &[Scope::Admin]);
    fresh.expires = Some("2900-01-01T00:00:00+02:00".to_owned());
    let (_folder, security) = with_keys(&[old, fresh]);
    let tried = Tried::start(&security, &Operation::default()).await;
    refused(
        &tried,
        &[("authorization", "Bearer old-secret")],
        "EXPIRED_API_KEY",
    )
    .await;
    assert_eq!(
        call_with(&tried.plain(), GET_MODEL, "fresh-secret").await,
        IN
    );
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart() {
    let [a, b] = ["a", "b"].map(|id| entry(id, &[Scope::Admin]));
    let (_folder, security) = with_keys(std::slice::from_ref(&a));
    let file = security.api_keys.clone().expect("file");
    let tried = Tried::start(&security, &Operation::default()).await;
    let channel = tried.plain();
    assert_eq!(call_with(&channel, GET_MODEL, "a-secret").await, IN);
    assert_eq!(
        call_with(&channel, GET_MODEL, "b-secret").await,
        Code::Unauthenticated
    );
    std::fs::write(&file, lines(&[b])).expect("written");
    until(IN, async || {
        call_with(&channel, GET_MODEL, "b-secret").await
    })
    .await;
    let revoked = call_with(&channel, GET_MODEL, "a-secret").await;
    assert_eq!(
        revoked,
        Code::Unauthenticated,
        "on a connection that was there before"
    );
    // What cannot be read lets nobody new in and throws nobody out.
    std::fs::write(&file, format!("{}nonsense\n", lines(&[a]))).expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(
        call_with(&channel, GET_MODEL, "a-secret").await,
        Code::Unauthenticated
    );
    assert_eq!(call_with(&channel, GET_MODEL, "b-secret").await, IN);
    // An empty file is a good one: nobody is let in.
    std::fs::write(&file, "").expect("written");
    until(Code::Unauthenticated, async || {
        call_with(&channel, GET_MODEL, "b-secret").await
    })
    .await;
}

#[tokio::test]
async fn a_rate_above_the_quota_is_told_when_to_come_back() {
    let mut limited = entry("limited", &[Scope::Admin]);
    limited.requests_per_minute = Some(3);
    let (_folder, security) = with_keys(&[limited, entry("free", &[Scope::Admin])]);
    let tried = Tried::start(&security, &Operation::default()).await;
    let channel = tried.plain();
    for _ in 0..3 {
        assert_eq!(call_with(&channel, GET_MODEL, "limited-secret").await, IN);
    }
    let headers = [("authorization", "Bearer limited-secret")];
    let status = call(&channel, LIST_SAES, &headers)
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "RATE_QUOTA");
    let retry = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    let retry = retry.expect("when to come back").as_secs_f64();
    assert!((15.0..=20.0).contains(&retry), "{retry}");
    assert_eq!(call_with(&channel, GET_MODEL, "free-secret").await, IN);
}

#[tokio::test]
async fn reflection_running_counts_against_concurrency() {
    let mut one = entry("one", &[Scope::Admin]);
    one.concurrent_requests = Some(1);
    let (_folder, security) = with_keys(&[one]);
    let tried = Tried::start(&security, &Operation::default()).await;
    let channel = tried.plain();
    // Reflection answers for as long as its stream of requests is open.
    let (keep, requests) = tokio::sync::mpsc::channel(1);
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
    let value = "Bearer one-secret".parse().expect("value");
    request.metadata_mut().insert("authorization", value);
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
            channel.clone(),
        );
    let running = reflection
        .server_reflection_info(request)
        .await
        .expect("let in");
    let headers = [("authorization", "Bearer one-secret")];
    let status = call(&channel, GET_MODEL, &headers)
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "CONCURRENCY_QUOTA");
    assert!(status.get_details_retry_info().is_some());
    drop((keep, running));
    until(IN, async || {
        call_with(&channel, GET_MODEL, "one-secret").await
    })
    .await;
}

#[tokio::test]
async fn strangers_are_not_served_by_accident() {
    let operation = Operation::default();
    let open = Tried::on("0.0.0.0:0", &Security::default(), &operation).await;
    let error = open.err().expect("refused").to_string();
    assert!(error.contains("--allow-unauthenticated"), "{error}");
    let allowed = Security {
        allow_unauthenticated: true,
        ..Security::default()
    };
    assert!(Tried::on("0.0.0.0:0", &allowed, &operation).await.is_ok());
    let (_folder, keys) = with_keys(&[entry("a", &[Scope::Admin])]);
    assert!(Tried::on("0.0.0.0:0", &keys, &operation).await.is_ok());
}

#[tokio::test]
async fn files_that_are_no_keys_do_not_start() {
    for (text, blamed) in [("{}", "line 1"), ("\u{0}", "line 1"), ("[]", "line 1")] {
        let (_folder, security) = with_keys(&[]);
        std::fs::write(security.api_keys.as_ref().expect("file"), text).expect("written");
        let started = Tried::try_start(&security, &Operation::default()).await;
        let error = started.err().expect("refused").to_string();
        assert!(
            error.contains("--api-keys") && error.contains(blamed),
            "{error}"
        );
    }
    let missing = Security {
        api_keys: Some("/none/such".into()),
        ..Security::default()
    };
    let started = Tried::try_start(&missing, &Operation::default()).await;
    let error = started.err().expect("refused").to_string();
    assert!(error.contains("--api-keys: /none/such"), "{error}");
}
