//! Stands in for `steer-worker` and `steer-registry` under `steer up`: scripts of
//! those names run this test alone, with their arguments in the environment.

use std::{env, time::Duration};

use tonic::transport::Server;

/// The service's arguments; set only where this stands in for one.
pub(crate) const ARGS: &str = "STEER_TEST_SERVICE_ARGS";

#[tokio::test(flavor = "multi_thread")]
async fn serve_if_asked_to() {
    let Ok(args) = env::var(ARGS) else { return };
    let args: Vec<&str> = args.split_whitespace().collect();
    let option = |name: &str| {
        let mut rest = args.iter().skip_while(|arg| **arg != name).skip(1);
        rest.next().copied()
    };
    println!("arguments: {}", args.join(" "));
    if option("--model") == Some("absent") {
        eprintln!("\x1b[31merror\x1b[0m: no such model");
        std::process::exit(3);
    }
    let listen = option("--listen").expect("--listen");
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .add_service(health)
        .serve(listen.parse().expect("an address"));
    let ends_soon = option("--model") == Some("short-lived");
    tokio::select! {
        served = server => served.expect("served"),
        () = tokio::time::sleep(Duration::from_millis(1500)), if ends_soon => {}
    }
}
