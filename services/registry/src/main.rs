//! `steer-registry`: parses the command line, starts logging, runs until told to stop.

use std::process::ExitCode;

use steering_registry::Config;
use steering_service::{logging, run_to_end, settings, stop_signal};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let config: Config = settings::load();
    let ended = run_to_end(run(config)).map_err(|error| error.to_string());
    match ended.flatten() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("steer-registry: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Performs the task that is asked for, or serves until told to stop. False where a task
/// has found something amiss.
async fn run(config: Config) -> Result<bool, String> {
    logging::init(&config.log, config.operation.log_format)?;
    if let Some(task) = config.task.clone() {
        let performed = steering_registry::perform(task, &config).await;
        return performed.map_err(|error| error.to_string());
    }
    // Before anything that takes time: a signal that comes early is an orderly end as well.
    let stop = stop_signal(&config.operation)
        .map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
    let listener = TcpListener::bind(&config.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    let served = steering_registry::run(config, listener, stop).await;
    served.map(|()| true).map_err(|error| error.to_string())
}
