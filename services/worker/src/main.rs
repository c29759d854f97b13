//! `steer-worker`: serves one language model with per-request steering.

use std::process::ExitCode;

use steering_service::{logging, settings, stop_signal};
use steering_worker::{Config, WorkerError};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let config: Config = settings::load();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config) -> Result<(), WorkerError> {
    logging::init(&config.log, config.operation.log_format).map_err(WorkerError::Config)?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|e| WorkerError::Config(format!("--listen: cannot listen on {listen}: {e}")))?;
    steering_worker::run(config, listener, stop_signal()?).await
}
