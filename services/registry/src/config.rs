//! Command line and environment.

use std::{fmt, path::PathBuf};

use steering_service::{Operation, Security};

use crate::{import::access::hub_entry, registry::KEEP_DELETED_DAYS};

/// Serves SAE features, their labels, and CAVs.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "steer-registry", version, about, after_help = EXAMPLES)]
#[command(disable_help_subcommand = true)]
pub struct Config {
    /// What to do; without it, serve.
    #[command(subcommand)]
    pub task: Option<Task>,

    /// Folder that holds everything; created if need be.
    #[arg(long, env = "STEER_REGISTRY_DATA", value_name = "DIR", default_value_os_t = default_data(), global = true)]
    pub data: PathBuf,

    /// PostgreSQL database for SAEs, labels and CAVs, which several registries may share:
    /// postgres://USER:PASSWORD@HOST:PORT/NAME?sslmode=verify-full. Without it they are in a
    /// file in the data folder. A secret: give it by the environment or in the --config file.
    #[arg(
        long,
        env = "STEER_REGISTRY_DATABASE",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database: Option<DatabaseUrl>,

    /// Most connections to the database of --database.
    #[arg(
        long,
        env = "STEER_REGISTRY_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value_t = DATABASE_CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(2..=1000)
    )]
    pub database_connections: u32,

    /// Where directions are kept: s3://BUCKET/PREFIX, with credentials and endpoint from
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and AWS_ALLOW_HTTP
    /// [default: the folder "objects" of --data].
    #[arg(
        long,
        env = "STEER_REGISTRY_OBJECTS",
        value_name = "URL",
        global = true
    )]
    pub objects: Option<String>,

    /// Folder for what was read of --objects; one process's own [default: the folder "cache"
    /// of --data].
    #[arg(long, env = "STEER_REGISTRY_OBJECT_CACHE", value_name = "DIR")]
    pub object_cache: Option<PathBuf>,

    /// Bytes that this folder may take. Whole SAEs are read (similar features, encoding) only
    /// if they fit.
    #[arg(
        long,
        env = "STEER_REGISTRY_OBJECT_CACHE_BYTES",
        value_name = "N",
        default_value_t = 8 << 30
    )]
    pub object_cache_bytes: u64,

    /// Address to listen on, host:port.
    #[arg(
        long,
        env = "STEER_REGISTRY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052"
    )]
    pub listen: String,

    /// Folder below which imports by path may read; repeatable. Without it
    /// any path may be read when listening on a loopback address without keys or client
    /// certificates, and none otherwise.
    #[arg(
        long = "import-root",
        env = "STEER_REGISTRY_IMPORT_ROOT",
        value_name = "DIR",
        value_delimiter = ','
    )]
    pub import_roots: Vec<PathBuf>,

    /// Hub repositories that may be imported, as "owner/name" or "owner/*"; repeatable.
    /// Without it any repository when listening on a loopback address without keys or client
    /// certificates, and none otherwise.
    #[arg(
        long = "hub-allow",
        env = "STEER_REGISTRY_HUB_ALLOW",
        value_name = "REPO",
        value_parser = hub_entry,
        value_delimiter = ','
    )]
    pub hub_allow: Vec<String>,

    /// Days for which deleted SAEs and CAVs can be brought back; 0 = not at all. After that they
    /// are purged, at the start and every six hours.
    #[arg(
        long,
        env = "STEER_REGISTRY_KEEP_DELETED_DAYS",
        value_name = "N",
        default_value_t = KEEP_DELETED_DAYS
    )]
    pub keep_deleted_days: u32,

    /// What to log: a level, or filters such as "steering_registry=debug" or
    /// "info,steer::request=off".
    #[arg(
        long,
        env = "STEER_LOG",
        value_name = "FILTER",
        default_value = "warn,steering_registry=info,steering_service=info,steer=info"
    )]
    pub log: String,

    #[command(flatten)]
    #[allow(missing_docs)] // clap would take it for the program's description
    pub security: Security,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub operation: Operation,
}

/// What to do instead of serving.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Task {
    /// Read everything that is stored and verify it, also while a registry serves it. Exit
    /// code 1 if something is wrong.
    Check {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Copy everything into a new folder, which `steer-registry --data` serves, also while a
    /// registry serves the original; and verify the copy.
    Backup {
        /// The new folder.
        #[arg(value_name = "TO_DIR")]
        to: PathBuf,
    },
}

/// Default of `--database-connections`.
pub const DATABASE_CONNECTIONS: u32 = 16;

/// The URL of a database; its password is not shown.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// All of it.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

const EXAMPLES: &str = "Every flag can also be set in a TOML file (--config), as `import-root = [\"/saes\"]`.

Examples:
  steer-registry
  steer-registry --data ./registry --import-root ./saes --hub-allow 'google/*'
  STEER_REGISTRY_DATABASE=postgres://steer@db/steer steer-registry
  steer-registry --listen 0.0.0.0:50052 --api-keys keys.jsonl --tls-cert tls.crt --tls-key tls.key \\
      --health-listen 0.0.0.0:8082
  steer-registry --data ./registry --objects s3://bucket/registry
  steer-registry check --data ./registry
  steer-registry backup --data ./registry /backups/monday";

/// `$XDG_DATA_HOME/steer/registry`, else `~/.local/share/steer/registry`.
fn default_data() -> PathBuf {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_default()
        .join("steer/registry")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn defaults_and_repeated_roots() {
        let config = Config::try_parse_from([
            "steer-registry",
            "--import-root",
            "/a",
            "--import-root",
            "/b",
        ])
        .expect("config");
        assert_eq!(
            config.import_roots,
            [PathBuf::from("/a"), PathBuf::from("/b")]
        );
        assert!(
            config.data.ends_with("steer/registry"),
            "{}",
            config.data.display()
        );
        assert!(Config::try_parse_from(["steer-registry", "--unknown"]).is_err());
        let url = "postgres://steer:hunter2@db/steer";
        let config = Config::try_parse_from(["steer-registry", "--database", url]).expect("config");
        assert_eq!(config.database.as_ref().map(DatabaseUrl::secret), Some(url));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
