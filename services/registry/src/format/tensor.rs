//! Tensors that stay in their file.

use std::sync::Arc;

use half::{bf16, f16};

use super::{FormatError, SourceFile, malformed};

/// Most elements of one axis; the largest published SAE has 2^20 features.
const AXIS_MAX: usize = 1 << 26;

/// Type of a tensor's elements, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// Decodes `bytes` (as many elements as `out`) to f32.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            for (value, element) in out.iter_mut().zip(elements) {
                *value = f(*element);
            }
        }
        match self {
            Self::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            // Narrowing: canonical directions are f32. Overflow becomes
            // infinite and is refused with all other non-finite values.
            Self::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
            Self::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        }
    }
}

/// Which axis is contiguous in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The last axis (C).
    RowMajor,
    /// The first axis (Fortran).
    ColumnMajor,
}

/// A tensor in a file. Its bytes are known to lie within the file.
#[derive(Debug, Clone)]
pub struct Tensor {
    source: Arc<SourceFile>,
    name: String,
    offset: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    order: Order,
    /// Elements from the start of one contiguous run to the next.
    run_stride: usize,
}

impl Tensor {
    /// A tensor without gaps at `offset` of `source`. Errors if the shape is
    /// absurd or needs more bytes than the file has.
    pub fn new(
        source: Arc<SourceFile>,
        name: impl Into<String>,
        offset: u64,
        dtype: Dtype,
        shape: &[u64],
        order: Order,
    ) -> Result<Self, FormatError> {
        let name = name.into();
        let mut bytes = dtype.size() as u64;
        let mut axes = Vec::with_capacity(shape.len());
        for &axis in shape {
            let axis = usize::try_from(axis).ok().filter(|&axis| axis <= AXIS_MAX);
            let axis = axis.ok_or_else(|| {
                malformed(format!(
                    "{name}: shape {shape:?} is too large (at most {AXIS_MAX} an axis)"
                ))
            })?;
            axes.push(axis);
            bytes = bytes
                .checked_mul(axis as u64)
                .ok_or_else(|| malformed(format!("{name}: shape {shape:?} overflows")))?;
        }
        source
            .check_range(offset, bytes)
            .map_err(|error| error.within(&format!("{name} {shape:?}")))?;
        let run_stride = match (order, axes.as_slice()) {
            (Order::ColumnMajor, &[rows, _]) => rows,
            _ => axes.last().copied().unwrap_or(1),
        };
        Ok(Self {
            source,
            name,
            offset,
            dtype,
            shape: axes,
            order,
            run_stride,
        })
    }

    /// A matrix whose runs are `run_stride` elements apart: a view of a wider one.
    pub fn with_run_stride(mut self, run_stride: u64) -> Result<Self, FormatError> {
        let stride = usize::try_from(run_stride)
            .ok()
            .filter(|&stride| stride <= AXIS_MAX);
        self.run_stride =
            stride.ok_or_else(|| malformed(format!("{}: stride {run_stride}", self.name)))?;
        let (runs, run_len) = self.runs();
        let len = runs.saturating_sub(1) as u64 * run_stride + run_len as u64;
        self.source
            .check_range(self.offset, len * self.dtype.size() as u64)
            .map_err(|error| error.within(&self.name))?;
        Ok(self)
    }

