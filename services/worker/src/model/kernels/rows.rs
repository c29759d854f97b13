//! The small layers, a row at a time: norms, activations, rotations, sums.

use rayon::prelude::*;

use super::{
    dispatch::{Kernel, dispatch},
    isa::Isa,
    math::{exp, fma, tanh},
};

/// Numbers below which other threads are not worth waking.
const ALONE: usize = 1 << 15;
/// Partial sums of a row.
const LANES: usize = 16;

/// A root-mean-square norm.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Norm<'a> {
    pub(in crate::model) weight: &'a [f32],
    pub(in crate::model) eps: f32,
}

/// What a gated MLP applies to its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Gate {
    Silu,
    GeluTanh,
}

/// `norm(x)`, row by row.
pub(in crate::model) fn normed(x: &[f32], norm: &Norm<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    each(&mut out, norm.weight.len(), |at, out| {
        let x = &x[at..at + out.len()];
        dispatch(Normed { x, norm, out });
    });
    out
}

/// `x + y`.
pub(in crate::model) fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// `activation(gate) · up`.
pub(in crate::model) fn gated(kind: Gate, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    each(&mut out, 1024, |at, out| {
        let (gate, up) = (&gate[at..at + out.len()], &up[at..at + out.len()]);
        dispatch(Gated {
            kind,
            gate,
            up,
            out,
        });
    });
    out
}

/// `cap · tanh(x / cap)`, in place.
pub(in crate::model) fn softcapped(values: &mut [f32], cap: f32) {
    each(values, 4096, |_, values| dispatch(Softcap { values, cap }));
}

/// Rotates heads `[n, n_heads, head_dim]` by cosines and sines `[n, head_dim / 2]`.
/// A pair is an element and the one half a head behind it, or behind it at once.
pub(in crate::model) fn rotated(
    x: &[f32],
    (cos, sin): (&[f32], &[f32]),
    head_dim: usize,
    interleaved: bool,
) -> Vec<f32> {
    let half = head_dim / 2;
    let width = x.len() / (cos.len() / half);
    let mut out = x.to_vec();
    each(&mut out, width, |at, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let at = (at / width + i) * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row.chunks_exact_mut(head_dim) {
                if interleaved {
                    let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                    for ([a, b], (c, s)) in pairs.zip(cos.iter().zip(sin)) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                } else {
                    let (first, second) = head.split_at_mut(half);
                    let pairs = first.iter_mut().zip(second);
                    for ((a, b), (c, s)) in pairs.zip(cos.iter().zip(sin)) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            }
        }
    });
    out
}

/// Calls `f` with pieces of whole rows and where they begin.
fn each(values: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() < ALONE {
        return f(0, values);
    }
    let rows = (values.len() / width).div_ceil(4 * rayon::current_num_threads());
    let piece = rows.max(1) * width;
    values
        .par_chunks_mut(piece)
        .enumerate()
        .for_each(|(i, values)| f(i * piece, values));
}

struct Normed<'a> {
    x: &'a [f32],
    norm: &'a Norm<'a>,
    out: &'a mut [f32],
}

impl Kernel for Normed<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        let Norm { weight, eps } = *self.norm;
        let width = weight.len();
        let rows = self.x.chunks_exact(width);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(width)) {
            let scale = 1.0 / (squares::<FMA>(x) / width as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }
}

/// The sum of squares.
#[inline(always)]
fn squares<const FMA: bool>(x: &[f32]) -> f32 {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for x in lanes {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = fma::<FMA>(*x, *x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = fma::<FMA>(*x, *x, *sum);
    }
    sums.iter().sum()
}

struct Gated<'a> {
    kind: Gate,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        /// sqrt(2 / π)
        const SCALE: f32 = 0.797_884_6;
        let values = self.out.iter_mut().zip(self.gate).zip(self.up);
        match self.kind {
            Gate::Silu => {
                for ((out, x), up) in values {
                    *out = x / (1.0 + exp::<FMA>(-x)) * up;
                }
            }
            Gate::GeluTanh => {
                for ((out, x), up) in values {
                    let inner = SCALE * x * fma::<FMA>(0.044_715 * x, *x, 1.0);
                    *out = 0.5 * x * (1.0 + tanh::<FMA>(inner)) * up;
                }
            }
        }
    }
}

struct Softcap<'a> {
    values: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        for value in self.values {
            *value = tanh::<FMA>(*value / self.cap) * self.cap;
        }
    }
}
