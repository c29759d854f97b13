//! An open object: no byte leaves it unchecked.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use steering_proto::payload::hex;

use super::{
    mapped::Mapped,
    sums::{BLOCK_LEN, Sums, SumsBuilder},
};

/// Bytes read at once where an object is read from end to end.
const STEP: usize = 1 << 20;
/// How long [`Object::view`] takes a block for good that was: long enough that checking costs
/// nothing beside reading, and a bound for how long damage done meanwhile can stay unnoticed there.
const TRUST: Duration = Duration::from_secs(10 * 60);

/// An object on this machine, and the checksums of its blocks.
#[derive(Debug)]
pub struct Object {
    digest: String,
    file: File,
    sums: Sums,
    mapped: OnceLock<Mapped>,
    opened: Instant,
    /// For each block, the milliseconds from `opened` until [`Object::view`] may no longer take
    /// it for good. 0: it was not looked at.
    trusted: Vec<AtomicU64>,
    squares: OnceLock<Vec<AtomicU32>>,
}

/// Stored bytes that are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("object {digest} is damaged at byte {at}")]
pub struct Damaged {
    digest: String,
    /// Where the first damaged block begins.
    pub at: u64,
}

impl Object {
    /// An object's file with its checksums.
    pub fn new(digest: String, file: File, sums: Sums) -> Self {
        let blocks = sums.object_len().div_ceil(BLOCK_LEN);
        Self {
            digest,
            file,
            sums,
            mapped: OnceLock::new(),
            opened: Instant::now(),
            trusted: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
            squares: OnceLock::new(),
        }
    }

    /// SHA-256 (hex) of its bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its checksums.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Room to keep a number for each of its `rows`, 0 at first: an object never changes, so what
    /// was computed of a row once need not be again. None for another number of rows than the
    /// first who asked had: the same bytes may be divided otherwise.
    pub fn squares(&self, rows: usize) -> Option<&[AtomicU32]> {
        let all = self
            .squares
            .get_or_init(|| (0..rows).map(|_| AtomicU32::new(0)).collect());
        (all.len() == rows).then_some(all)
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.sums.object_len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the whole blocks that `range` touches.
    pub fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.next_multiple_of(BLOCK_LEN).min(self.len());
        range.start / BLOCK_LEN * BLOCK_LEN..end
    }

    /// Fills `buffer` from `start`, where a block begins, to where one ends.
    pub fn read_blocks(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let first = start / BLOCK_LEN;
        let wrong = match self.file.read_exact_at(buffer, start) {
            // Cut off behind what its checksums are for.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(first),
            Err(error) => return Err(error),
            Ok(()) => self.sums.first_wrong(first, buffer),
        };
        match wrong {
            None => Ok(()),
            Some(block) => Err(io::Error::other(Damaged {
                digest: self.digest.clone(),
                at: block * BLOCK_LEN,
            })),
        }
    }

    /// The bytes of `range`, by way of a buffer for the blocks around it.
    pub fn read<'a>(&self, range: &Range<u64>, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let blocks = self.blocks(range);
        let narrow = |len: u64| usize::try_from(len).map_err(io::Error::other);
        buffer.resize(narrow(blocks.end.saturating_sub(blocks.start))?, 0);
        self.read_blocks(blocks.start, buffer)?;
        let start = narrow(range.start - blocks.start)?;
        let len = narrow(range.end - range.start)?;
        buffer
            .get(start..start + len)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The bytes of `range` where the system keeps them, for readers of whole objects. Blocks that
    /// were not found good in the last ten minutes are read into `room` and checked first: a disk that
    /// cannot read is an error there, and what is read in place comes out of memory.
    pub fn view(&self, range: &Range<u64>, room: &mut Vec<u8>) -> io::Result<&[u8]> {
        self.view_at(range, room, self.opened.elapsed())
    }