    /// Number of contiguous runs and the length of one.
    fn runs(&self) -> (usize, usize) {
        match (self.order, self.shape.as_slice()) {
            (Order::ColumnMajor, &[rows, columns]) => (columns, rows),
            (_, &[rows, columns]) => (rows, columns),
            (_, shape) => (1, shape.iter().product()),
        }
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The two axes of a matrix; errors for any other rank.
    pub fn shape_2d(&self) -> Result<[usize; 2], FormatError> {
        match *self.shape {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(malformed(format!(
                "{} has shape {:?}; a matrix with no empty axis is needed",
                self.name, self.shape
            ))),
        }
    }

    /// Its numbers in row-major order as f32, all finite. Reads everything: for small tensors.
    pub fn values(&self) -> Result<Vec<f32>, FormatError> {
        let values = self.raw_values()?;
        let values = match (self.order, &*self.shape) {
            (Order::ColumnMajor, &[rows, columns]) => (0..rows * columns)
                .map(|i| values[(i % columns) * rows + i / columns])
                .collect(),
            _ => values,
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(position) => Err(self.not_finite(position, values[position])),
        }
    }

    /// Its numbers, of shape `[len]`.
    pub fn vector(&self, len: usize) -> Result<Vec<f32>, FormatError> {
        if *self.shape == [len] {
            return self.values();
        }
        Err(malformed(format!(
            "{} has shape {:?}; [{len}] is needed",
            self.name, self.shape
        )))
    }

    /// Its numbers, of shape `[len]`; a single number stands for `len` equal ones.
    pub fn vector_or_scalar(&self, len: usize) -> Result<Vec<f32>, FormatError> {
        if self.shape.iter().product::<usize>() == 1 && self.shape.len() <= 1 {
            return Ok(vec![self.values()?[0]; len]);
        }
        self.vector(len)
    }

    /// Its numbers in the file's order.
    fn raw_values(&self) -> Result<Vec<f32>, FormatError> {
        let (runs, run_len) = self.runs();
        let mut values = vec![0.0; runs * run_len];
        let mut bytes = Vec::new();
        for (run, values) in values.chunks_mut(run_len.max(1)).enumerate() {
            self.read_elements(run * self.run_stride, values, &mut bytes)?;
        }
        Ok(values)
    }

    /// Which axis is contiguous.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Elements from the start of one contiguous run to the next.
    pub fn run_stride(&self) -> usize {
        self.run_stride
    }

    /// Reads as many elements as `out` holds from the `start`th on, as they
    /// follow in the file; `buffer` is for reuse.
    pub fn read_elements(
        &self,
        start: usize,
        out: &mut [f32],
        buffer: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let item = self.dtype.size();
        let offset = self.offset + (start * item) as u64;
        if self.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            // The file's bytes are the numbers.
            return self.source.read_at(bytemuck::cast_slice_mut(out), offset);
        }
        buffer.resize(out.len() * item, 0);
        self.source.read_at(buffer, offset)?;
        self.dtype.decode(buffer, out);
        Ok(())
    }

    fn not_finite(&self, position: usize, value: f32) -> FormatError {
        let mut rest = position;
        let mut index: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&axis| {
                let i = rest % axis;
                rest /= axis;
                i
            })
            .collect();
        index.reverse();
        malformed(format!(
            "{}{index:?} is {value}; every number must be finite in float32",
            self.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::source;

    #[test]
    fn shapes_must_fit_the_file() {
        let file = source(&[0; 16]);
        for shape in [
            &[5_u64][..],
            &[1 << 60],
            &[1 << 26, 1 << 26, 1 << 26],
            &[4, 2],
        ] {
            let tensor = Tensor::new(
                Arc::clone(&file),
                "W",
                0,
                Dtype::F32,
                shape,
                Order::RowMajor,
            );
            assert!(tensor.is_err(), "{shape:?}");
        }
    }

    #[test]
    fn every_dtype_becomes_f32() {
        let bytes = |dtype: Dtype| -> Vec<u8> {
            match dtype {
                Dtype::F16 => f16::from_f32(1.5).to_le_bytes().to_vec(),
                Dtype::Bf16 => bf16::from_f32(1.5).to_le_bytes().to_vec(),
                Dtype::F32 => 1.5_f32.to_le_bytes().to_vec(),
                Dtype::F64 => 1.5_f64.to_le_bytes().to_vec(),
                Dtype::I32 => 3_i32.to_le_bytes().to_vec(),
                Dtype::I64 => 3_i64.to_le_bytes().to_vec(),
            }
        };
        for dtype in [
            Dtype::F16,
            Dtype::Bf16,
            Dtype::F32,
            Dtype::F64,
            Dtype::I32,
            Dtype::I64,
        ] {
            let tensor = Tensor::new(source(&bytes(dtype)), "t", 0, dtype, &[], Order::RowMajor)
                .expect("tensor");
            let expected = if matches!(dtype, Dtype::I32 | Dtype::I64) {
                3.0
            } else {
                1.5
            };
            assert_eq!(tensor.vector_or_scalar(2).expect("values"), [expected; 2]);
        }
    }
}
