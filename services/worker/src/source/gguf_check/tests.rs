use std::{fs, io::Cursor, path::PathBuf};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};

use super::*;

fn check(bytes: &[u8]) -> Result<(), GgufCheckError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).expect("can write");
    check_gguf(&path)
}

/// A file with every kind of metadata and two tensors.
fn good() -> Vec<u8> {
    use gguf_file::Value;
    let tensor = Tensor::zeros((4, 64), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
    let quantized = QTensor::quantize(&tensor, GgmlDType::Q8_0).expect("quantises");
    let full = QTensor::quantize(&tensor, GgmlDType::F32).expect("quantises");
    let metadata = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("general.alignment", Value::U32(32)),
        ("a.float", Value::F64(1.5)),
        ("a.flag", Value::Bool(true)),
        ("a.list", Value::Array(vec![Value::I16(3); 5])),
        ("a.flags", Value::Array(vec![Value::Bool(false); 2])),
        (
            "a.words",
            Value::Array(vec![Value::String("x".to_owned()); 3]),
        ),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut out = Cursor::new(Vec::new());
    gguf_file::write(&mut out, &metadata, &[("q", &quantized), ("f", &full)]).expect("writes");
    out.into_inner()
}

#[test]
fn what_candle_writes_passes() {
    check(&good()).expect("a good file");
}

#[test]
fn every_cut_is_refused() {
    let good = good();
    // The last tensor is followed by padding that nobody reads.
    for length in (0..good.len() - 32).step_by(7) {
        assert!(check(&good[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn damaged_headers_do_no_harm() {
    let good = good();
    for at in 0..good.len().min(500) {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            // Whatever passes must be readable without harm.
            if check(&bytes).is_ok() {
                let _ = gguf_file::Content::read(&mut Cursor::new(&bytes));
            }
        }
    }
}

#[test]
fn alignment_must_be_a_power_of_two() {
    let good = good();
    let key = b"general.alignment";
    let at = good
        .windows(key.len())
        .position(|part| part == key)
        .expect("there");
    let value = at + key.len() + 4;
    for alignment in [0u32, 3, u32::MAX] {
        let mut bytes = good.clone();
        bytes[value..value + 4].copy_from_slice(&alignment.to_le_bytes());
        let error = check(&bytes).expect_err("refused").to_string();
        assert!(error.contains("alignment"), "{error}");
    }
}

#[test]
fn hostile_files_are_refused() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/hostile");
    let mut seen = 0;
    for entry in fs::read_dir(dir).expect("the fixtures are there") {
        let path = entry.expect("an entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            seen += 1;
            assert!(check_gguf(&path).is_err(), "{}", path.display());
        }
    }
    assert!(seen > 5);
}
