//! Everything that reads what strangers send, given the seeds of the fuzz targets, what
//! fuzzing found, the hostile fixtures, and mutations of all these.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use prost::Message;
use steering_client::v1;
use steering_e2e::{direction, untrusted};

/// Much more than any of these inputs takes.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes that the corpus may take in the repository.
const CORPUS_BYTES_MAX: u64 = 200 << 10;
/// Mutations of every seed.
const MUTATIONS: u64 = 40;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Seeds of a target: its own, and for what reads files all small fixtures.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let own = root().join("fuzz/corpus").join(target);
    let mut paths = if own.is_dir() {
        files(&own)
    } else {
        Vec::new()
    };
    let reads_files = [
        "safetensors",
        "npz",
        "torch",
        "registry_gguf",
        "worker_gguf",
        "labels",
    ];
    if reads_files.contains(&target) {
        for folder in ["hostile", "cavs", "sae_formats"] {
            paths.extend(files(&root().join("golden/fixtures").join(folder)));
        }
    }
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("a seed");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn in_time(target: &str, seed: &Path, body: fn(&[u8]), input: &[u8]) {
    let began = Instant::now();
    body(input);
    let took = began.elapsed();
    assert!(took < TIME_MAX, "{target}: {}: {took:?}", seed.display());
}

#[test]
fn the_corpus_does_no_harm() {
    for (target, body) in untrusted::ALL {
        let seeds = seeds(target);
        assert!(seeds.len() >= 3, "{target} has {} seeds", seeds.len());
        for (path, bytes) in seeds {
            in_time(target, &path, body, &bytes);
        }
    }
}

/// xorshift64*: the same mutations everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }
}

/// Bytes changed, cut off or doubled; mostly near the start, where headers are.
fn mutated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let reach = if random.below(2) == 0 { 64 } else { usize::MAX };
        let at = random.below(bytes.len().min(reach));
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 if at + 8 <= bytes.len() => {
                let odd = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 32, 1 << 62][random.below(6)];
                bytes[at..at + 8].copy_from_slice(&odd.to_le_bytes());
            }
            _ => {
                let end = (at + random.below(32)).min(bytes.len());
                let part = bytes.get(at..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

#[test]
fn mutations_of_the_corpus_do_no_harm() {
    let mut random = Random(0x5EED);
    for (target, body) in untrusted::ALL {
        for (path, bytes) in seeds(target) {
            for _ in 0..MUTATIONS {
                let input = mutated(&bytes, &mut random);
                in_time(target, &path, body, &input);
            }
        }
    }
}

#[test]
fn every_body_is_a_target_and_the_corpus_is_small() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let found = fs::read_dir(root().join(folder))
            .expect("a folder")
            .flatten();
        let stem = |entry: fs::DirEntry| {
            let path = entry.path();
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        };
        found.map(stem).collect()
    };
    let bodies: BTreeSet<String> = untrusted::ALL
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(stems("fuzz/fuzz_targets"), bodies);
    assert!(stems("fuzz/corpus").is_subset(&bodies));
    let corpus = files(&root().join("fuzz/corpus"));
    let sizes = corpus
        .iter()
        .map(|path| fs::metadata(path).expect("a seed").len());
    let bytes: u64 = sizes.sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

/// Requests in which every part of the contract is used.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let gate = |mode: v1::GateMode| v1::Gate {
        condition: Some(direction::above(0.5)),
        mode: mode.into(),
        ..Default::default()
    };
    let modes = [v1::GateMode::While, v1::GateMode::Once];
    let gated = modes.map(|mode| direction::add(2.0, Some(gate(mode))));
    let steered = v1::Variant {
        stop_when: vec![direction::above(3.0)],
        ..direction::variant(gated.to_vec())
    };
    let mut feature = direction::generate(4, 3, direction::variant(Vec::new()));
    feature.features = vec![v1::SaeFeature {
        sae_id: "sae".to_owned(),
        feature_index: 7,
        label: "baseball".to_owned(),
        hook_name: direction::HOOK.to_owned(),
        activation: Some(v1::sae_feature::Activation::Relu(v1::ReluActivation {})),
        input_normalization: v1::InputNormalization::None.into(),
        encoder: vec![0.5; 4],
        decoder: vec![0.25; 4],
        ..Default::default()
    }];
    let score = v1::ScoreTextRequest {
        prompt: Some(steering_client::prompt::token_ids(vec![1, 2, 3])),
        continuation: Some(v1::score_text_request::Continuation::Text(
            "words".to_owned(),
        )),
        variants: vec![direction::variant(vec![direction::add(1.0, None)])],
        vectors: vec![direction::payload(4)],
        ..Default::default()
    };
    vec![
        (
            "steered",
            direction::generate(4, 3, steered).encode_to_vec(),
        ),
        ("feature", feature.encode_to_vec()),
        ("score", score.encode_to_vec()),
    ]
}

/// The seeds of `request` follow the contract: STEER_UPDATE_SEEDS=1 writes them anew.
#[test]
fn request_seeds_are_of_this_contract() {
    for (name, bytes) in requests() {
        let path = root().join("fuzz/corpus/request").join(name);
        if std::env::var_os("STEER_UPDATE_SEEDS").is_some() {
            fs::write(&path, &bytes).expect("written");
        }
        let stored = fs::read(&path).expect("a seed");
        assert!(stored == bytes, "{name}: run with STEER_UPDATE_SEEDS=1");
    }
}
