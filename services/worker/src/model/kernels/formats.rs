//! How the elements of a matrix are stored, format by format.

mod floats;
mod quantized;
mod super_blocks;

pub(super) use floats::{Bf16, F16, F32, Floats};
pub(super) use quantized::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Quantized};
pub(super) use super_blocks::{Q4K, Q5K, Q6K, SuperBlocks, each_block};

use super::isa::Isa;

/// Elements that are unpacked together.
pub(super) const BLOCK: usize = 32;

/// `N` bytes from `at` on.
#[inline(always)]
fn piece<const N: usize>(stored: &[u8], at: usize) -> &[u8; N] {
    stored[at..].first_chunk().expect("within a block")
}
