//! numpy's `.npy` arrays inside `.npz` archives.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    FormatError, SourceFile, malformed,
    tensor::{Dtype, Order, Tensor},
    zip::{EntryData, Zip},
};

const HEADER_LEN_MAX: u64 = 64 << 10;

/// All arrays of an archive, by name without `.npy`. Deflated ones are
/// inflated into unnamed files in `scratch`. `progress` as in [`Zip::data`].
pub fn read_npz(
    source: Arc<SourceFile>,
    scratch: &Path,
    progress: &mut dyn FnMut(u64, u64) -> Result<(), FormatError>,
) -> Result<BTreeMap<String, Tensor>, FormatError> {
    let zip = Zip::open(source)?;
    let total = zip
        .names()
        .filter_map(|name| zip.len_of(name))
        .fold(0, u64::saturating_add);
    let mut done = 0;
    let mut arrays = BTreeMap::new();
    for entry in zip.names() {
        let name = entry.strip_suffix(".npy").ok_or_else(|| {
            malformed(format!(
                "holds {entry:?}; an .npz archive holds .npy arrays only"
            ))
        })?;
        let data = zip.data(entry, scratch, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
        let tensor = read_npy(&data, name).map_err(|error| error.within(entry))?;
        arrays.insert(name.to_owned(), tensor);
    }
    Ok(arrays)
}

fn read_npy(data: &EntryData, name: &str) -> Result<Tensor, FormatError> {
    let not_npy = || malformed("is not an .npy array");
    if data.len < 10 {
        return Err(not_npy());
    }
    let start = data.source.read_vec(data.offset, data.len.min(12))?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(not_npy());
    }
    let (header_start, header_len) = match (start[6], start.get(8..12)) {
        (1, _) => (10, u64::from(u16::from_le_bytes([start[8], start[9]]))),
        (2 | 3, Some(&[a, b, c, d])) => (12, u64::from(u32::from_le_bytes([a, b, c, d]))),
        (version, _) => return Err(malformed(format!("has unknown .npy version {version}"))),
    };
    let body_start = header_start + header_len;
    if header_len > HEADER_LEN_MAX || body_start > data.len {
        return Err(malformed(format!(
            "has an .npy header of {header_len} bytes, which does not fit"
        )));
    }
    let header = data
        .source
        .read_vec(data.offset + header_start, header_len)?;
    let header =
        String::from_utf8(header).map_err(|_| malformed("has a header that is not text"))?;
    let Header {
        dtype,
        order,
        shape,
    } = parse_header(&header)?;
    let len = shape
        .iter()
        .try_fold(dtype.size() as u64, |len, &axis| len.checked_mul(axis));
    if len != Some(data.len - body_start) {
        return Err(malformed(format!(
            "has {} bytes of data, which is not what shape {shape:?} needs",
            data.len - body_start
        )));
    }
    Tensor::new(
        Arc::clone(&data.source),
        name,
        data.offset + body_start,
        dtype,
        &shape,
        order,
    )
}

#[derive(Debug, PartialEq)]
struct Header {
    dtype: Dtype,
    order: Order,
    shape: Vec<u64>,
}

/// Reads the three values of numpy's header, a Python dict literal such as
/// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse_header(header: &str) -> Result<Header, FormatError> {
    let bad = || {
        malformed(format!(
            "has a header that cannot be read: {:?}",
            header.trim_end()
        ))
    };
    let field = |key: &str| -> Result<&str, FormatError> {
        let quoted = format!("'{key}':");
        let at = header.find(&quoted).ok_or_else(bad)?;
        Ok(header[at + quoted.len()..].trim_start())
    };
    let descr = field("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(descr, _)| descr)
        .ok_or_else(|| malformed("is a structured array; a plain float array is needed"))?;
    let dtype = match descr {
        "<f2" => Dtype::F16,
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        "<i4" => Dtype::I32,
        "<i8" => Dtype::I64,
        "|O" => {
            return Err(malformed(
                "is an array of Python objects (a pickle), which is never executed",
            ));
        }
        other => {
            return Err(malformed(format!(
                "has dtype {other:?}; little-endian <f2, <f4 and <f8 are read"
            )));
        }
    };
    let order = match field("fortran_order")? {
        rest if rest.starts_with("False") => Order::RowMajor,
        rest if rest.starts_with("True") => Order::ColumnMajor,
        _ => return Err(bad()),
    };
    let shape = field("shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(shape, _)| shape)
        .ok_or_else(bad)?;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|axis| !axis.is_empty())
        .map(|axis| axis.parse().map_err(|_| bad()))
        .collect::<Result<Vec<u64>, _>>()?;
    if shape.len() > 4 {
        return Err(malformed(format!("has {} axes", shape.len())));
    }
    Ok(Header {
        dtype,
        order,
        shape,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_numpy_writes_them() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2304, 65536), }      \n";
        assert_eq!(
            parse_header(header).expect("header"),
            Header {
                dtype: Dtype::F32,
                order: Order::RowMajor,
                shape: vec![2304, 65536]
            }
        );
        let header = "{'descr': '<f8', 'fortran_order': True, 'shape': (7,), }";
        assert_eq!(
            parse_header(header).expect("header"),
            Header {
                dtype: Dtype::F64,
                order: Order::ColumnMajor,
                shape: vec![7]
            }
        );
        let scalar = "{'descr': '<f2', 'fortran_order': False, 'shape': (), }";
        assert!(parse_header(scalar).expect("header").shape.is_empty());
    }

    #[test]
    fn other_headers_are_refused() {
        for (header, expected) in [
            ("", "cannot be read"),
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
                "little-endian",
            ),
            (
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                "Python objects",
            ),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
                "structured",
            ),
            (
                "{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}",
                "cannot be read",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
                "cannot be read",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,",
                "cannot be read",
            ),
        ] {
            let error = parse_header(header).expect_err(header).to_string();
            assert!(error.contains(expected), "{header}: {error}");
        }
    }
}
