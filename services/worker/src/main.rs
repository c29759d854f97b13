//! `steer-worker`: serves one language model with per-request steering.

use std::process::ExitCode;

use steering_service::{logging, run_to_end, settings, stop_signal};
use steering_worker::{Config, WorkerError};
use tokio::net::TcpListener;

/// Every step needs the same large buffers again. The system's allocator would give them
/// back and get them as pages to be cleared anew: a tenth of the time of a large batch.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = settings::load();
    let served = run_to_end(serve(config)).map_err(WorkerError::from);
    match served.flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), WorkerError> {
    // Before anything that takes time: a signal that comes early is an orderly end as well.
    let stop = stop_signal(&config.operation)?;
    logging::init(&config.log, config.operation.log_format).map_err(WorkerError::Config)?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|e| WorkerError::Config(format!("--listen: cannot listen on {listen}: {e}")))?;
    steering_worker::run(config, listener, stop).await
}
