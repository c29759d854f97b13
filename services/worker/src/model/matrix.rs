//! Matrices `[out, in]`: dense, or quantised as a file has them.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    CpuStorage, DType, Device, Module, Result, Storage, StorageRef, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};

use super::kernels::{self, Format, Mapped, Weights};

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// In the model's dtype, contiguous.
    Dense(Tensor),
    /// As a file has it, in a format that the kernels multiply, on the CPU.
    Packed(Arc<Packed>),
    /// In a block format, elsewhere.
    Quantized(Arc<QMatMul>, Arc<QTensor>),
}

/// A matrix as it is stored.
#[derive(Debug)]
pub(super) struct Packed {
    dtype: GgmlDType,
    format: Format,
    bytes: Bytes,
    dims: Vec<usize>,
}

/// Where the bytes of a matrix are.
#[derive(Debug)]
pub(super) enum Bytes {
    /// In memory.
    Read(Vec<u8>),
    /// In a file, from an offset on.
    Mapped(Arc<Mapped>, usize),
}

impl Packed {
    /// Whether there is a product for matrices of a type.
    pub(super) fn supports(dtype: GgmlDType) -> bool {
        Format::of_ggml(dtype).is_some()
    }

    /// A matrix of a type that is [supported](Self::supports). Of what is mapped, as many
    /// bytes are used as the shape needs.
    pub(super) fn new(dtype: GgmlDType, bytes: Bytes, dims: &[usize]) -> Result<Self> {
        let Some(format) = Format::of_ggml(dtype) else {
            candle_core::bail!("no product for {dtype:?}");
        };
        let width = dims.last().copied().unwrap_or_default();
        if !width.is_multiple_of(dtype.block_size()) {
            candle_core::bail!("{dtype:?} comes in blocks; {dims:?} has parts of one");
        }
        let packed = Self {
            dtype,
            format,
            bytes,
            dims: dims.to_vec(),
        };
        packed.bytes()?;
        Ok(packed)
    }

    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Whether it can stay as it is for activations of a type: floats of that type, or of
    /// 16 bits where `halves` may stay, and what is quantised if not to be expanded.
    pub(super) fn suits(&self, activations: DType, dequantize: bool, halves: bool) -> bool {
        let half = halves && activations == DType::F32;
        match self.dtype {
            GgmlDType::F32 => activations == DType::F32,
            GgmlDType::F16 => half || activations == DType::F16,
            GgmlDType::BF16 => half || activations == DType::BF16,
            _ => !dequantize,
        }
    }

    /// Bytes of a matrix of a type and shape.
    pub(super) fn size(dtype: GgmlDType, dims: &[usize]) -> usize {
        dims.iter().product::<usize>() / dtype.block_size() * dtype.type_size()
    }

    fn bytes(&self) -> Result<&[u8]> {
        let len = Self::size(self.dtype, &self.dims);
        let bytes = match &self.bytes {
            Bytes::Read(bytes) => bytes.get(..len),
            Bytes::Mapped(file, from) => file.bytes().get(*from..).and_then(|b| b.get(..len)),
        };
        bytes
            .ok_or_else(|| candle_core::Error::Msg(format!("the file ends within {:?}", self.dims)))
    }

    /// In f32.
    pub(super) fn dequantized(&self) -> Result<Tensor> {
        let aligned = self.bytes()?.to_vec(); // in a file, it may lie anywhere
        let storage = QStorage::from_data(Cow::Owned(aligned), &Device::Cpu, self.dtype)?;
        QTensor::new(storage, self.dims.clone())?.dequantize(&Device::Cpu)
    }
}

impl Matrix {
    pub(super) fn dense(tensor: &Tensor) -> Result<Self> {
        Ok(Self::Dense(tensor.contiguous()?))
    }

    pub(super) fn packed(packed: Packed) -> Self {
        Self::Packed(Arc::new(packed))
    }

    /// On the CPU, formats without a product of their own are expanded.
    pub(super) fn quantized(tensor: QTensor, dtype: DType) -> Result<Self> {
        let device = tensor.device();
        if device.is_cpu() {
            if !Packed::supports(tensor.dtype()) {
                return Self::dense(&tensor.dequantize(&device)?.to_dtype(dtype)?);
            }
            let bytes = Bytes::Read(tensor.data()?.into_owned());
            let packed = Packed::new(tensor.dtype(), bytes, tensor.shape().dims())?;
            return Ok(Self::packed(packed));
        }
        let tensor = Arc::new(tensor);
        Ok(Self::Quantized(
            Arc::new(QMatMul::from_arc(tensor.clone())?),
            tensor,
        ))
    }

    /// `x · Wᵀ` for x `[n, in]`, anywhere but on the CPU; the result is of x's type.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Quantized(product, _) => {
                let y = product.forward(&x.to_dtype(DType::F32)?.contiguous()?)?;
                y.to_dtype(x.dtype())
            }
            Self::Packed(_) => candle_core::bail!("these weights are multiplied on the CPU"),
        }
    }

    /// On the CPU, where it is.
    pub(super) fn stored(&self) -> Result<Stored<'_>> {
        Ok(match self {
            Self::Dense(weight) => Stored::Dense(weight.storage_and_layout().0, weight.dims2()?),
            Self::Packed(packed) => {
                let &[out_width, in_width] = packed.dims() else {
                    candle_core::bail!("{:?} is no matrix", packed.dims());
                };
                Stored::Packed(Weights {
                    format: packed.format,
                    bytes: packed.bytes()?,
                    out_width,
                    in_width,
                })
            }
            Self::Quantized(..) => candle_core::bail!("these weights are not on the CPU"),
        })
    }

    /// Rows by index, `[n, in]`, in `dtype`.
    pub(super) fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0)?.to_dtype(dtype),
            Self::Quantized(_, tensor) => tensor.embedding(ids)?.to_dtype(dtype),
            Self::Packed(_) => {
                let stored = self.stored()?;
                let weights = stored.weights()?;
                let ids = ids.to_vec1::<u32>()?;
                if let Some(id) = ids.iter().find(|&&id| id as usize >= weights.out_width) {
                    candle_core::bail!("no row {id} among {}", weights.out_width);
                }
                let rows = kernels::unpacked_rows(&weights, &ids);
                Tensor::from_vec(rows, (ids.len(), weights.in_width), &Device::Cpu)?.to_dtype(dtype)
            }
        }
    }
}

/// A matrix on the CPU, where it is.
pub(super) enum Stored<'a> {
    Dense(StorageRef<'a>, (usize, usize)),
    Packed(Weights<'a>),
}

impl Stored<'_> {
    pub(super) fn weights(&self) -> Result<Weights<'_>> {
        let (storage, (out_width, in_width)) = match self {
            Self::Packed(weights) => return Ok(*weights),
            Self::Dense(storage, dims) => (storage, *dims),
        };
        let (format, bytes) = match &**storage {
            Storage::Cpu(CpuStorage::F32(w)) => (Format::F32, bytemuck::cast_slice(w)),
            Storage::Cpu(CpuStorage::F16(w)) => (Format::F16, bytemuck::cast_slice(w)),
            Storage::Cpu(CpuStorage::BF16(w)) => (Format::Bf16, bytemuck::cast_slice(w)),
            _ => candle_core::bail!("weights are not floats on the CPU"),
        };
        Ok(Weights {
            format,
            bytes,
            out_width,
            in_width,
        })
    }
}
