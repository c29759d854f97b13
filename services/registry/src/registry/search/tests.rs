use std::io::Write;

use steering_proto::payload::InputNormalization;

use super::*;
use crate::{
    canonical::{Architecture, Layout},
    store::{SaeRecord, Store, sqlite::SqliteStore},
    vectors::Vectors,
};

const SAES: usize = 7;

async fn registry(folder: &std::path::Path) -> Registry {
    let store = SqliteStore::open(&folder.join("registry.sqlite")).await;
    let store: Arc<dyn Store> = Arc::new(store.expect("store"));
    let vectors = Vectors::local(&folder.join("objects")).expect("vectors");
    let (layout, _) = Layout::new(Architecture::Relu, InputNormalization::None, 4, 1000);
    for i in 0..SAES {
        let sae = SaeRecord {
            key: 0,
            name: format!("s{i}"),
            digest: format!("{i:064x}"),
            hook_name: "hook".to_owned(),
            model_id: "model".to_owned(),
            layout,
            normalization: InputNormalization::None,
            format: String::new(),
            origin: String::new(),
            created_at_ms: 0,
            label_count: 0,
            deleted_at_ms: None,
        };
        store.add_sae(&sae, false).await.expect("SAE");
    }
    Registry::open(store, vectors, &folder.join("staging"), None).expect("registry")
}

async fn label(registry: &Registry, sae: usize, labels: &[String]) {
    let mut file = tempfile::tempfile().expect("file");
    for (index, label) in labels.iter().enumerate() {
        writeln!(file, "{{\"index\": {index}, \"label\": \"{label}\"}}").expect("write");
    }
    let name = format!("s{sae}");
    let imported = registry.import_labels(&name, "auto", true, file);
    imported.await.expect("labels");
}

/// All pages.
async fn search(registry: &Registry, text: &str) -> Vec<(i64, Option<Place>, bool)> {
    let mut found = Vec::new();
    let mut behind = None;
    loop {
        let search = LabelSearch {
            text: text.to_owned(),
            saes: SaeFilter::default(),
            source: None,
            behind,
            limit: 3,
        };
        let page = registry.search_labels(search).await.expect("search");
        let place = |key| (key, page.next.clone(), page.cut);
        found.extend(page.labels.iter().map(|label| place(label.key)));
        behind = page.next;
        if behind.is_none() {
            return found;
        }
    }
}

async fn held(registry: &Registry) -> usize {
    let mut reader = registry.store.label_reader().await.expect("reader");
    let saes = reader.saes(&SaeFilter::default()).await.expect("SAEs");
    registry.lists.of(&saes).len()
}

#[tokio::test]
async fn memory_finds_what_the_database_finds() {
    let folder = tempfile::tempdir().expect("folder");
    let mut registry = registry(folder.path()).await;
    let words = [
        "ball", "baseball", "game", "games", "the", "tennis", "balloon",
    ];
    for sae in 0..SAES {
        // Twice, so that words have several lists.
        for round in 0..2 {
            let label_of = |i: usize| {
                let word = |n: usize| words[(i / n + n * (sae + round)) % words.len()];
                format!("{} {} {}", word(1), word(3), word(11))
            };
            let labels: Vec<String> = (0..30).map(label_of).collect();
            label(&registry, sae, &labels).await;
        }
    }
    for text in [
        "ball",
        "ba",
        "game ball",
        "all the",
        "ennis",
        "bsll tenn",
        "golf",
    ] {
        registry.lists = Arc::default();
        let mut first = search(&registry, text).await;
        registry.lists = Arc::default();
        let lists = Arc::clone(&registry.lists);
        lists.refresh(&*registry.store).await.expect("lists");
        assert_eq!(held(&registry).await, SAES);
        assert_eq!(search(&registry, text).await, first, "{text}");
        first.dedup();
        assert_eq!(first.is_empty(), text == "golf", "{text}");
    }
    // What came in since is found before it is in memory, and when it is.
    label(&registry, 3, &["a golf ball".to_owned()]).await;
    assert_eq!(held(&registry).await, SAES - 1);
    assert_eq!(search(&registry, "golf").await.len(), 1);
    registry.lists = Arc::default();
    registry
        .lists
        .refresh(&*registry.store)
        .await
        .expect("lists");
    assert_eq!(search(&registry, "golf").await.len(), 1);
    registry.close().await;
}
