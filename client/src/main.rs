//! The `steer` command.

use std::process::ExitCode;

mod access;
mod cli;
mod columns;
mod commands;
mod demo;
mod failure;
mod output;
mod process;
mod progress;
mod report;
mod series;
mod services;
mod table;
mod views;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let cli = cli::Cli::read();
    match commands::run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
