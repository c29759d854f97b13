//! Flags that both services have.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Who may connect, and what they may do.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub struct Security {
    /// Serve TLS with this certificate chain (PEM). Changed files are used for new
    /// connections without a restart.
    #[arg(
        long,
        env = "STEER_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM).
    #[arg(
        long,
        env = "STEER_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Take only clients with a certificate from one of these authorities (PEM).
    #[arg(
        long,
        env = "STEER_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_client_ca: Option<PathBuf>,

    /// Take only requests with one of these API keys: JSON lines, made by `steer keys new`,
    /// read again when the file changes.
    #[arg(long, env = "STEER_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,

    /// Listen on more than the loopback address without API keys or client certificates.
    #[arg(long, env = "STEER_ALLOW_UNAUTHENTICATED")]
    pub allow_unauthenticated: bool,
}

impl Security {
    /// Whether callers have to show who they are.
    pub fn authenticates(&self) -> bool {
        self.api_keys.is_some() || self.tls_client_ca.is_some()
    }

    /// Refuses to serve everybody by accident.
    ///
    /// # Errors
    /// If strangers could reach `address` and nothing stops them.
    pub fn check_exposure(&self, address: SocketAddr) -> Result<(), String> {
        // On a dual-stack socket, ::ffff:127.0.0.1 is the loopback address as well.
        if address.ip().to_canonical().is_loopback()
            || self.authenticates()
            || self.allow_unauthenticated
        {
            return Ok(());
        }
        Err(format!(
            "--listen: {address} can be reached from other machines, and nothing says who may call. \
             Ask for API keys (--api-keys FILE) or client certificates (--tls-cert, --tls-key, \
             --tls-client-ca), listen on 127.0.0.1, or allow everybody with --allow-unauthenticated"
        ))
    }
}

/// How the service is run.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Operation")]
pub struct Operation {
    /// Address for GET /livez, /readyz, /metrics and gRPC health, without TLS or keys
    /// [default: none].
    #[arg(long, env = "STEER_HEALTH_LISTEN", value_name = "ADDR")]
    pub health_listen: Option<SocketAddr>,

    /// At SIGTERM: seconds between saying NOT_SERVING and refusing requests, for load
    /// balancers to take notice.
    #[arg(
        long,
        env = "STEER_DRAIN_DELAY",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    pub drain_delay: u32,

    /// Seconds that running requests then have to end before they are cut.
    #[arg(
        long,
        env = "STEER_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30
    )]
    pub drain_timeout: u32,

    /// Seconds after which a connection takes no more requests, so that clients connect
    /// anew and load spreads; running requests end in peace [default: no limit].
    #[arg(long, env = "STEER_MAX_CONNECTION_AGE", value_name = "SECONDS", value_parser = seconds())]
    pub max_connection_age: Option<u32>,

    /// Seconds that a request may take, however long its client would wait
    /// [default: no limit].
    #[arg(long, env = "STEER_MAX_REQUEST_TIME", value_name = "SECONDS", value_parser = seconds())]
    pub max_request_time: Option<u32>,

    /// Requests of one connection at the same time; more wait in the client.
    #[arg(long, env = "STEER_MAX_STREAMS", value_name = "N", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_streams: u32,

    /// Where spans of requests go: an OpenTelemetry collector's OTLP address, gRPC
    /// [default: nowhere].
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = url)]
    pub otlp_endpoint: Option<String>,

    /// How logs are written.
    #[arg(long, env = "STEER_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// Settings from a TOML file, named as the flags are; flags and environment go first.
    #[arg(long, env = "STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print every setting and where it comes from, in the form of such a file, and exit.
    #[arg(long)]
    pub print_config: bool,

    /// Process id of the program that started this one: stop when it has ended.
    #[arg(long, env = "STEER_STOP_WITH", value_name = "PID", hide = true)]
    pub stop_with: Option<u32>,
}

impl Default for Operation {
    fn default() -> Self {
        Self {
            health_listen: None,
            drain_delay: 0,
            drain_timeout: 30,
            max_connection_age: None,
            max_request_time: None,
            max_streams: 1024,
            otlp_endpoint: None,
            log_format: LogFormat::Text,
            config: None,
            print_config: false,
            stop_with: None,
        }
    }
}

impl Operation {
    pub(crate) fn drain_delay(&self) -> Duration {
        Duration::from_secs(self.drain_delay.into())
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout.into())
    }

    pub(crate) fn max_request_time(&self) -> Option<Duration> {
        self.max_request_time
            .map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
}

fn url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("write it as http://HOST:PORT or https://HOST:PORT".to_owned()),
    }
}

fn seconds() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=31_536_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_address_needs_a_reason() {
        let open: SocketAddr = "0.0.0.0:1".parse().expect("address");
        let none = Security::default();
        let error = none.check_exposure(open).expect_err("refused");
        assert!(error.contains("--allow-unauthenticated"), "{error}");
        for loopback in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            let address = loopback.parse().expect("address");
            assert_eq!(none.check_exposure(address), Ok(()), "{loopback}");
        }
        let with_tls = Security {
            tls_cert: Some("c".into()),
            tls_key: Some("k".into()),
            ..Security::default()
        };
        assert!(
            with_tls.check_exposure(open).is_err(),
            "TLS lets everybody in"
        );
        let allowed = [
            Security {
                api_keys: Some("keys".into()),
                ..Security::default()
            },
            Security {
                tls_client_ca: Some("ca".into()),
                ..Security::default()
            },
            Security {
                allow_unauthenticated: true,
                ..Security::default()
            },
        ];
        for security in allowed {
            assert_eq!(security.check_exposure(open), Ok(()), "{security:?}");
        }
    }
}
