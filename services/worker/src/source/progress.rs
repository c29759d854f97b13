//! Telling a person how a download goes.

use std::{io::IsTerminal, sync::Arc};

use indicatif::{ProgressBar, ProgressStyle};

/// Listens to downloads. Implementations must not block.
pub trait Progress: Send + Sync {
    /// A file begins to arrive.
    fn start(&self, file: &str) -> Arc<dyn Transfer>;
}

/// Listens to the download of one file. Called from the downloading threads.
pub trait Transfer: Send + Sync {
    /// So many bytes are here, of so many.
    fn advance(&self, bytes: u64, total: u64);
    /// The file is whole.
    fn finish(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str) -> Arc<dyn Transfer> {
        Arc::new(Self)
    }
}

impl Transfer for Silent {
    fn advance(&self, _: u64, _: u64) {}

    fn finish(&self) {}
}

/// Bars on a terminal, lines in the log elsewhere.
pub fn terminal_progress() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bars)
    } else {
        Box::new(Logged)
    }
}

struct Bars;

struct Bar(ProgressBar);

impl Progress for Bars {
    fn start(&self, file: &str) -> Arc<dyn Transfer> {
        let bar = ProgressBar::new(0);
        let template = "{msg:40} {bar:30} {bytes:>10} / {total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(file.to_owned());
        Arc::new(Bar(bar))
    }
}

impl Transfer for Bar {
    fn advance(&self, bytes: u64, total: u64) {
        self.0.set_length(total.max(bytes));
        self.0.set_position(bytes);
    }

    fn finish(&self) {
        self.0.finish();
    }
}

struct Logged;

struct LoggedFile(String);

impl Progress for Logged {
    fn start(&self, file: &str) -> Arc<dyn Transfer> {
        tracing::info!(file, "downloading");
        Arc::new(LoggedFile(file.to_owned()))
    }
}

impl Transfer for LoggedFile {
    fn advance(&self, _: u64, _: u64) {}

    fn finish(&self) {
        tracing::info!(file = self.0, "downloaded");
    }
}
