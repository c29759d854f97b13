//! Options that say who asks and whom to trust.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Args;
use steering_client::{ApiKey, Credentials};

/// An API key for all requests. Only from the environment or a file: others can read a
/// command line.
const API_KEY: &str = "STEER_API_KEY";

/// Who asks, and whom to trust.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Security (https:// URLs; API keys also in STEER_API_KEY)")]
pub(crate) struct AccessArgs {
    /// File with the API key.
    #[arg(long, global = true, value_name = "FILE", env = "STEER_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Trust these certificate authorities (PEM) instead of the system's.
    #[arg(long, global = true, value_name = "FILE", env = "STEER_CA_CERT")]
    ca_cert: Option<PathBuf>,
    /// Certificate (PEM) to show to services that ask for one.
    #[arg(long, global = true, value_name = "FILE", env = "STEER_CLIENT_CERT")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, value_name = "FILE", env = "STEER_CLIENT_KEY")]
    client_key: Option<PathBuf>,
}

impl AccessArgs {
    /// Reads the files.
    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        let read = |path: &Option<PathBuf>, option: &str| {
            path.as_ref()
                .map(|path| fs::read(path).with_context(|| format!("{option} {}", path.display())))
                .transpose()
        };
        let identity = match (
            read(&self.client_cert, "--client-cert")?,
            read(&self.client_key, "--client-key")?,
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => anyhow::bail!("--client-cert and --client-key belong together"),
        };
        Ok(Credentials {
            api_key: self.api_key()?,
            ca_cert: read(&self.ca_cert, "--ca-cert")?,
            identity,
        })
    }

    fn api_key(&self) -> anyhow::Result<Option<ApiKey>> {
        let text = match &self.api_key_file {
            Some(path) => fs::read_to_string(path)
                .with_context(|| format!("--api-key-file {}", path.display()))?,
            None => match std::env::var(API_KEY) {
                Ok(text) if !text.is_empty() => text,
                _ => return Ok(None),
            },
        };
        Ok(Some(ApiKey::new(&text)?))
    }
}