    fn view_at(&self, range: &Range<u64>, room: &mut Vec<u8>, now: Duration) -> io::Result<&[u8]> {
        let narrow = |len: u64| usize::try_from(len).map_err(io::Error::other);
        let bytes = narrow(range.start)?..narrow(range.end)?;
        let blocks = self.blocks(range);
        let indices = narrow(blocks.start / BLOCK_LEN)?..narrow(blocks.end.div_ceil(BLOCK_LEN))?;
        let trusted = self.trusted.get(indices);
        let trusted = trusted.ok_or(io::ErrorKind::UnexpectedEof)?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now_millis = millis(now);
        if trusted
            .iter()
            .any(|until| until.load(Ordering::Relaxed) <= now_millis)
        {
            room.resize(narrow(blocks.end.saturating_sub(blocks.start))?, 0);
            self.read_blocks(blocks.start, room)?;
            let until = millis(now.saturating_add(TRUST));
            trusted
                .iter()
                .for_each(|block| block.store(until, Ordering::Relaxed));
        }
        let mapped = match self.mapped.get() {
            Some(mapped) => mapped,
            None => {
                let mapped = Mapped::new(&self.file)?;
                self.mapped.get_or_init(|| mapped)
            }
        };
        let found = mapped.bytes().get(bytes);
        found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// SHA-256 (hex) and block checksums of everything that a reader gives.
pub fn examine(mut reader: impl Read) -> io::Result<(String, Sums)> {
    let (mut hasher, mut sums) = (Sha256::new(), SumsBuilder::default());
    let mut buffer = vec![0; STEP];
    loop {
        let len = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hasher.finalize()), sums.finish())),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..len]);
        sums.update(&buffer[..len]);
    }
}

/// Whether an error says that stored bytes are damaged.
pub fn is_damage(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.downcast_ref::<Damaged>().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_for_one_division_into_rows() {
        let (digest, sums) = examine(&[0; 64][..]).expect("checksums");
        let object = Object::new(digest, tempfile::tempfile().expect("file"), sums);
        let kept = object.squares(4).expect("the first");
        kept[3].store(7, Ordering::Relaxed);
        assert!(object.squares(8).is_none());
        assert_eq!(
            object.squares(4).expect("again")[3].load(Ordering::Relaxed),
            7
        );
    }

    #[test]
    fn a_view_is_checked_first_and_again_after_a_while() {
        let file = tempfile::tempfile().expect("file");
        let bytes: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&bytes, 0).expect("write");
        let (digest, sums) = examine(&bytes[..]).expect("checksums");
        let object = Object::new(digest, file, sums);
        let mut room = Vec::new();
        let mut view = |range: &Range<u64>, now| {
            let found = object.view_at(range, &mut room, now);
            found.map(<[u8]>::to_vec).map_err(|error| is_damage(&error))
        };
        let (second, last) = (20_000..20_010, 49_990..50_000);
        let expected =
            |range: &Range<u64>| bytes[range.start as usize..range.end as usize].to_vec();
        assert_eq!(view(&second, Duration::ZERO), Ok(expected(&second)));
        let write = |byte, at| object.file().write_all_at(&[byte], at).expect("write");
        write(!bytes[49_999], 49_999);
        write(!bytes[20_011], 20_011);
        assert_eq!(view(&last, Duration::ZERO), Err(true), "seen at once");
        assert_eq!(
            view(&last, Duration::ZERO),
            Err(true),
            "and not trusted then"
        );
        let before = TRUST - Duration::from_millis(1);
        assert_eq!(view(&second, before), Ok(expected(&second)), "trusted");
        assert_eq!(view(&second, TRUST), Err(true), "not for ever");
        write(bytes[20_011], 20_011);
        assert_eq!(view(&second, TRUST), Ok(expected(&second)));
        assert_eq!(view(&(49_990..50_001), Duration::ZERO), Err(true));
        assert_eq!(
            view(&(70_000..70_001), Duration::ZERO),
            Err(false),
            "behind the end"
        );
    }
}
