//! The program itself, started and ended.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use serde_json::Value;

use crate::harness::Client;

/// A running `steer-registry`; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Process {
    /// Starts on a free port and waits for the line that names it.
    pub(crate) fn start(data: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut process = Self::spawn(data, environment, arguments);
        let mut lines = BufReader::new(process.child.stderr.take().expect("stderr")).lines();
        process.address = lines
            .by_ref()
            .map(|line| line.expect("line"))
            .find_map(|line| {
                line.strip_prefix("steer-registry listening on ")
                    .map(str::to_owned)
            })
            .expect("a line that names the address");
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        process
    }

    /// Starts it without waiting until it serves.
    pub(crate) fn spawn(data: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_steer-registry"))
            .args([
                "--data",
                &data.display().to_string(),
                "--listen",
                "127.0.0.1:0",
            ])
            .args(arguments)
            .env_remove("HF_TOKEN")
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        Self {
            child,
            address: String::new(),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(format!("http://{}", self.address))
            .await
            .expect("connect")
    }

    /// Kills it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("wait");
    }

    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        let wait = tokio::task::spawn_blocking(move || {
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .expect("kill");
            self.child.wait().expect("wait")
        });
        wait.await.expect("wait")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already after `terminate`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `steer-registry check --json` of a folder: whether all is well, and what it says.
pub(crate) fn check(
    data: &Path,
    environment: &[(&str, &str)],
    arguments: &[&str],
) -> (bool, Value) {
    let output = task(
        data,
        environment,
        &[arguments, &["check", "--json"]].concat(),
    );
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|_| panic!("no report: {output:?}"));
    (output.status.success(), report)
}

/// Runs the program on a folder until it ends by itself.
pub(crate) fn task(data: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_steer-registry"))
        .args(["--data", &data.display().to_string()])
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("run")
}
