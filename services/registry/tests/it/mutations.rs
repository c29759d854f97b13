//! Damaged files: every reader must answer, never panic, whatever the bytes.

use std::{io::Write, path::Path, sync::Arc};

use proptest::prelude::*;
use steering_registry::{
    cavs::CavFile,
    format::{SourceFile, gguf, npy, pickle::Pickle, safetensors, torch::TorchFile},
    labels::{LabelContext, LabelFormat, read_labels},
};

use crate::sources::{gemma_scope, npz, safetensors as safetensors_bytes};

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures");
    std::fs::read(folder.join(name)).expect("fixture")
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        npz(&gemma_scope(0), false),
        npz(&gemma_scope(0), true),
        safetensors_bytes(&gemma_scope(0)),
        fixture("cavs/notebook_f32.pt"),
        fixture("cavs/notebook_view.pt"),
        fixture("cavs/control_vector.gguf"),
        fixture("cavs/cavs.safetensors"),
        fixture("cavs/cavs.json"),
        fixture("sae_formats/dictionary_learning_batchtopk/sae/ae.pt"),
        br#"{"baseball": 7, "nba": 9}"#.to_vec(),
        b"{\"index\": 1, \"label\": \"a\"}\n{\"index\": \"2\", \"label\": \"b\"}".to_vec(),
    ]
}

/// Gives the bytes to every reader there is.
fn read_everything(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(bytes).expect("write");
    let source = Arc::new(SourceFile::new(file, "file").expect("open"));
    let scratch = std::env::temp_dir();
    let arrays = npy::read_npz(Arc::clone(&source), &scratch, &mut |_, _| Ok(()));
    for array in arrays.into_iter().flatten() {
        let _ = array.1.values();
    }
    if let Ok(file) = safetensors::read_safetensors(&source) {
        file.tensors
            .values()
            .for_each(|tensor| drop(tensor.values()));
    }
    if let Ok(file) = gguf::read_gguf(&source) {
        file.tensors
            .values()
            .for_each(|tensor| drop(tensor.values()));
    }
    let _ = TorchFile::open(Arc::clone(&source), &scratch);
    let _ = Pickle::parse(bytes);
    let _ = CavFile::read(&source, &scratch);
    if let Ok(format) = LabelFormat::detect(std::io::Cursor::new(bytes)) {
        let context = LabelContext {
            d_sae: 100,
            source: String::new(),
        };
        let _ = read_labels(bytes, format, &context, &mut |_| Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_answered(
        seed in 0_usize..11,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = seeds().swap_remove(seed);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_everything(&bytes);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600), start in 0_usize..5) {
        let magic: [&[u8]; 5] = [b"", b"PK\x03\x04", b"GGUF\x03\0\0\0", b"\x80\x02", b"{\""];
        read_everything(&[magic[start], &bytes].concat());
    }
}
