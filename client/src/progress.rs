//! Progress on a terminal; silent elsewhere.

use std::{sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use steering_client::{files::OnBytes, v1};

const TICK: Duration = Duration::from_millis(100);

/// A spinner with a message.
pub(crate) fn spinner(message: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.into());
    bar.enable_steady_tick(TICK);
    bar
}

/// A bar over bytes.
pub(crate) fn bytes(total: u64, message: &'static str) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    ProgressBar::new(total)
        .with_style(style(template))
        .with_message(message)
}

/// A bar over texts.
pub(crate) fn texts(total: u64, message: &'static str) -> ProgressBar {
    let template = "{msg} {wide_bar} {pos}/{len} texts, {per_sec}, {eta} left";
    ProgressBar::new(total)
        .with_style(style(template))
        .with_message(message)
}

/// A bar over tokens; how many there can be becomes known later.
pub(crate) fn tokens(message: &'static str) -> ProgressBar {
    ProgressBar::no_length()
        .with_style(style("{msg} {wide_bar} {pos}/{len} tokens, {per_sec}"))
        .with_message(message)
}

/// Counts bytes on a bar.
pub(crate) fn on_bytes(bar: &ProgressBar) -> OnBytes {
    let bar = bar.clone();
    Arc::new(move |bytes| bar.inc(bytes))
}

/// Progress of an import, stage by stage.
#[derive(Debug)]
pub(crate) struct Stages {
    bar: ProgressBar,
    stage: String,
}

impl Stages {
    pub(crate) fn start() -> Self {
        let bar = spinner("starting");
        let stage = String::new();
        Self { bar, stage }
    }

    pub(crate) fn update(&mut self, progress: &v1::ImportProgress) {
        if self.stage != progress.stage {
            self.stage.clone_from(&progress.stage);
            self.bar.reset();
            self.bar.set_message(progress.stage.clone());
            self.bar.set_style(style(if progress.total > 0 {
                "{msg:12} {wide_bar} {percent}%, {per_sec}, {eta} left"
            } else {
                "{spinner} {msg:12} {human_pos}, {per_sec}"
            }));
        }
        if progress.total > 0 {
            self.bar.set_length(progress.total);
        }
        self.bar.set_position(progress.done);
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_the_stream() {
        let mut stages = Stages::start();
        for (stage, done, total) in [("reading", 5, 0), ("storing", 1, 4), ("storing", 4, 4)] {
            let stage = stage.to_owned();
            stages.update(&v1::ImportProgress { stage, done, total });
        }
        assert_eq!(stages.bar.length(), Some(4));
        assert_eq!(stages.bar.position(), 4);
        stages.finish();
    }
}
