//! The shape of the code: file length, boundaries, where `unsafe` may be.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines a source file may have.
const MAX_LINES: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("source");
                found.push((path, text));
            }
        }
    }
    found
}

fn all_sources() -> Vec<(PathBuf, String)> {
    const FOLDERS: [&str; 8] = [
        "proto/src",
        "services/common",
        "services/worker",
        "services/registry",
        "client",
        "tests/src",
        "tests/tests",
        "tests/fuzz/fuzz_targets",
    ];
    FOLDERS
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
        .collect()
}

#[test]
fn files_are_short_and_modules_are_named() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines", path.display());
        // A test's shared module cannot be named otherwise.
        let is_test_support = path.ends_with("tests/support/mod.rs");
        assert!(
            !path.ends_with("mod.rs") || is_test_support,
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_model_and_the_steering_know_no_network() {
    let worker = root().join("services/worker/src");
    let mut files = Vec::new();
    for folder in ["model", "steering", "text"] {
        files.extend(sources(&worker.join(folder)));
        let file = worker.join(format!("{folder}.rs"));
        files.push((file.clone(), fs::read_to_string(file).expect("source")));
    }
    let scheduler = worker.join("engine/scheduler.rs");
    files.push((
        scheduler.clone(),
        fs::read_to_string(scheduler).expect("source"),
    ));
    for (path, text) in files {
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let forbidden = ["tokio", "tonic", "prost::", "::v1"];
            let used = forbidden.iter().find(|name| line.contains(*name));
            assert!(used.is_none(), "{} uses {used:?}: {line}", path.display());
        }
    }
}

#[test]
fn unsafe_is_in_few_places() {
    for (path, text) in all_sources() {
        let allowed = [
            "model/gpu/launch.rs",
            "model/kernels/dispatch.rs",
            "model/kernels/isa/avx2.rs",
            "model/kernels/mapped.rs",
            "registry/src/vectors/mapped.rs",
            "tests/tidy.rs",
        ]
        .iter()
        .any(|allowed| path.ends_with(allowed));
        assert!(allowed || !text.contains("unsafe {"), "{}", path.display());
    }
}

#[test]
fn the_contract_knows_no_tensors_and_the_client_no_services() {
    let manifest = |path: &str| fs::read_to_string(root().join(path)).expect("manifest");
    assert!(!manifest("proto/Cargo.toml").contains("candle"));
    let client = manifest("client/Cargo.toml");
    let dependencies = client
        .split("[dev-dependencies]")
        .next()
        .expect("dependencies");
    for service in ["steering-worker", "steering-registry", "candle"] {
        assert!(
            !dependencies.contains(service),
            "client depends on {service}"
        );
    }
}
