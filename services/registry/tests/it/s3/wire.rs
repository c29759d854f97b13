//! What lies between a registry and its S3 server: a wire that counts, lies, and is cut.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Forwards connections to a server.
pub(super) struct Wire {
    pub(super) address: String,
    state: Arc<State>,
    cut: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// Bytes that came from the server.
    bytes: AtomicU64,
    /// Change one bit of the next long answer.
    lie: AtomicBool,
}

impl Wire {
    /// A wire to `host:port`.
    pub(super) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let state = Arc::new(State::default());
        let (cut, is_cut) = watch::channel(false);
        let (server, shared) = (server.to_owned(), Arc::clone(&state));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, shared, is_cut) =
                    (server.clone(), Arc::clone(&shared), is_cut.clone());
                tokio::spawn(forward(client, server, shared, is_cut));
            }
        });
        Self {
            address,
            state,
            cut,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::SeqCst)
    }

    pub(super) fn lie_once(&self) {
        self.state.lie.store(true, Ordering::SeqCst);
    }

    /// Nothing gets through any more, or all does again.
    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn forward(
    mut client: TcpStream,
    server: String,
    state: Arc<State>,
    mut cut: watch::Receiver<bool>,
) {
    if *cut.borrow() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
            state.bytes.fetch_add(len as u64, Ordering::SeqCst);
            if len > 8 << 10 && state.lie.swap(false, Ordering::SeqCst) {
                buffer[len - 1] ^= 1;
            }
            if to_client.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
        _ = cut.wait_for(|cut| *cut) => {}
    }
}
