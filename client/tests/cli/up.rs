//! `steer up` with stand-ins for both services.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

use crate::{fake_service::ARGS, mock::command};

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with `steer` and stand-ins next to it, as after an installation.
fn installation() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("tempdir");
    fs::copy(env!("CARGO_BIN_EXE_steer"), folder.path().join("steer")).expect("copy");
    let test = std::env::current_exe().expect("this test");
    let script = format!(
        "#!/bin/sh\nexport {ARGS}=\"$*\"\nexec {} --exact fake_service::serve_if_asked_to --nocapture\n",
        test.display()
    );
    for name in ["steer-worker", "steer-registry"] {
        let path = folder.path().join(name);
        fs::write(&path, &script).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    folder
}

fn up(folder: &Path, model: &str) -> Command {
    let mut steer = command(folder.join("steer").to_str().expect("UTF-8"));
    let free = "127.0.0.1:0";
    steer
        .args(["up", "--model", model, "--json"])
        .args(["--worker-listen", free, "--registry-listen", free])
        .arg("--data")
        .arg(folder.join("data"));
    steer
}

/// Waits for the document that says that both services are ready.
async fn ready(child: &mut Child) -> Value {
    let mut stdout = BufReader::new(child.stdout.as_mut().expect("piped"));
    let mut line = String::new();
    timeout(PATIENCE, stdout.read_line(&mut line))
        .await
        .expect("in time")
        .expect("read");
    serde_json::from_str(&line).expect("a document")
}

fn pid(id: Option<u64>) -> Pid {
    id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
        .expect("a process id")
}

/// Whether a process is there, if only to be reaped.
fn runs(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_run_until_asked_to_stop() {
    let folder = installation();
    let mut steer = up(folder.path(), "tiny model");
    steer.args(["--dtype", "f32", "--worker-arg=--max-sequences=8"]);
    let mut child = steer.spawn().expect("steer starts");
    let document = ready(&mut child).await;
    let pids = ["worker", "registry"].map(|name| pid(document[name]["pid"].as_u64()));
    assert!(pids.into_iter().all(runs));
    let url = document["worker"]["url"].as_str().expect("a URL");
    let mut status = command(env!("CARGO_BIN_EXE_steer"));
    status.args(["status", "--json", "--worker", url]);
    let status = status.output().await.expect("status");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["worker"]["health"], "serving");

    kill_process(pid(child.id().map(u64::from)), Signal::TERM).expect("signal");
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("in time");
    let output = output.expect("steer ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!pids.into_iter().any(runs), "a service was left behind");
    let address = url.trim_start_matches("http://");
    let worker = format!(
        "worker   | arguments: --listen {address} --model tiny model --dtype f32 --max-sequences=8"
    );
    assert!(stderr.contains(&worker), "{stderr}");
    assert!(
        stderr.contains("registry | arguments: --listen 127.0.0.1:"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_to_start_is_told_at_once() {
    let folder = installation();
    let output = up(folder.path(), "absent").output();
    let output = timeout(PATIENCE, output)
        .await
        .expect("in time")
        .expect("steer ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: steer-worker stopped by itself (exit status: 3)"),
        "{stderr}"
    );
    assert!(stderr.contains("\n  error: no such model"), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_later_takes_the_other_along() {
    let folder = installation();
    let mut child = up(folder.path(), "short-lived")
        .spawn()
        .expect("steer starts");
    let document = ready(&mut child).await;
    let registry = pid(document["registry"]["pid"].as_u64());
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("in time");
    let output = output.expect("steer ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: steer-worker stopped by itself"),
        "{stderr}"
    );
    assert!(!runs(registry), "the registry was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_refused_before_anything_starts() {
    let folder = installation();
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut steer = command(folder.path().join("steer").to_str().expect("UTF-8"));
    steer.args(["up", "--model", "tiny", "--worker-listen", &address]);
    let output = steer.output().await.expect("steer ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("cannot listen on {address}")),
        "{stderr}"
    );
    assert!(stderr.contains("--worker-listen"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_programs_are_named() {
    let folder = installation();
    fs::remove_file(folder.path().join("steer-registry")).expect("remove");
    let mut steer = up(folder.path(), "tiny");
    let output = steer.env("PATH", "").output().await.expect("steer ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("steer-registry is neither next to"),
        "{stderr}"
    );
    assert!(stderr.contains("cargo build --release"), "{stderr}");
}
