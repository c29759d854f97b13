//! `steer-registry`: parses the command line, starts logging, runs until told to stop.

use std::process::ExitCode;

use steering_registry::Config;
use steering_service::{logging, run_to_end, settings, stop_signal};
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let config: Config = settings::load();
    let served = run_to_end(serve(config)).map_err(|error| error.to_string());
    match served.flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steer-registry: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), String> {
    // Before anything that takes time: a signal that comes early is an orderly end as well.
    let stop = stop_signal(&config.operation)
        .map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
    logging::init(&config.log, config.operation.log_format)?;
    let listener = TcpListener::bind(&config.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    let ended = steering_registry::run(config, listener, stop).await;
    ended.map_err(|error| error.to_string())
}
