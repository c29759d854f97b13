//! Files in memory.

use std::{fs::File, io};

use memmap2::{Mmap, MmapOptions};

/// A file's bytes where the system keeps them.
#[derive(Debug)]
pub(in crate::model) struct Mapped(Mmap);

impl Mapped {
    /// Maps a file and has all of it read.
    pub(in crate::model) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the file must not change while it is mapped, which no program can see to.
        // What is read from it are numbers to multiply: whatever they become, no address or
        // length comes of them. A file cut short ends the process at the next read behind
        // its end, and nothing else.
        #[allow(unsafe_code)]
        let map = unsafe { MmapOptions::new().populate().map(file)? };
        Ok(Self(map))
    }

    pub(in crate::model) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
