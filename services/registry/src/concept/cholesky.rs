//! Cholesky factors of positive definite matrices, in blocks so that most of the
//! work is matrix products.

use ndarray::{Array2, ArrayViewMut2, Axis, linalg::general_mat_mul, s};

const BLOCK: usize = 64;

/// The lower triangle L of a matrix L Lᵀ.
#[derive(Debug)]
pub(super) struct Cholesky {
    lower: Array2<f64>,
}

impl Cholesky {
    /// Factors a symmetric matrix, of which only the lower triangle is read. None if it is
    /// not positive definite.
    pub(super) fn new(mut matrix: Array2<f64>) -> Option<Self> {
        let n = matrix.nrows();
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let (left, mut rest) = matrix.view_mut().split_at(Axis(1), start);
            let known = left.slice(s![start.., ..]);
            let mut column = rest.slice_mut(s![start.., ..end - start]);
            let own = known.slice(s![..end - start, ..]);
            general_mat_mul(-1.0, &known, &own.t(), 1.0, &mut column);
            factor_column(column)?;
        }
        Some(Self { lower: matrix })
    }

    /// Solves L Lᵀ x = b in place.
    pub(super) fn solve(&self, x: &mut [f64]) {
        let n = x.len();
        for i in 0..n {
            let row = self.lower.row(i);
            let known: f64 = row.iter().zip(&x[..i]).map(|(l, x)| l * x).sum();
            x[i] = (x[i] - known) / row[i];
        }
        for i in (0..n).rev() {
            let row = self.lower.row(i);
            x[i] /= row[i];
            let (known, solved) = (x[i], &mut x[..i]);
            for (value, l) in solved.iter_mut().zip(row) {
                *value -= l * known;
            }
        }
    }
}

/// Factors a block column: its square head, then the rows below.
fn factor_column(mut column: ArrayViewMut2<'_, f64>) -> Option<()> {
    let width = column.ncols();
    for i in 0..column.nrows() {
        let (above, mut row) = column.view_mut().split_at(Axis(0), i);
        let mut row = row.row_mut(0);
        for j in 0..width.min(i) {
            let head = above.row(j);
            let known: f64 = (0..j).map(|p| row[p] * head[p]).sum();
            row[j] = (row[j] - known) / head[j];
        }
        if i < width {
            let pivot = row[i] - (0..i).map(|p| row[p] * row[p]).sum::<f64>();
            // Also false for NaN.
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            row[i] = pivot.sqrt();
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_what_was_multiplied() {
        for n in [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let root =
                Array2::from_shape_fn((n, n), |(i, j)| ((i * 31 + j * 17) % 13) as f64 - 6.0);
            let matrix = root.dot(&root.t()) + Array2::<f64>::eye(n);
            let x: Vec<f64> = (0..n).map(|i| (i as f64).sin()).collect();
            let mut solved = matrix.dot(&ndarray::ArrayView1::from(&x)).to_vec();
            Cholesky::new(matrix).expect("definite").solve(&mut solved);
            for (a, b) in x.iter().zip(&solved) {
                assert!((a - b).abs() < 1e-8, "{n}: {a} {b}");
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_has_no_factor() {
        let mut matrix = Array2::<f64>::eye(3);
        matrix[[2, 2]] = -1.0;
        assert!(Cholesky::new(matrix).is_none());
    }
}
