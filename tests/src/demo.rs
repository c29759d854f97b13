//! The demo, served by the real binaries.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::binaries::binary;

/// Longest wait for something that takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The demo's folder.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

/// The real `steer`, which finds the demo.
pub fn steer() -> Command {
    let mut steer = Command::new(binary("steer"));
    steer
        .env("STEER_DEMO_DIR", demo())
        .env_remove("STEER_WORKER_MODEL")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    steer
}

/// `steer up --demo` on free ports.
#[derive(Debug)]
pub struct Up {
    child: Child,
    /// URL of the worker.
    pub worker: String,
    /// URL of the registry.
    pub registry: String,
}

impl Up {
    /// Starts both and waits until they are ready.
    pub async fn start() -> Self {
        let mut child = steer()
            .args(["up", "--demo", "--json", "--dtype", "f32"])
            .args(["--worker-listen", "127.0.0.1:0"])
            .args(["--registry-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("steer up");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.as_mut().expect("piped"));
        let read = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        read.expect("ready in time").expect("read");
        let ready: Value = serde_json::from_str(&line).expect("a document");
        let url = |name: &str| ready[name]["url"].as_str().expect("a URL").to_owned();
        Self {
            worker: url("worker"),
            registry: url("registry"),
            child,
        }
    }

    /// As Ctrl-C does: killed outright, it would leave its services behind.
    pub async fn stop(mut self) {
        let id = self.child.id().expect("it runs").to_string();
        let told = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(told.expect("kill").success());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("stops in time").expect("waited for");
        assert_eq!(status.code(), Some(0));
    }

    /// Runs `steer … --json` and returns its document.
    pub async fn json(&self, args: &[&str]) -> Value {
        let output = steer()
            .args(args)
            .args(["--json", "--worker", &self.worker])
            .args(["--registry", &self.registry])
            .output()
            .await
            .expect("steer runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "steer {args:?}: {stderr}");
        serde_json::from_slice(&output.stdout).expect("one document")
    }
}
