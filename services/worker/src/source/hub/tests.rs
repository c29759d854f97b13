use std::fs;

use tempfile::TempDir;

use super::*;
use crate::source::Silent;

fn spec(text: &str) -> HubSpec {
    HubSpec::parse(text).expect("a hub id")
}

#[test]
fn hub_ids_have_an_owner_and_a_name() {
    let parsed = spec("google/gemma-2-2b-it");
    assert_eq!(
        (parsed.owner.as_str(), parsed.name.as_str()),
        ("google", "gemma-2-2b-it")
    );
    assert_eq!((parsed.file, parsed.revision), (None, None));
    let parsed = spec("a/b.c/x/model.gguf@refs/pr/1");
    assert_eq!(parsed.file.as_deref(), Some("x/model.gguf"));
    assert_eq!(parsed.revision.as_deref(), Some("refs/pr/1"));
    for bad in [
        "",
        "gpt2",
        "/a/b",
        "a/",
        "a/b/c",
        "../b",
        "a/..",
        "a/b/../x.gguf",
        "a/b@",
        "a/b@../x",
        "a b/c",
        "./a",
        "a/b@x@y",
        "http://a/b",
        "a/b/.x.gguf",
    ] {
        assert_eq!(HubSpec::parse(bad), None, "{bad}");
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache as the hub's libraries lay it out.
fn cache(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let repo = dir.path().join("models--owner--name");
    fs::create_dir_all(repo.join("refs")).expect("can make");
    fs::write(repo.join("refs/main"), COMMIT).expect("can write");
    for (name, content) in files {
        let path = repo.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("can make");
        fs::write(path, content).expect("can write");
    }
    dir
}

fn offline(text: &str, cache: &TempDir) -> Result<ResolvedModel, SourceError> {
    let options = Options {
        cache: Some(cache.path().to_owned()),
        offline: true,
    };
    let spec = spec(text);
    Repository::open(&spec, &Silent, options)?.resolve()
}

#[test]
fn offline_the_cache_is_enough() {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let cache = cache(&[
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        (INDEX, index),
        ("model-1.safetensors", ""),
        ("model-2.safetensors", ""),
    ]);
    for text in [
        "owner/name",
        "owner/name@main",
        &format!("owner/name@{COMMIT}"),
    ] {
        let model = offline(text, &cache).expect("resolves");
        assert_eq!(model.model_id, "owner/name");
        match model.files {
            ModelFiles::HfFolder {
                weights,
                generation_config,
                ..
            } => {
                assert_eq!(weights.len(), 2);
                assert_eq!(generation_config, None);
            }
            ModelFiles::Gguf { .. } => panic!("a folder was meant"),
        }
    }
}

#[test]
fn offline_a_gguf_file_of_a_repository() {
    let cache = cache(&[("q4/model.gguf", "GGUF")]);
    let model = offline("owner/name/q4/model.gguf", &cache).expect("resolves");
    assert_eq!(model.model_id, "owner/name/q4/model.gguf");
    assert!(matches!(model.files, ModelFiles::Gguf { path } if path.is_file()));
}

#[test]
fn offline_what_is_missing_is_named() {
    let cache = cache(&[("config.json", "{}"), ("tokenizer.json", "{}")]);
    for (text, missing) in [
        ("owner/name", SINGLE),
        ("owner/name@other", "config.json"),
        ("other/name", "config.json"),
        ("owner/name/x.gguf", "x.gguf"),
    ] {
        let error = offline(text, &cache).expect_err("refused");
        assert!(matches!(error, SourceError::Offline { .. }), "{error:?}");
        assert!(error.to_string().contains(missing), "{error}");
    }
}

#[test]
fn repositories_without_safetensors_are_refused_before_download() {
    let refusal = |files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        check_listing("a/b", &files)
            .expect_err("refused")
            .to_string()
    };
    assert!(refusal(&["config.json", "pytorch_model.bin"]).contains("pickle"));
    assert!(refusal(&["x.Q4_K_M.gguf"]).contains("a/b/FILE"));
    assert!(refusal(&["README.md"]).contains(SINGLE));
    let good = [INDEX.to_owned(), "pytorch_model.bin".to_owned()];
    assert!(check_listing("a/b", &good).is_ok());
}

/// With a hub at a port that nothing listens on.
fn unreachable(cache: &TempDir) -> Result<ResolvedModel, SourceError> {
    let spec = spec("owner/name");
    let options = Options {
        cache: Some(cache.path().to_owned()),
        offline: false,
    };
    let mut repository = Repository::open(&spec, &Silent, options).expect("opens");
    repository.remote = HFClientBuilder::new()
        .cache_dir(cache.path())
        .endpoint("http://127.0.0.1:9")
        .retry_max_attempts(0)
        .build_sync()
        .expect("builds")
        .model("owner", "name");
    repository.resolve()
}

#[test]
fn a_hub_that_cannot_be_reached_says_so() {
    let error = unreachable(&cache(&[("config.json", "{}")])).expect_err("no hub");
    assert!(
        matches!(error, SourceError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("local path"), "{error}");
}

#[test]
fn without_a_network_the_cache_still_works() {
    let cache = cache(&[
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        (SINGLE, ""),
    ]);
    assert_eq!(
        unreachable(&cache).expect("resolves").model_id,
        "owner/name"
    );
}
