//! Zip archives as numpy and torch write them: a central directory, entries
//! stored or deflated, zip64 where needed.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
};

use flate2::{Crc, read::DeflateDecoder};

use super::{FormatError, SourceFile, SourceRange, malformed};

const END_LEN: u64 = 22;
const COMMENT_LEN_MAX: u64 = 65_535;
const DIRECTORY_LEN_MAX: u64 = 8 << 20;
const COPY_LEN: usize = 256 << 10;
/// Entries longer than this that inflate more than [`RATIO_MAX`]-fold are bombs:
/// weights hardly compress at all.
const RATIO_CHECKED_LEN: u64 = 64 << 20;
const RATIO_MAX: u64 = 100;

/// How an entry's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Deflated,
}

/// One file of an archive.
#[derive(Debug, Clone)]
struct Entry {
    method: Method,
    crc: u32,
    compressed_len: u64,
    len: u64,
    header_offset: u64,
}

/// An archive's directory.
#[derive(Debug)]
pub struct Zip {
    source: Arc<SourceFile>,
    entries: BTreeMap<String, Entry>,
}

/// Bytes of an entry: part of the archive's file, or of an inflated copy.
#[derive(Debug, Clone)]
pub struct EntryData {
    /// The file that holds the bytes.
    pub source: Arc<SourceFile>,
    /// Where they start.
    pub offset: u64,
    /// How many there are.
    pub len: u64,
}

impl Zip {
    /// Reads the directory.
    pub fn open(source: Arc<SourceFile>) -> Result<Self, FormatError> {
        let (directory_offset, directory_len, count) = find_directory(&source)?;
        if directory_len > DIRECTORY_LEN_MAX {
            return Err(malformed(format!(
                "zip directory of {directory_len} bytes is too long"
            )));
        }
        let directory = source.read_vec(directory_offset, directory_len)?;
        let mut cursor = Cursor::new(&directory);
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let (name, entry) = read_entry(&mut cursor)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(malformed(format!("zip has two entries named {name:?}")));
            }
        }
        Ok(Self { source, entries })
    }

    /// Names of the entries, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// An entry's uncompressed length, if there is such an entry.
    pub fn len_of(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|entry| entry.len)
    }

    /// The bytes of an entry, checked against their CRC. A stored entry stays
    /// where it is; a deflated one is inflated into an unnamed file in
    /// `scratch`, to exactly its declared length. `progress` is told the bytes
    /// passed since its last call.
    pub fn data(
        &self,
        name: &str,
        scratch: &Path,
        progress: &mut dyn FnMut(u64) -> Result<(), FormatError>,
    ) -> Result<EntryData, FormatError> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| malformed(format!("zip has no entry {name:?}")))?;
        let data = self.stored(entry).map_err(|error| error.within(name))?;
        match entry.method {
            Method::Stored => {
                let mut reader = SourceRange::new(&data.source, data.offset, data.len)?;
                copy_checked(&mut reader, entry, None, progress)
                    .map_err(|error| error.within(name))?;
                Ok(data)
            }
            Method::Deflated => {
                if entry.len > RATIO_CHECKED_LEN && entry.len / RATIO_MAX > entry.compressed_len {
                    return Err(malformed(format!(
                        "{name} inflates from {} to {} bytes, as no weights do",
                        entry.compressed_len, entry.len
                    )));
                }
                let mut file = tempfile::tempfile_in(scratch)?;
                let compressed = SourceRange::new(&data.source, data.offset, data.len)?;
                let mut reader = DeflateDecoder::new(compressed);
                copy_checked(&mut reader, entry, Some(&mut file), progress)
                    .map_err(|error| error.within(name))?;
                file.seek(SeekFrom::Start(0))?;
                Ok(EntryData {
                    source: Arc::new(SourceFile::new(file, self.source.name())?),
                    offset: 0,
                    len: entry.len,
                })
            }
        }
    }

    /// Where the (perhaps compressed) bytes lie in the archive.
    fn stored(&self, entry: &Entry) -> Result<EntryData, FormatError> {
        let header = self.source.read_vec(entry.header_offset, 30)?;
        let mut cursor = Cursor::new(&header);
        if cursor.u32()? != 0x0403_4b50 {
            return Err(malformed("zip entry has no local header"));
        }
        cursor.skip(22)?;
        let name_len = u64::from(cursor.u16()?);
        let extra_len = u64::from(cursor.u16()?);
        let offset = entry.header_offset + 30 + name_len + extra_len;
        self.source.check_range(offset, entry.compressed_len)?;
        if entry.method == Method::Stored && entry.len != entry.compressed_len {
            return Err(malformed("stored zip entry has two different lengths"));
        }
        Ok(EntryData {
            source: Arc::clone(&self.source),
            offset,
            len: entry.compressed_len,
        })
    }
}

