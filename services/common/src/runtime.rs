//! The threads that a service runs on.

use std::{io, time::Duration};

/// How long work on other threads may take to notice the end.
const LEFT_BEHIND_MAX: Duration = Duration::from_secs(1);

/// Runs a service to its end. Work that then still runs on other threads, such as loading
/// a model or converting an import, is left: tokio by itself would wait for it, however
/// long it takes.
///
/// # Errors
/// If no threads can be had.
pub fn run_to_end<T>(service: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(service);
    runtime.shutdown_timeout(LEFT_BEHIND_MAX);
    Ok(outcome)
}
