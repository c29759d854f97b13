//! Files in memory.

use std::{fs::File, io};

use memmap2::Mmap;

/// A file's bytes where the system keeps them.
#[derive(Debug)]
pub(super) struct Mapped(Mmap);

impl Mapped {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the file must not change while it is mapped, which no program can see to.
        // Objects are written once and under a name of their own: what is put in place of one
        // is another file, and a removed one stays until it is unmapped. Only a cache fills holes
        // of its files, with bytes that nobody takes before they were read and found good. What
        // is read are numbers to multiply: whatever they become, no address or length comes of
        // them. A file that somebody cuts short in place, or a disk that fails after a block was
        // read once, ends the process at the next read there, and nothing else.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
