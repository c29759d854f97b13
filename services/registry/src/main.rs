//! `steer-registry`: parses the command line, starts logging, runs until told to stop.

use std::process::ExitCode;

use steering_registry::{Config, Task};
use steering_service::{logging, run_to_end, settings, stop_signal};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let config: Config = settings::load();
    let ended = match config.task.clone() {
        Some(task) => run_to_end(perform(task, config)),
        None => run_to_end(serve(config)),
    };
    match ended.map_err(|error| error.to_string()).flatten() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("steer-registry: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(task: Task, config: Config) -> Result<ExitCode, String> {
    logging::init(&config.log, config.operation.log_format)?;
    match steering_registry::perform(task, &config).await {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(error.to_string()),
    }
}

async fn serve(config: Config) -> Result<ExitCode, String> {
    // Before anything that takes time: a signal that comes early is an orderly end as well.
    let stop = stop_signal(&config.operation)
        .map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
    logging::init(&config.log, config.operation.log_format)?;
    let listener = TcpListener::bind(&config.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    let ended = steering_registry::run(config, listener, stop).await;
    ended
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| error.to_string())
}
