//! Writers of small SAE files, independent of the readers.

use std::io::Write;

use flate2::{Compression, Crc, write::DeflateEncoder};

pub(crate) const D_IN: usize = 6;
pub(crate) const D_SAE: usize = 10;

/// An array: name, shape, row-major numbers.
pub(crate) type Array<'a> = (&'a str, Vec<usize>, Vec<f32>);

/// Numbers that say where they belong.
pub(crate) fn value(tensor: usize, feature: usize, component: usize) -> f32 {
    (tensor * 10_000 + feature * 100 + component) as f32 / 64.0
}

/// The arrays of a Gemma Scope SAE; `seed` changes every number.
pub(crate) fn gemma_scope(seed: usize) -> Vec<Array<'static>> {
    let flat = |rows: usize, columns: usize, f: &dyn Fn(usize, usize) -> f32| {
        (0..rows * columns)
            .map(|i| f(i / columns, i % columns))
            .collect::<Vec<_>>()
    };
    vec![
        (
            "W_enc",
            vec![D_IN, D_SAE],
            flat(D_IN, D_SAE, &|c, f| value(seed + 1, f, c)),
        ),
        (
            "W_dec",
            vec![D_SAE, D_IN],
            flat(D_SAE, D_IN, &|f, c| value(seed + 2, f, c)),
        ),
        (
            "b_enc",
            vec![D_SAE],
            flat(1, D_SAE, &|_, f| value(seed + 3, f, 0)),
        ),
        (
            "b_dec",
            vec![D_IN],
            flat(1, D_IN, &|_, c| value(seed + 4, 0, c)),
        ),
        (
            "threshold",
            vec![D_SAE],
            flat(1, D_SAE, &|_, f| value(seed + 5, f, 0)),
        ),
    ]
}

/// An `.npz` archive of float32 arrays.
pub(crate) fn npz(arrays: &[Array<'_>], deflated: bool) -> Vec<u8> {
    let entries: Vec<(String, Vec<u8>)> = arrays
        .iter()
        .map(|(name, shape, values)| (format!("{name}.npy"), npy(shape, values)))
        .collect();
    zip(&entries, deflated)
}

fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let axes: String = shape.iter().map(|axis| format!("{axis}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({axes}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("short").to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

pub(crate) fn zip(entries: &[(String, Vec<u8>)], deflated: bool) -> Vec<u8> {
    let short = |len: usize| u32::try_from(len).expect("short");
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in entries {
        let mut crc = Crc::new();
        crc.update(data);
        let stored = if deflated {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(data).expect("deflate");
            encoder.finish().expect("deflate")
        } else {
            data.clone()
        };
        let mut common = vec![20, 0, 0, 0, if deflated { 8 } else { 0 }, 0, 0, 0, 0, 0];
        for number in [crc.sum(), short(stored.len()), short(data.len())] {
            common.extend(number.to_le_bytes());
        }
        common.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
        common.extend([0, 0]);
        let offset = short(bytes.len());
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(stored);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (offset, len) = (short(bytes.len()), short(directory.len()));
    let count = u16::try_from(entries.len()).expect("few").to_le_bytes();
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].concat());
    bytes.extend(len.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// A safetensors file of float32 tensors.
pub(crate) fn safetensors(arrays: &[Array<'_>]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut body = Vec::new();
    for (name, shape, values) in arrays {
        let start = body.len();
        body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, body.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &body,
    ]
    .concat()
}

/// Writes a Gemma Scope archive into `folder` and returns its path.
pub(crate) fn write_npz(folder: &std::path::Path, name: &str, seed: usize) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, npz(&gemma_scope(seed), false)).expect("write");
    path
}