/// Passes an entry's bytes through the CRC, and into `copy` if one is given.
/// Never takes more bytes than declared.
fn copy_checked(
    reader: &mut dyn Read,
    entry: &Entry,
    mut copy: Option<&mut std::fs::File>,
    progress: &mut dyn FnMut(u64) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut buffer = vec![0; COPY_LEN];
    let mut crc = Crc::new();
    let mut left = entry.len;
    loop {
        let read = reader
            .read(&mut buffer)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                    malformed(format!("damaged deflate data: {error}"))
                }
                std::io::ErrorKind::UnexpectedEof => malformed("deflate data ends early"),
                _ => FormatError::Io(error),
            })?;
        if read == 0 {
            break;
        }
        left = left.checked_sub(read as u64).ok_or_else(|| {
            malformed(format!(
                "inflates to more than the declared {} bytes",
                entry.len
            ))
        })?;
        crc.update(&buffer[..read]);
        if let Some(file) = &mut copy {
            file.write_all(&buffer[..read])?;
        }
        progress(read as u64)?;
    }
    if left > 0 {
        return Err(malformed(format!("is {left} bytes shorter than declared")));
    }
    if crc.sum() != entry.crc {
        return Err(malformed(
            "checksum (CRC-32) does not match: the file is damaged",
        ));
    }
    Ok(())
}

/// Offset, length and number of entries of the central directory.
fn find_directory(source: &SourceFile) -> Result<(u64, u64, u64), FormatError> {
    let not_zip = || malformed("is not a zip archive, or a truncated one (no end record)");
    let tail_len = source.len().min(END_LEN + COMMENT_LEN_MAX);
    let tail_start = source.len() - tail_len;
    let tail = source.read_vec(tail_start, tail_len)?;
    let end = (0..=tail
        .len()
        .checked_sub(END_LEN as usize)
        .ok_or_else(not_zip)?)
        .rev()
        .find(|&at| tail[at..].starts_with(b"PK\x05\x06"))
        .ok_or_else(not_zip)?;
    let mut cursor = Cursor::new(&tail[end + 10..]);
    let count = u64::from(cursor.u16()?);
    let len = u64::from(cursor.u32()?);
    let offset = u64::from(cursor.u32()?);
    let zip64 = count == 0xffff || len == 0xffff_ffff || offset == 0xffff_ffff;
    if !zip64 {
        return Ok((offset, len, count));
    }
    let locator_offset = (tail_start + end as u64)
        .checked_sub(20)
        .ok_or_else(not_zip)?;
    let locator = source.read_vec(locator_offset, 20)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok((offset, len, count));
    }
    let record_offset = Cursor::new(&locator[8..]).u64()?;
    let record = source.read_vec(record_offset, 56)?;
    if !record.starts_with(b"PK\x06\x06") {
        return Err(malformed("zip64 end record is missing"));
    }
    let mut cursor = Cursor::new(&record[32..]);
    let (count, len, offset) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    Ok((offset, len, count))
}

fn read_entry(cursor: &mut Cursor<'_>) -> Result<(String, Entry), FormatError> {
    if cursor.u32()? != 0x0201_4b50 {
        return Err(malformed("zip directory is damaged"));
    }
    cursor.skip(4)?;
    let flags = cursor.u16()?;
    let method = cursor.u16()?;
    cursor.skip(4)?;
    let crc = cursor.u32()?;
    let compressed_len = cursor.u32()?;
    let len = cursor.u32()?;
    let name_len = usize::from(cursor.u16()?);
    let extra_len = usize::from(cursor.u16()?);
    let comment_len = usize::from(cursor.u16()?);
    cursor.skip(8)?;
    let header_offset = cursor.u32()?;
    let name = String::from_utf8(cursor.take(name_len)?.to_vec())
        .map_err(|_| malformed("zip entry name is not UTF-8"))?;
    let extra = cursor.take(extra_len)?;
    cursor.skip(comment_len)?;
    if flags & 1 != 0 {
        return Err(malformed(format!("zip entry {name:?} is encrypted")));
    }
    let method = match method {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => {
            return Err(malformed(format!(
                "zip entry {name:?} uses compression method {other}; stored and deflate are read"
            )));
        }
    };
    let [len, compressed_len, header_offset] =
        zip64_fields(extra, [len, compressed_len, header_offset])?;
    let entry = Entry {
        method,
        crc,
        compressed_len,
        len,
        header_offset,
    };
    Ok((name, entry))
}

/// Widens fields that are all ones to their value in the zip64 extra field.
fn zip64_fields(extra: &[u8], fields: [u32; 3]) -> Result<[u64; 3], FormatError> {
    let mut cursor = Cursor::new(extra);
    let mut zip64 = Cursor::new(&[]);
    while cursor.left() >= 4 {
        let id = cursor.u16()?;
        let len = usize::from(cursor.u16()?);
        let body = cursor.take(len)?;
        if id == 1 {
            zip64 = Cursor::new(body);
        }
    }
    let mut wide = fields.map(u64::from);
    for (value, field) in wide.iter_mut().zip(fields) {
        if field == u32::MAX && zip64.left() >= 8 {
            *value = zip64.u64()?;
        }
    }
    Ok(wide)
}

/// Reads little-endian numbers from a slice.
#[derive(Debug)]
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn left(&self) -> usize {
        self.bytes.len()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| malformed("zip directory ends early"))?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self
            .bytes
            .split_first_chunk()
            .ok_or_else(|| malformed("zip directory ends early"))?;
        self.bytes = tail;
        Ok(*head)
    }

    fn skip(&mut self, len: usize) -> Result<(), FormatError> {
        self.take(len).map(|_| ())
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }
}
