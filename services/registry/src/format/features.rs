//! Weight matrices of SAEs, read in blocks of features.

use super::{
    FormatError, malformed,
    tensor::{Order, Tensor},
};

/// Bytes of a [`FeatureBlock`] whose features are scattered over the whole
/// matrix: the larger, the longer the pieces that are read of every row.
const SCATTERED_BLOCK_BYTES: usize = 32 << 20;
/// Bytes of a [`FeatureBlock`] that is one piece of the file: stays in a cache.
const CONTIGUOUS_BLOCK_BYTES: usize = 2 << 20;
/// Side of the square tiles in which a block is transposed: 16 f32 are a cache line.
const TILE: usize = 16;

/// Which axis of a matrix counts features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureAxis {
    /// Shape `[d_sae, d_in]`.
    First,
    /// Shape `[d_in, d_sae]`.
    Last,
}

/// A weight matrix of an SAE, with its features along a known axis.
#[derive(Debug, Clone)]
pub struct Matrix {
    tensor: Tensor,
    features: usize,
    width: usize,
    feature_major: bool,
}

impl Matrix {
    /// Takes a 2-D tensor as `[features, width]` or `[width, features]`.
    pub fn new(tensor: Tensor, axis: FeatureAxis) -> Result<Self, FormatError> {
        let [rows, columns] = tensor.shape_2d()?;
        let (features, width) = match axis {
            FeatureAxis::First => (rows, columns),
            FeatureAxis::Last => (columns, rows),
        };
        let feature_major = (axis == FeatureAxis::First) == (tensor.order() == Order::RowMajor);
        Ok(Self {
            tensor,
            features,
            width,
            feature_major,
        })
    }

    /// Number of features, d_sae.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Components of one feature, d_in.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Name of the tensor, for errors.
    pub fn name(&self) -> &str {
        self.tensor.name()
    }

    /// Features that one block should hold: long reads, bounded memory.
    pub fn features_per_block(&self) -> usize {
        let bytes = if self.feature_major {
            CONTIGUOUS_BLOCK_BYTES
        } else {
            SCATTERED_BLOCK_BYTES
        };
        (bytes / (size_of::<f32>() * self.width))
            .max(1)
            .min(self.features)
    }

    fn coordinates(&self, feature: usize, component: usize) -> String {
        let features_first = self.feature_major == (self.tensor.order() == Order::RowMajor);
        let (row, column) = if features_first {
            (feature, component)
        } else {
            (component, feature)
        };
        format!("{}[{row}, {column}]", self.tensor.name())
    }
}

/// Some consecutive features of a [`Matrix`], in memory as f32, all finite.
///
/// Held as the file has them: one run per feature, or (the usual encoder) one
/// run per component, which is transposed only when rows are written out.
#[derive(Debug, Default)]
pub struct FeatureBlock {
    values: Vec<f32>,
    raw: Vec<u8>,
    count: usize,
    width: usize,
    /// Distance between runs; padded where runs are components, so that a
    /// column's elements do not fall into one cache set.
    stride: usize,
    feature_major: bool,
}

impl FeatureBlock {
    /// Reads features `start .. start + count`.
    pub fn load(&mut self, matrix: &Matrix, start: usize, count: usize) -> Result<(), FormatError> {
        self.count = count;
        self.width = matrix.width;
        self.feature_major = matrix.feature_major;
        let run_stride = matrix.tensor.run_stride();
        let (runs, run_len, first) = if matrix.feature_major {
            (count, matrix.width, start * run_stride)
        } else {
            (matrix.width, count, start)
        };
        self.stride = if matrix.feature_major {
            run_len
        } else {
            run_len + TILE
        };
        self.values.resize(runs * self.stride, 0.0);
        if run_stride == self.stride {
            // Runs follow each other in the file as they do here.
            matrix
                .tensor
                .read_elements(first, &mut self.values, &mut self.raw)?;
        } else {
            for (run, values) in self.values.chunks_mut(self.stride).enumerate() {
                matrix.tensor.read_elements(
                    first + run * run_stride,
                    &mut values[..run_len],
                    &mut self.raw,
                )?;
            }
        }
        for (run, values) in self.values.chunks(self.stride).enumerate() {
            if let Some(i) = first_non_finite(&values[..run_len]) {
                let (feature, component) = if matrix.feature_major {
                    (start + run, i)
                } else {
                    (start + i, run)
                };
                return Err(malformed(format!(
                    "{} is {}; every number must be finite in float32",
                    matrix.coordinates(feature, component),
                    values[i]
                )));
            }
        }
        Ok(())
    }

    /// Components of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `vector · feature` for each feature, accumulated in f64; `vector` has the matrix's width.
    pub fn dots(&self, vector: &[f32]) -> Vec<f64> {
        if self.feature_major {
            return self.features().map(|row| dot(vector, row)).collect();
        }
        let mut sums = vec![0.0; self.count];
        for (run, &factor) in self.values.chunks(self.stride).zip(vector) {
            for (sum, &value) in sums.iter_mut().zip(run) {
                *sum += f64::from(factor) * f64::from(value);
            }
        }
        sums
    }

