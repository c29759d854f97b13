//! The one place that picks instructions at run time.

use super::isa::{Isa, Portable};

/// Work that is written once and compiled for several instruction sets.
pub(super) trait Kernel {
    /// Does the work. `FMA`: whether the machine has a fused multiply-add;
    /// without one, `mul_add` would be a slow library call.
    ///
    /// Must be `#[inline(always)]`, and so must all that it calls in its loops:
    /// what is not inlined is not compiled for the better instructions.
    fn run<const FMA: bool>(self, isa: impl Isa);
}

/// Runs a kernel with the best instructions of this machine. These do not
/// depend on the input, so one process always computes the same way.
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            // SAFETY: the features were detected on the lines above, AVX-512's
            // on the next ones.
            #[allow(unsafe_code)]
            unsafe {
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    if is_x86_feature_detected!("avx512vnni") {
                        return avx512vnni(kernel);
                    }
                    return avx512(kernel);
                }
                return avx2(kernel);
            }
        }
    }
    if cfg!(target_arch = "aarch64") {
        kernel.run::<true>(Portable::<true>);
    } else {
        kernel.run::<false>(Portable::<false>);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512vnni(kernel: impl Kernel) {
    // SAFETY: this function's features include Avx2's, and VNNI.
    #[allow(unsafe_code)]
    let isa = unsafe { super::isa::Avx2::<true>::new() };
    kernel.run::<true>(isa);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn avx512(kernel: impl Kernel) {
    // SAFETY: this function's features include Avx2's.
    #[allow(unsafe_code)]
    let isa = unsafe { super::isa::Avx2::<false>::new() };
    kernel.run::<true>(isa);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(kernel: impl Kernel) {
    // SAFETY: this function's features are Avx2's.
    #[allow(unsafe_code)]
    let isa = unsafe { super::isa::Avx2::<false>::new() };
    kernel.run::<true>(isa);
}
