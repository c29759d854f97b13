//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 8] = [
    "steering/v1/payload.proto",
    "steering/v1/intervention.proto",
    "steering/v1/cav.proto",
    "steering/v1/cav_training.proto",
    "steering/v1/feature_search.proto",
    "steering/v1/feature_statistics.proto",
    "steering/v1/model_worker.proto",
    "steering/v1/feature_registry.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=steering");
    Ok(())
}
