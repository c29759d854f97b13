//! TLS and client certificates: who gets a connection.

use std::{fs, time::Duration};

use steering_proto::access::Scope;
use steering_service::{Operation, Security};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, transport::Channel};

use crate::{
    certs::{Authority, Issued, Odd},
    harness::{GET_MODEL, HEALTH, Tried, call, call_with, code, entry, until, with_keys, with_tls},
};

const IN: Code = Code::Unimplemented;

async fn start(security: &Security) -> Tried {
    Tried::start(security, &Operation::default()).await
}

async fn get_model(channel: &Channel) -> Code {
    code(call(channel, GET_MODEL, &[]).await)
}

/// A server with a certificate of `odd` kind, asked by a client that trusts its authority.
async fn with_server(odd: Odd) -> Code {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let tried = start(&with_tls(folder.path(), &authority.server(odd), None)).await;
    get_model(&tried.tls(&authority.pem(), None)).await
}

/// A server that asks for certificates of one authority, asked with this one.
async fn with_client(identity: impl FnOnce(&Authority) -> Option<Issued>) -> Code {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let server = authority.server(Odd::Nothing);
    let tried = start(&with_tls(folder.path(), &server, Some(&authority.pem()))).await;
    let identity = identity(&authority);
    get_model(&tried.tls(&authority.pem(), identity.as_ref())).await
}

#[tokio::test]
async fn a_good_certificate_is_taken() {
    assert_eq!(with_server(Odd::Nothing).await, IN);
}

#[tokio::test]
async fn an_expired_server_is_not_trusted() {
    assert_eq!(with_server(Odd::Expired).await, Code::Unavailable);
}

#[tokio::test]
async fn a_server_of_the_future_is_not_trusted() {
    assert_eq!(with_server(Odd::NotYetValid).await, Code::Unavailable);
}

