//! `steer-registry`: parses the command line, starts logging, runs until told to stop.

use std::process::ExitCode;

use steering_registry::Config;
use steering_service::{logging, settings, stop_signal};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = settings::load();
    if let Err(error) = logging::init(&config.log, config.operation.log_format) {
        return fail(&error);
    }
    if let Some(task) = config.task.clone() {
        return match steering_registry::perform(task, &config).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => fail(&error.to_string()),
        };
    }
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => return fail(&format!("cannot wait for SIGTERM: {error}")),
    };
    let listener = match TcpListener::bind(&config.listen).await {
        Ok(listener) => listener,
        Err(error) => return fail(&format!("cannot listen on {}: {error}", config.listen)),
    };
    match steering_registry::run(config, listener, stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("steer-registry: {message}");
    ExitCode::FAILURE
}
