//! The real binaries, found next to the test executable.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::Services;

/// Path of a binary of this workspace.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let folder = test.parent().and_then(|deps| deps.parent());
    let path = folder
        .expect("target folder")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.is_file(),
        "{} is missing; build the binaries of the same profile first: cargo build --release",
        path.display()
    );
    path
}

/// Runs `steer … --json` against the services and returns its document.
pub async fn steer(services: &Services, args: &[String]) -> Value {
    let output = Command::new(binary("steer"))
        .args(args)
        .args(["--json", "--worker", &services.worker.url])
        .args(["--registry", &services.registry.url])
        .output()
        .await
        .expect("steer runs");
    assert!(
        output.status.success(),
        "steer {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}
