//! TLS: certificates that can change while the service runs, and bounded handshakes.

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpStream, sync::mpsc, task::AbortHandle, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::transport::server::TcpIncoming;

use crate::{
    config::Security,
    watch::{Latest, follow},
};

/// How long a client has to complete a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way; for one more, the oldest is given up.
const HANDSHAKES_MAX: usize = 256;
/// Pause after a failed `accept`, which fails again at once while files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// TLS as configured, following its files. None without certificates.
///
/// # Errors
/// If a file cannot be used; the message names its flag.
pub(crate) fn configured(security: &Security) -> Result<Option<Latest<ServerConfig>>, String> {
    let Security {
        tls_cert: Some(cert),
        tls_key: Some(key),
        tls_client_ca: client_ca,
        ..
    } = security
    else {
        return Ok(None);
    };
    let mut paths: Vec<PathBuf> = vec![cert.clone(), key.clone()];
    paths.extend(client_ca.clone());
    follow(paths, |files| match files {
        [cert, key] => server_config(cert, key, None),
        [cert, key, client_ca] => server_config(cert, key, Some(client_ca)),
        _ => Err("TLS takes two or three files".to_owned()),
    })
    .map(Some)
}

/// Connections that have completed their handshake. Slow or silent ones hold up nobody
/// else, however many they are; dropping the stream stops listening.
pub(crate) fn accept(
    mut incoming: TcpIncoming,
    config: Latest<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    // Handshakes take half of the places at most; the others are for those that are done.
    let (sender, accepted) = mpsc::channel(2 * HANDSHAKES_MAX);
    tokio::spawn(async move {
        let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
        while let Ok(place) = sender.clone().reserve_owned().await {
            let tcp = tokio::select! {
                next = incoming.next() => next,
                () = sender.closed() => return,
            };
            let tcp = match tcp {
                Some(Ok(tcp)) => tcp,
                Some(Err(error)) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                None => return,
            };
            let acceptor = TlsAcceptor::from(config.borrow().clone());
            handshakes.retain(|handshake| !handshake.is_finished());
            if handshakes.len() >= HANDSHAKES_MAX
                && let Some(oldest) = handshakes.pop_front()
            {
                tracing::debug!("TLS handshake given up for a newer one");
                oldest.abort();
            }
            let handshake = tokio::spawn(async move {
                match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
                    Ok(Ok(tls)) => drop(place.send(Ok(tls))),
                    Ok(Err(error)) => tracing::debug!("TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                }
            });
            handshakes.push_back(handshake.abort_handle());
        }
    });
    ReceiverStream::new(accepted)
}

fn server_config(
    cert: &[u8],
    key: &[u8],
    client_ca: Option<&[u8]>,
) -> Result<ServerConfig, String> {
    let chain = certificates(cert, "--tls-cert")?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("--tls-key: holds no private key in PEM: {error}"))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(pem, "--tls-client-ca")? {
                roots
                    .add(root)
                    .map_err(|error| format!("--tls-client-ca: {error}"))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("--tls-client-ca: {error}"))?,
            )
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("--tls-cert and --tls-key do not fit together: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8], flag: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| format!("{flag}: is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err(format!("{flag}: holds no certificate in PEM"));
    }
    Ok(chain)
}
