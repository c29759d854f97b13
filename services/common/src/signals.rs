//! What ends a service.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Operation;

/// Resolves at SIGTERM or SIGINT, and on Linux when the program that started this one has
/// ended, if it said that it would (`steer up`). To be called on the main thread.
///
/// # Errors
/// If signals cannot be listened to.
pub fn stop_signal(operation: &Operation) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let alone = match operation.stop_with {
        Some(parent) => !follows(parent)?,
        None => false,
    };
    Ok(async move {
        if alone {
            return;
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Asks for SIGTERM when the parent ends, even if it is killed. Whether it is still there.
#[cfg(target_os = "linux")]
fn follows(parent: u32) -> io::Result<bool> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before it was followed.
    let now = getppid().map(Pid::as_raw_pid);
    Ok(now.is_some_and(|now| u32::try_from(now) == Ok(parent)))
}

#[cfg(not(target_os = "linux"))]
fn follows(_: u32) -> io::Result<bool> {
    Ok(true)
}
