//! Steering: what an intervention does to activations, and how it is applied.
//!
//! # The identity that makes a clamp cheap
//!
//! The reference (the workshop notebook, SAELens with `use_error_term`) runs the
//! whole SAE: `x' = error + decode(clamp(encode(x)))` with
//! `error = x − decode(encode(x))`. Where feature i's activation `f_i` depends
//! on its own pre-activation alone and the decoder is linear, every feature that
//! is not clamped cancels, and
//!
//! ```text
//! x' = x + Σ_i (α_i − f_i(x)) · d_i        d_i = W_dec[i, :]
//! ```
//!
//! exactly. So a clamp needs one encoder column, one decoder row and a few
//! scalars, never the SAE. SAEs for which this fails (TopK, thresholds that
//! depend on the batch) are refused at import.
//!
//! # Every edit is one row of a table
//!
//! *Read* a scalar from `x` (or none), map it by a rule, *write* along a
//! direction: `x' = x + Σ_k φ_k(r_k · x + b_k) · w_k`. All rows read the
//! **pre-edit** x and their deltas add, so order never matters:
//!
//! | edit | read | φ | write |
//! |---|---|---|---|
//! | feature `set α` | `z = n(x)·e + b`, `f = act(z)` | `α − f` | `d / n` |
//! | feature `min`, `max`, `scale`, `add` | same | `f' − f` | `d / n` |
//! | vector `add α` | – | `α`, or `α·‖x‖` | `v` |
//! | direction `ablate` | `p = x·v̂` | `−p` | `v̂` |
//! | `clamp_projection` | `p = x·v̂` | `clamp(p, lo, hi) − p` | `v̂` |
//!
//! `n` is the SAE's input normalisation: deltas are scaled back by its inverse.
//! The maths runs in f32 and is cast once to the model's dtype, because residual
//! norms of 25,000 are real.
//!
//! # Reading, and acting on what was read
//!
//! A *readout* is a scalar of the same kind: a feature's activation, or
//! `x · v + bias`. Readouts are taken before the edits of their hook point.
//! They feed *probes* (reported, before and after the edits), *gates* (an edit
//! applies where, or from where, a condition fires) and *stop conditions*. A
//! gate is read no later in the stack than its edit, so it acts on the very
//! token that fired, however the prompt is cut into steps.
//!
//! A [`Program`] is a variant's interventions, readouts and conditions compiled
//! to such rows; a [`SteeringState`] is what has happened to one sequence under
//! it; [`StepHook`] applies the programs of all sequences of one step, each to
//! its own tokens only.

mod apply;
mod device;
mod feature;
mod gate;
mod math;
mod program;
mod state;
mod step;

pub use program::{Program, ProgramSpec};
pub use state::{Collected, Reading, SteeringMemory, SteeringState, Tally};
pub use step::{Participant, StepHook};
