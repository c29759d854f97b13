//! An S3 server of a test's own, which it may end.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// Not where connections go out from, so that none takes a port while the server is away.
const HOST: &str = "127.0.0.2";

/// SeaweedFS on a folder; killed when dropped.
pub(super) struct S3Server {
    weed: String,
    folder: TempDir,
    ports: Vec<u16>,
    child: Option<Child>,
}

impl S3Server {
    /// None where it is not installed; says so.
    pub(super) fn start() -> Option<Self> {
        let Ok(weed) = std::env::var("STEER_TEST_WEED") else {
            println!("not run: STEER_TEST_WEED names no S3 server (tests/backends/with.sh does)");
            return None;
        };
        let free = |port: &u16| TcpListener::bind((HOST, *port)).is_ok();
        // Its gRPC ports are 10,000 above.
        let ports = (31_500_u16..39_000).filter(|port| free(port) && free(&(port + 10_000)));
        let mut server = Self {
            weed,
            folder: tempfile::tempdir().expect("folder"),
            ports: ports.take(4).collect(),
            child: None,
        };
        server.restart();
        Some(server)
    }

    pub(super) fn address(&self) -> String {
        format!("{HOST}:{}", self.ports[3])
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill -9");
            child.wait().expect("wait");
        }
    }

    /// Starts it on what it has, with a bucket "test".
    pub(super) fn restart(&mut self) {
        let [master, volume, filer, s3] = self.ports[..] else {
            panic!("no ports");
        };
        let child = Command::new(&self.weed)
            .args([
                "-logtostderr=true",
                "server",
                &format!("-ip={HOST}"),
                &format!("-ip.bind={HOST}"),
            ])
            .arg(format!("-dir={}", self.folder.path().display()))
            .arg(format!("-master.port={master}"))
            .args([
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=256",
                "-volume.max=0",
            ])
            .arg(format!("-volume.port={volume}"))
            .args(["-filer", &format!("-filer.port={filer}")])
            .args([
                "-s3",
                &format!("-s3.port={s3}"),
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start");
        self.child = Some(child);
        for _ in 0..400 {
            std::thread::sleep(Duration::from_millis(100));
            let made = status(filer, "POST /buckets/test/");
            if matches!(made, Some(201 | 409)) && status(s3, "GET /test") == Some(403) {
                return;
            }
        }
        panic!("it does not start");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The status of an HTTP request without a body.
fn status(port: u16, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((HOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).ok()?;
    std::str::from_utf8(start.get(9..)?).ok()?.parse().ok()
}