#[tokio::test]
async fn a_server_of_another_name_is_not_trusted() {
    assert_eq!(with_server(Odd::OtherName).await, Code::Unavailable);
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let (ours, other) = (Authority::new("a"), Authority::new("a"));
    let folder = tempfile::tempdir().expect("folder");
    let tried = start(&with_tls(folder.path(), &ours.server(Odd::Nothing), None)).await;
    assert_eq!(
        get_model(&tried.tls(&other.pem(), None)).await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn plain_text_gets_nothing_from_tls() {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let tried = start(&with_tls(
        folder.path(),
        &authority.server(Odd::Nothing),
        None,
    ))
    .await;
    assert_ne!(get_model(&tried.plain()).await, IN);
    let mut tcp = TcpStream::connect(tried.address).await.expect("connected");
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("written");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection is closed");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn tls_gets_nothing_from_plain_text() {
    let tried = start(&Security::default()).await;
    let authority = Authority::new("a");
    assert_eq!(
        get_model(&tried.tls(&authority.pem(), None)).await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_clients_certificate_is_taken() {
    assert_eq!(with_client(|ca| Some(ca.client(Odd::Nothing))).await, IN);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    assert_eq!(with_client(|_| None).await, Code::Unavailable);
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let other = Authority::new("a").client(Odd::Nothing);
    assert_eq!(with_client(|_| Some(other)).await, Code::Unavailable);
}

#[tokio::test]
async fn an_expired_client_is_refused() {
    assert_eq!(
        with_client(|ca| Some(ca.client(Odd::Expired))).await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_client_of_the_future_is_refused() {
    assert_eq!(
        with_client(|ca| Some(ca.client(Odd::NotYetValid))).await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn a_servers_certificate_is_no_clients() {
    assert_eq!(
        with_client(|ca| Some(ca.server(Odd::Nothing))).await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn even_health_takes_a_client_certificate_on_the_main_port() {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let server = authority.server(Odd::Nothing);
    let tried = start(&with_tls(folder.path(), &server, Some(&authority.pem()))).await;
    let nobody = tried.tls(&authority.pem(), None);
    assert_eq!(code(call(&nobody, HEALTH, &[]).await), Code::Unavailable);
}

#[tokio::test]
async fn certificate_and_key_are_both_needed_where_both_are_asked_for() {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let (_keys, with_keys) = with_keys(&[entry("a", &[Scope::Admin])]);
    let server = authority.server(Odd::Nothing);
    let security = Security {
        api_keys: with_keys.api_keys,
        ..with_tls(folder.path(), &server, Some(&authority.pem()))
    };
    let tried = start(&security).await;
    let identity = authority.client(Odd::Nothing);
    let known = tried.tls(&authority.pem(), Some(&identity));
    assert_eq!(get_model(&known).await, Code::Unauthenticated);
    assert_eq!(call_with(&known, GET_MODEL, "a-secret").await, IN);
    let unknown = tried.tls(&authority.pem(), None);
    assert_eq!(
        call_with(&unknown, GET_MODEL, "a-secret").await,
        Code::Unavailable
    );
}

#[tokio::test]
async fn certificates_change_without_a_restart() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = tempfile::tempdir().expect("folder");
    let security = with_tls(folder.path(), &old.server(Odd::Nothing), None);
    let tried = start(&security).await;
    let before = tried.tls(&old.pem(), None);
    assert_eq!(get_model(&before).await, IN);
    // Half of a change: the key does not fit, and the old pair stays.
    let renewed = new.server(Odd::Nothing);
    fs::write(folder.path().join("tls.crt"), &renewed.cert).expect("written");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(get_model(&tried.tls(&old.pem(), None)).await, IN);
    fs::write(folder.path().join("tls.key"), &renewed.key).expect("written");
    until(IN, async || get_model(&tried.tls(&new.pem(), None)).await).await;
    assert_eq!(
        get_model(&tried.tls(&old.pem(), None)).await,
        Code::Unavailable
    );
    assert_eq!(get_model(&before).await, IN, "open connections go on");
}

#[tokio::test]
async fn a_client_authority_is_withdrawn_without_a_restart() {
    let (server, old, new) = (
        Authority::new("s"),
        Authority::new("old"),
        Authority::new("new"),
    );
    let folder = tempfile::tempdir().expect("folder");
    let certificate = server.server(Odd::Nothing);
    let tried = start(&with_tls(folder.path(), &certificate, Some(&old.pem()))).await;
    let identity = old.client(Odd::Nothing);
    assert_eq!(
        get_model(&tried.tls(&server.pem(), Some(&identity))).await,
        IN
    );
    fs::write(folder.path().join("ca.crt"), new.pem()).expect("written");
    until(Code::Unavailable, async || {
        get_model(&tried.tls(&server.pem(), Some(&identity))).await
    })
    .await;
}

#[tokio::test]
async fn silent_connections_hold_nobody_up() {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let tried = start(&with_tls(
        folder.path(),
        &authority.server(Odd::Nothing),
        None,
    ))
    .await;
    let mut silent = Vec::new();
    // More than may be in a handshake at once.
    for _ in 0..300 {
        silent.push(TcpStream::connect(tried.address).await.expect("connected"));
    }
    let channel = tried.tls(&authority.pem(), None);
    let answer = tokio::time::timeout(Duration::from_secs(5), get_model(&channel)).await;
    assert_eq!(answer.expect("in time"), IN);
}

#[tokio::test]
async fn files_that_are_no_certificates_do_not_start() {
    let (authority, folder) = (Authority::new("a"), tempfile::tempdir().expect("folder"));
    let good = authority.server(Odd::Nothing);
    let other = authority.server(Odd::Nothing);
    let issued = |cert: &str, key: &str| Issued {
        cert: cert.to_owned(),
        key: key.to_owned(),
    };
    for (server, client_ca, blamed) in [
        (issued("", &good.key), None, "--tls-cert"),
        (issued("nonsense", &good.key), None, "--tls-cert"),
        (issued(&good.key, &good.key), None, "--tls-cert"),
        (issued(&good.cert, ""), None, "--tls-key"),
        (issued(&good.cert, &good.cert), None, "--tls-key"),
        (issued(&good.cert, &other.key), None, "do not fit together"),
        (good.clone(), Some(""), "--tls-client-ca"),
        (good.clone(), Some("nonsense"), "--tls-client-ca"),
    ] {
        let security = with_tls(folder.path(), &server, client_ca);
        let started = Tried::try_start(&security, &Operation::default()).await;
        let error = started.err().expect("refused").to_string();
        assert!(error.contains(blamed), "{error}");
    }
}
