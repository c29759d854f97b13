//! Command line and environment.

use std::path::PathBuf;

/// Serves SAE features, their labels, and CAVs.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "steer-registry", version, about)]
pub struct Config {
    /// Folder that holds everything; created if need be.
    #[arg(long, env = "STEER_REGISTRY_DATA", value_name = "DIR", default_value_os_t = default_data())]
    pub data: PathBuf,

    /// Address to listen on, host:port.
    #[arg(
        long,
        env = "STEER_REGISTRY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50052"
    )]
    pub listen: String,

    /// Folder below which imports by path may read; repeatable. Without it
    /// any path may be read when listening on a loopback address, and none otherwise.
    #[arg(long = "import-root", value_name = "DIR")]
    pub import_roots: Vec<PathBuf>,

    /// What to log: a level, or filters such as "steering_registry=debug".
    #[arg(
        long,
        env = "STEER_LOG",
        value_name = "FILTER",
        default_value = "warn,steering_registry=info"
    )]
    pub log: String,
}

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
    }
}