    /// ‖feature‖² for each feature, accumulated in f64.
    pub fn squared_norms(&self) -> Vec<f64> {
        if self.feature_major {
            return self.features().map(|row| dot(row, row)).collect();
        }
        let mut sums = vec![0.0; self.count];
        for run in self.values.chunks(self.stride) {
            for (sum, &value) in sums.iter_mut().zip(run) {
                *sum += f64::from(value).powi(2);
            }
        }
        sums
    }

    /// Little-endian f32 rows of features `start .. start + factors.len()` of
    /// the block, each multiplied by its factor.
    pub fn rows(&self, start: usize, factors: &[f32]) -> Vec<u8> {
        let mut out = vec![0_u8; factors.len() * self.width * size_of::<f32>()];
        let (cells, _) = out.as_chunks_mut::<4>();
        if self.feature_major {
            let rows = cells
                .chunks_mut(self.width)
                .zip(self.features().skip(start));
            for ((row, values), &factor) in rows.zip(factors) {
                for (cell, &value) in row.iter_mut().zip(values) {
                    *cell = (value * factor).to_le_bytes();
                }
            }
            return out;
        }
        for column in (0..self.width).step_by(TILE) {
            let columns = column..(column + TILE).min(self.width);
            for tile in (0..factors.len()).step_by(TILE) {
                for row in tile..(tile + TILE).min(factors.len()) {
                    let cells = &mut cells[row * self.width..][columns.clone()];
                    let first = column * self.stride + start + row;
                    for (i, cell) in cells.iter_mut().enumerate() {
                        *cell = (self.values[first + i * self.stride] * factors[row]).to_le_bytes();
                    }
                }
            }
        }
        out
    }

    fn features(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.width).take(self.count)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// Position of the first NaN or infinity. One pass without branches, as almost
/// every slice has none.
fn first_non_finite(values: &[f32]) -> Option<usize> {
    let largest = values.iter().fold(0, |largest, value| {
        largest.max(value.to_bits() & 0x7fff_ffff)
    });
    if largest < f32::INFINITY.to_bits() {
        return None;
    }
    values.iter().position(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{tensor::Dtype, testing::source};

    fn tensor(values: &[f32], shape: &[u64], order: Order) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(source(&bytes), "W", 0, Dtype::F32, shape, order).expect("tensor")
    }

    fn rows(block: &FeatureBlock, start: usize, factors: &[f32]) -> Vec<f32> {
        let bytes = block.rows(start, factors);
        let (cells, _) = bytes.as_chunks::<4>();
        cells.iter().map(|cell| f32::from_le_bytes(*cell)).collect()
    }

    #[test]
    fn both_layouts_give_the_same_rows() {
        let (features, width) = (37, 21);
        let value = |feature: usize, component: usize| (feature * 100 + component) as f32;
        let by_feature: Vec<f32> = (0..features * width)
            .map(|i| value(i / width, i % width))
            .collect();
        let by_component: Vec<f32> = (0..features * width)
            .map(|i| value(i % features, i / features))
            .collect();
        let (f, w) = (features as u64, width as u64);
        let cases = [
            (
                tensor(&by_feature, &[f, w], Order::RowMajor),
                FeatureAxis::First,
            ),
            (
                tensor(&by_component, &[f, w], Order::ColumnMajor),
                FeatureAxis::First,
            ),
            (
                tensor(&by_component, &[w, f], Order::RowMajor),
                FeatureAxis::Last,
            ),
            (
                tensor(&by_feature, &[w, f], Order::ColumnMajor),
                FeatureAxis::Last,
            ),
        ];
        for (tensor, axis) in cases {
            let matrix = Matrix::new(tensor, axis).expect("matrix");
            assert_eq!((matrix.features(), matrix.width()), (features, width));
            let mut block = FeatureBlock::default();
            block.load(&matrix, 3, 30).expect("load");
            assert_eq!(
                rows(&block, 2, &[1.0; 20]),
                by_feature[5 * width..25 * width]
            );
            assert_eq!(rows(&block, 29, &[2.0])[1], 2.0 * value(32, 1));
            let ones = vec![1.0; width];
            let sum: f64 = (0..width).map(|c| f64::from(value(3, c))).sum();
            assert!((block.dots(&ones)[0] - sum).abs() < 1e-6);
            let squares: f64 = (0..width).map(|c| f64::from(value(3, c)).powi(2)).sum();
            assert!((block.squared_norms()[0] - squares).abs() < 1e-6);
        }
    }

    #[test]
    fn non_finite_numbers_are_refused_with_their_place() {
        let mut values = vec![0.0; 12];
        values[7] = f32::NAN;
        for (axis, start) in [(FeatureAxis::First, 1), (FeatureAxis::Last, 3)] {
            let matrix =
                Matrix::new(tensor(&values, &[3, 4], Order::RowMajor), axis).expect("matrix");
            let error = FeatureBlock::default()
                .load(&matrix, start, 1)
                .expect_err("NaN")
                .to_string();
            assert!(error.starts_with("W[1, 3] is NaN"), "{error}");
        }
        let error = tensor(&values, &[3, 4], Order::RowMajor)
            .values()
            .expect_err("NaN");
        assert!(error.to_string().starts_with("W[1, 3] is NaN"), "{error}");
    }
}
