//! Child processes: found, started, their output prefixed, stopped in bounded time.

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::failure::{Failure, hinted};

/// How long a process may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the last lines of a process that has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Lines shown of a process that failed.
const TAIL_LINES: usize = 15;

/// Settings for services that are alone on their machine: two of them would want the
/// same port, and callers from elsewhere are not expected.
const NOT_INHERITED: [&str; 5] = [
    "STEER_CONFIG",
    "STEER_HEALTH_LISTEN",
    "STEER_TLS_CERT",
    "STEER_TLS_CLIENT_CA",
    "STEER_TLS_KEY",
];

/// Shows one line of a child's output.
pub(crate) type Show = Arc<dyn Fn(&str) + Send + Sync>;

type Tail = Arc<Mutex<VecDeque<String>>>;

/// A running service.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    tail: Tail,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a program. What it writes is shown line by line behind its name.
    pub(crate) fn start(
        name: &'static str,
        program: &str,
        args: &[OsString],
        show: &Show,
    ) -> anyhow::Result<Self> {
        let path = find_program(program)?;
        tracing::debug!(?path, ?args, "starting");
        let mut command = Command::new(&path);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        // Whatever becomes of us, even SIGKILL: no service is left behind.
        command.env("STEER_STOP_WITH", std::process::id().to_string());
        // Ctrl-C is for us: we stop the children, in order and in bounded time.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let tail = Tail::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(tokio::spawn(relay(
                stdout,
                name,
                tail.clone(),
                show.clone(),
            )));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(tokio::spawn(relay(
                stderr,
                name,
                tail.clone(),
                show.clone(),
            )));
        }
        Ok(Self {
            name,
            child,
            tail,
            readers,
        })
    }

    /// The process id, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the process ends, which it should not: the error says how it did,
    /// with the last it wrote.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        let status = self.child.wait().await;
        for reader in self.readers.drain(..) {
            // A grandchild may hold the pipe open; what came so far will do.
            let _ = timeout(DRAIN_TIMEOUT, reader).await;
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        Failure {
            message: format!("steer-{} {}", self.name, how(&status)),
            details: tail.iter().cloned().collect(),
            hints: Vec::new(),
        }
        .into()
    }

    /// Stops the process: asks, waits, kills.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            // It may have ended in this moment.
            let _ = self.child.kill().await;
        }
        for reader in self.readers.drain(..) {
            let _ = timeout(DRAIN_TIMEOUT, reader).await;
        }
    }

    #[cfg(unix)]
    fn terminate(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended in this moment.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    #[cfg(not(unix))]
    fn terminate(&mut self) {
        let _ = self.child.start_kill();
    }
}

fn how(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("stopped by itself ({status})"),
        Err(error) => format!("is lost: {error}"),
    }
}

async fn relay(output: impl AsyncRead + Unpin, name: &'static str, tail: Tail, show: Show) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while let Ok(1..) = output.read_until(b'\n', &mut bytes).await {
        // Some loggers write colours whether or not anybody can see them.
        let line = String::from_utf8_lossy(&bytes);
        let line = console::strip_ansi_codes(line.trim_end()).into_owned();
        bytes.clear();
        show(&format!("{name:8} | {line}"));
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

/// A program next to this one, else on the `PATH`.
fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    let here = env::current_exe().ok();
    let sibling = here.and_then(|exe| exe.parent().map(|folder| folder.join(&file)));
    let on_path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&on_path).map(|folder| folder.join(&file));
    sibling
        .into_iter()
        .chain(on_path)
        .find(|path| path.is_file())
        .ok_or_else(|| {
            hinted(
                format!("{name} is neither next to `steer` nor on the PATH"),
                "build all programs with `cargo build --release`",
            )
        })
}

/// What a person or a system sends to end this program.
#[derive(Debug)]
pub(crate) struct StopSignal {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
}

impl StopSignal {
    #[cfg(unix)]
    pub(crate) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        Ok(Self { signals })
    }

    #[cfg(unix)]
    pub(crate) async fn received(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(crate) async fn received(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
