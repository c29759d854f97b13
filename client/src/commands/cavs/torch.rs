//! The notebook's `.pt`: `{"cavs": tensor[n, width], "labels": [str]}`, as `torch.save` writes it.

use anyhow::Context;

use super::export::Export;

/// A zip archive that is not compressed: a pickle that names the tensor, and its numbers.
pub(in crate::commands) fn to_torch(export: &Export) -> anyhow::Result<Vec<u8>> {
    let numbers = export.rows.iter().flatten();
    let numbers: Vec<u8> = numbers.flat_map(|value| value.to_le_bytes()).collect();
    archive(&[
        ("cavs/data.pkl", &pickle(export)?[..]),
        ("cavs/byteorder", &b"little"[..]),
        ("cavs/data/0", &numbers[..]),
        ("cavs/version", &b"3\n"[..]),
    ])
    .context("these are too many CAVs for a .pt file")
}

/// The dict, in protocol 2. Opcodes as Python's `pickletools` names them.
fn pickle(export: &Export) -> anyhow::Result<Vec<u8>> {
    let int = |value: usize| anyhow::Ok(i32::try_from(value)?.to_le_bytes());
    let width = export.rows.first().map_or(0, Vec::len);
    let mut p = b"\x80\x02}(".to_vec(); // PROTO 2, EMPTY_DICT, MARK
    text(&mut p, "cavs")?;
    p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n("); // GLOBAL, MARK
    // Where the numbers are: TUPLE of kind, type, key, device and count, BINPERSID.
    p.push(b'(');
    text(&mut p, "storage")?;
    p.extend(b"ctorch\nFloatStorage\n");
    text(&mut p, "0")?;
    text(&mut p, "cpu")?;
    p.push(b'J'); // BININT
    p.extend(int(export.rows.len() * width)?);
    p.extend(b"tQ");
    // Offset; shape and strides, each a TUPLE2.
    for part in [
        &b"K\0J"[..],
        &int(export.rows.len())?,
        b"J",
        &int(width)?,
        b"\x86J",
        &int(width)?,
        b"K\x01\x86",
    ] {
        p.extend(part);
    }
    // No gradient, no hooks; REDUCE calls.
    p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    text(&mut p, "labels")?;
    p.extend(b"]("); // EMPTY_LIST, MARK
    for label in &export.labels {
        text(&mut p, label)?;
    }
    p.extend(b"eu."); // APPENDS, SETITEMS, STOP
    Ok(p)
}

/// BINUNICODE.
fn text(pickle: &mut Vec<u8>, text: &str) -> anyhow::Result<()> {
    pickle.push(b'X');
    pickle.extend(u32::try_from(text.len())?.to_le_bytes());
    pickle.extend(text.as_bytes());
    Ok(())
}

/// A zip archive of these files, without times, so that the same files are the same bytes.
fn archive(files: &[(&str, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let start = u32::try_from(archive.len())?;
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let len = u32::try_from(bytes.len())?.to_le_bytes();
        // Version 2.0; no flags, stored as it is; 1980-01-01, the first day a zip archive knows.
        let mut about = b"\x14\0\0\0\0\0\0\0\x21\0".to_vec();
        about.extend(crc.sum().to_le_bytes());
        about.extend([len, len].concat());
        about.extend(u16::try_from(name.len())?.to_le_bytes());
        about.extend([0; 2]); // no extra field
        archive.extend([&b"PK\x03\x04"[..], &about[..], name.as_bytes(), bytes].concat());
        // The same, between the version that made it, and no comment, disk or attributes.
        directory.extend([&b"PK\x01\x02\x14\0"[..], &about[..], &[0; 10]].concat());
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let count = u16::try_from(files.len())?.to_le_bytes();
    let start = u32::try_from(archive.len())?.to_le_bytes();
    let len = u32::try_from(directory.len())?.to_le_bytes();
    archive.extend(directory);
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &count[..], &count, &len, &start];
    archive.extend([&end.concat()[..], &[0; 2]].concat()); // no comment
    Ok(archive)
}
