//! Linear classifiers without an intercept, by Newton's method with exact steps:
//!
//! ```text
//! minimise over w   ½‖w‖² + Σ_i loss(y_i w·x_i)
//! ```
//!
//! A step solves (I + Σ h_i x_i x_iᵀ) s = −gradient, where h_i is the loss's second
//! derivative: by a d × d system, or, where fewer than d examples have h_i ≠ 0, by one of
//! their number (Woodbury). Exact steps make the number of steps small (about ten) however
//! badly the activations are conditioned, and a model's raw activations are: a coordinate
//! descent stops at its iteration limit there.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, linalg::general_mat_mul, s};

use super::cholesky::Cholesky;

const STEPS_MAX: usize = 200;
/// Norm of the gradient, over that at w = 0, at which w is the minimum.
const GRADIENT_MIN: f64 = 1e-10;
/// Steps shorter than this, over the norm of w, are rounding.
const STEP_MIN: f64 = 1e-13;
/// Examples added to the d × d system at once.
const BLOCK: usize = 512;

/// What an example on the wrong side costs, as a function of its margin y w·x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// max(0, 1 − m)².
    SquaredHinge,
    /// ln(1 + exp(−m)).
    Logistic,
}

impl Loss {
    fn slope(self, margin: f64) -> f64 {
        match self {
            Self::SquaredHinge => -2.0 * (1.0 - margin).max(0.0),
            Self::Logistic => -1.0 / (1.0 + margin.exp()),
        }
    }

    fn curvature(self, margin: f64) -> f64 {
        match self {
            Self::SquaredHinge if margin < 1.0 => 2.0,
            Self::SquaredHinge => 0.0,
            Self::Logistic => {
                let p = 1.0 / (1.0 + margin.exp());
                p * (1.0 - p)
            }
        }
    }
}

/// The minimum for `rows`, of which those with `positive` have y = 1 and the others
/// y = −1. None where `stopped` says so, or the numbers are too large for f64.
pub(super) fn minimise(
    rows: ArrayView2<'_, f64>,
    positive: &[bool],
    loss: Loss,
    stopped: &dyn Fn() -> bool,
) -> Option<Array1<f64>> {
    let signs: Array1<f64> = positive
        .iter()
        .map(|&p| if p { 1.0 } else { -1.0 })
        .collect();
    let mut w = Array1::zeros(rows.ncols());
    let mut margins = Array1::zeros(rows.nrows());
    let mut first_norm = None;
    for _ in 0..STEPS_MAX {
        if stopped() {
            return None;
        }
        let pull = &margins.mapv(|m| loss.slope(m)) * &signs;
        let gradient: Array1<f64> = &w + &rows.t().dot(&pull);
        let norm = gradient.dot(&gradient).sqrt();
        if norm <= GRADIENT_MIN * *first_norm.get_or_insert(norm) {
            break;
        }
        let curvatures = margins.mapv(|m| loss.curvature(m));
        let step = newton_step(rows, curvatures.view(), gradient)?;
        let change = &rows.dot(&step) * &signs;
        let t = line_search(w.view(), step.view(), &margins, &change, loss);
        w.scaled_add(t, &step);
        margins.scaled_add(t, &change);
        if t * step.dot(&step).sqrt() <= STEP_MIN * w.dot(&w).sqrt() {
            break;
        }
    }
    w.iter().all(|value| value.is_finite()).then_some(w)
}

/// −H⁻¹ gradient.
fn newton_step(
    rows: ArrayView2<'_, f64>,
    curvatures: ArrayView1<'_, f64>,
    gradient: Array1<f64>,
) -> Option<Array1<f64>> {
    let active: Vec<usize> = (0..rows.nrows()).filter(|&i| curvatures[i] > 0.0).collect();
    let width = rows.ncols();
    let scaled = |indices: &[usize]| {
        let mut block = Array2::zeros((indices.len(), width));
        for (mut to, &i) in block.outer_iter_mut().zip(indices) {
            to.scaled_add(curvatures[i].sqrt(), &rows.row(i));
        }
        block
    };
    let mut step = -gradient;
    if active.len() >= width {
        let mut hessian = Array2::eye(width);
        for indices in active.chunks(BLOCK) {
            add_gram(scaled(indices).t(), &mut hessian);
        }
        Cholesky::new(hessian)?.solve(step.as_slice_mut()?);
    } else {
        let block = scaled(&active);
        let mut system = Array2::eye(active.len());
        add_gram(block.view(), &mut system);
        let mut inner = block.dot(&step);
        Cholesky::new(system)?.solve(inner.as_slice_mut()?);
        step -= &block.t().dot(&inner);
    }
    Some(step)
}

/// Adds A Aᵀ to the lower triangle of `sum`; what is above it is left undefined.
fn add_gram(a: ArrayView2<'_, f64>, sum: &mut Array2<f64>) {
    let n = a.nrows();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let below = a.slice(s![start.., ..]);
        let own = a.slice(s![start..end, ..]);
        let mut columns = sum.slice_mut(s![start.., start..end]);
        general_mat_mul(1.0, &below, &own.t(), 1.0, &mut columns);
    }
}

/// How far to go along a step: all of it, unless the objective rises again on the way;
/// then to about its lowest point. The slope only grows, so halving finds it.
fn line_search(
    w: ArrayView1<'_, f64>,
    step: ArrayView1<'_, f64>,
    margins: &Array1<f64>,
    change: &Array1<f64>,
    loss: Loss,
) -> f64 {
    let (across, along) = (w.dot(&step), step.dot(&step));
    let slope = |t: f64| {
        let pairs = margins.iter().zip(change);
        let losses: f64 = pairs.map(|(m, c)| loss.slope(m + t * c) * c).sum();
        across + t * along + losses
    };
    let near = 0.1 * slope(0.0).abs();
    if slope(1.0) <= near {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let t = f64::midpoint(low, high);
        match slope(t) {
            s if s.abs() <= near => return t,
            s if s < 0.0 => low = t,
            _ => high = t,
        }
    }
    low
}
