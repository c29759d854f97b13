//! Checksums of an object's blocks, so that a part of it can be trusted without all of it.
//!
//! Kept beside the object, as `sums/DIGEST.sums`: a tag, the object's length, its digest, one
//! CRC-64/NVME for each block of 16 KiB, and a CRC-64 of all that. They follow from the object:
//! lost or damaged ones are made again from it.

use crc_fast::CrcAlgorithm::Crc64Nvme;

/// Bytes that one checksum is for: a feature's row of a 2 to 4 thousand wide model is in one
/// block or two, and the checksums of 1.2 GB make 0.6 MB.
pub const BLOCK_LEN: u64 = 16 << 10;

const TAG: &[u8; 16] = b"steer.sums.v1\n\0\0";
const DIGEST_LEN: usize = 64;
const WORD: usize = size_of::<u64>();

/// Checksums of an object's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    len: u64,
    blocks: Vec<u64>,
}

/// Computes checksums of bytes as they come.
#[derive(Debug)]
pub struct SumsBuilder {
    len: u64,
    blocks: Vec<u64>,
    open: crc_fast::Digest,
}

impl Default for SumsBuilder {
    fn default() -> Self {
        Self {
            len: 0,
            blocks: Vec::new(),
            open: crc_fast::Digest::new(Crc64Nvme),
        }
    }
}

impl SumsBuilder {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK_LEN - self.len % BLOCK_LEN;
            let take = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (head, rest) = bytes.split_at(take);
            self.open.update(head);
            self.len += take as u64;
            if self.len.is_multiple_of(BLOCK_LEN) {
                self.blocks.push(self.open.finalize_reset());
            }
            bytes = rest;
        }
    }

    /// The checksums of everything taken.
    pub fn finish(mut self) -> Sums {
        if !self.len.is_multiple_of(BLOCK_LEN) {
            self.blocks.push(self.open.finalize());
        }
        Sums {
            len: self.len,
            blocks: self.blocks,
        }
    }
}

impl Sums {
    /// Length of the object.
    pub fn object_len(&self) -> u64 {
        self.len
    }

    /// Index of the first of `bytes`' blocks that is not as it was written. `bytes` are whole
    /// blocks from number `first` on.
    pub fn first_wrong(&self, first: u64, bytes: &[u8]) -> Option<u64> {
        let blocks = bytes.chunks(BLOCK_LEN as usize);
        (first..).zip(blocks).find_map(|(index, block)| {
            let sum = usize::try_from(index)
                .ok()
                .and_then(|index| self.blocks.get(index));
            (sum != Some(&crc_fast::checksum(Crc64Nvme, block))).then_some(index)
        })
    }

    /// The file of them, for the object of that digest.
    pub fn encode(&self, digest: &str) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(digest.as_bytes());
        bytes.extend(self.blocks.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes.extend(crc_fast::checksum(Crc64Nvme, &bytes).to_le_bytes());
        bytes
    }

    /// Reads such a file. None if it is damaged or about another object.
    pub fn decode(bytes: &[u8], digest: &str) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<WORD>()?;
        if crc_fast::checksum(Crc64Nvme, body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let body = body.strip_prefix(TAG)?;
        let (len, body) = body.split_first_chunk::<WORD>()?;
        let (of, body) = body.split_at_checked(DIGEST_LEN)?;
        let (blocks, rest) = body.as_chunks::<WORD>();
        let len = u64::from_le_bytes(*len);
        let whole = rest.is_empty() && blocks.len() as u64 == len.div_ceil(BLOCK_LEN);
        (whole && of == digest.as_bytes()).then(|| Self {
            len,
            blocks: blocks.iter().map(|sum| u64::from_le_bytes(*sum)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(bytes: &[u8], step: usize) -> Sums {
        let mut builder = SumsBuilder::default();
        bytes.chunks(step).for_each(|part| builder.update(part));
        builder.finish()
    }

    #[test]
    fn every_changed_byte_is_noticed_in_its_block() {
        let len = 2 * BLOCK_LEN as usize + 100;
        let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let whole = sums(&bytes, len);
        assert_eq!(whole, sums(&bytes, 777), "whatever the pieces");
        assert_eq!(whole.first_wrong(0, &bytes), None);
        assert_eq!(whole.first_wrong(2, &bytes[2 * BLOCK_LEN as usize..]), None);
        for at in [0, BLOCK_LEN as usize - 1, BLOCK_LEN as usize, len - 1] {
            bytes[at] ^= 4;
            let block = at as u64 / BLOCK_LEN;
            assert_eq!(whole.first_wrong(0, &bytes), Some(block), "byte {at}");
            bytes[at] ^= 4;
        }
        assert_eq!(whole.first_wrong(0, &bytes[..len - 1]), Some(2), "short");
        assert_eq!(
            whole.first_wrong(2, &bytes[..BLOCK_LEN as usize]),
            Some(2),
            "misplaced"
        );
    }

    #[test]
    fn a_damaged_file_of_checksums_is_none() {
        let digest = "ab".repeat(32);
        let whole = sums(&[7; 100_000], 4096);
        let file = whole.encode(&digest);
        assert_eq!(Sums::decode(&file, &digest), Some(whole));
        assert_eq!(Sums::decode(&file, &"cd".repeat(32)), None);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(Sums::decode(&damaged, &digest), None, "byte {at}");
            assert_eq!(Sums::decode(&file[..at], &digest), None, "{at} bytes");
        }
    }
}
