//! How the elements of a matrix are stored, format by format.

mod floats;
mod quantized;

pub(super) use floats::{Bf16, F16, F32, Floats};
pub(super) use quantized::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quantized, each_block};

use super::isa::Isa;

/// Elements that are unpacked together.
pub(super) const BLOCK: usize = 32;
