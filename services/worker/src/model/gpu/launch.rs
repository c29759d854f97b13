//! Kernels, memory and products on a GPU. All `unsafe` of the GPU path is here:
//! kernels get addresses that the rest of the path takes from buffers and tensors
//! that outlive the step, all on one stream, in order.

use candle_core::{
    CudaDevice, CudaStorage, Device, Result, Storage, Tensor,
    backend::BackendStorage,
    cuda::{
        CudaStorageSlice, WrapErr,
        cudarc::{
            cublas::{result::gemm_ex, sys as blas},
            driver::{CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, result, sys},
            nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts},
        },
    },
};
use std::sync::{Arc, Mutex, PoisonError};

/// An address in the device's memory; 0 is none.
pub(super) type Address = u64;

/// The device, with the decoder's kernels.
pub(super) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    /// Whether kernels may start before the one before them has ended.
    overlaps: bool,
}

/// A kernel's grid and block.
pub(super) type Shape = ((u32, u32, u32), u32);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({:?})", self.device)
    }
}

/// Parameters that a kernel takes as one struct: `repr(C)`, of addresses and numbers,
/// laid out as the kernel's own.
pub(super) trait Parameters: Copy {}

/// A kernel that takes one struct.
#[derive(Debug, Clone)]
pub(super) struct Kernel(CudaFunction);

/// A CUDA device whose tensors are used on one stream only, by whatever thread. Without
/// that, every use of memory would be recorded in case another stream waits for it.
pub fn device(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    // SAFETY: there is no other stream.
    #[allow(unsafe_code)]
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
    }
    Ok(device)
}

impl Gpu {
    /// Compiles the kernels; none if the GPU is too old for them.
    pub(super) fn new(device: &CudaDevice) -> Result<Option<Self>> {
        let stream = device.cuda_stream();
        let (major, minor) = stream.context().compute_capability().w()?;
        if major < 8 {
            return Ok(None);
        }
        let module = stream.context().load_module(compiled(major, minor)?).w()?;
        Ok(Some(Self {
            device: device.clone(),
            stream,
            module,
            overlaps: major >= 9,
        }))
    }

    pub(super) fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    pub(super) fn kernel(&self, name: &str) -> Result<Kernel> {
        Ok(Kernel(self.module.load_function(name).w()?))
    }

    /// Makes the device the calling thread's.
    pub(super) fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().w()
    }

    /// Runs a kernel.
    pub(super) fn launch<P: Parameters>(
        &self,
        kernel: &Kernel,
        (grid, threads): Shape,
        mut parameters: P,
    ) -> Result<()> {
        // The kernels wait for each other where they have to.
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.overlaps),
        };
        let mut parameters = [(&raw mut parameters).cast()];
        let (function, none) = (kernel.0.cu_function(), std::ptr::null_mut());
        // SAFETY: the module's promise; parameters are copied by the call.
        #[allow(unsafe_code)]
        let launched = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, parameters.as_mut_ptr(), none)
        };
        launched.result().w()
    }

    /// `out = x · Wᵀ` by cuBLAS, for x `[m, inner]` and W `[rows, inner]`; `out` is
    /// bf16, or f32.
    pub(super) fn product(
        &self,
        [weights, x, out]: [Address; 3],
        [rows, inner, m]: [usize; 3],
        in_f32: bool,
    ) -> Result<()> {
        let (one, zero) = (1.0f32, 0.0f32);
        let (rows, inner, m) = (rows as i32, inner as i32, m as i32);
        let out_type = match in_f32 {
            true => blas::cudaDataType_t::CUDA_R_32F,
            false => blas::cudaDataType_t::CUDA_R_16BF,
        };
        // SAFETY: the module's promise.
        #[allow(unsafe_code)]
        unsafe {
            gemm_ex(
                *self.device.cublas_handle().handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                rows,
                m,
                inner,
                (&raw const one).cast(),
                weights as *const _,
                blas::cudaDataType_t::CUDA_R_16BF,
                inner,
                x as *const _,
                blas::cudaDataType_t::CUDA_R_16BF,
                inner,
                (&raw const zero).cast(),
                out as *mut _,
                out_type,
                rows,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(candle_core::Error::wrap)
    }

    /// Until all that has been launched is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.stream.synchronize().w()
    }

    /// Copies from the device, after all that has been launched.
    pub(super) fn read<T: bytemuck::Pod>(&self, from: Address, to: &mut [T]) -> Result<()> {
        if !to.is_empty() {
            // SAFETY: the module's promise; `to` lives until the stream is done.
            #[allow(unsafe_code)]
            unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.w()?;
        }
        self.wait()
    }

    /// Copies to the device.
    pub(super) fn write<T: bytemuck::Pod>(&self, from: &[T], to: Address) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the module's promise; pageable memory has been read on return.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.w()
    }
}

/// One after the other: each uses what is before it.
const SOURCE: &str = concat!(
    include_str!("kernels/common.cu"),
    include_str!("kernels/boundary.cu"),
    include_str!("kernels/product.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/logits.cu"),
);

/// The kernels for GPUs of a compute capability: a second or two, once per process.
fn compiled(major: i32, minor: i32) -> Result<Ptx> {
    static COMPILED: Mutex<Vec<((i32, i32), Ptx)>> = Mutex::new(Vec::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, ptx)) = compiled.iter().find(|(for_, _)| *for_ == (major, minor)) {
        return Ok(ptx.clone());
    }
    let options = CompileOptions {
        options: vec![
            "--std=c++17".to_owned(),
            format!("--gpu-architecture=compute_{major}{minor}"),
        ],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(SOURCE, options)
        .map_err(|e| candle_core::Error::Msg(format!("kernels do not compile: {e:?}")))?;
    compiled.push(((major, minor), ptx.clone()));
    Ok(ptx)
}

/// Memory that grows and is not cleared.
#[derive(Debug, Default)]
pub(super) struct Buffer(Option<CudaSlice<u8>>);

impl Buffer {
    /// Room for so many bytes; what was there before is lost if it has to grow.
    pub(super) fn room(&mut self, gpu: &Gpu, bytes: usize) -> Result<Address> {
        let held = self.0.as_ref().map_or(0, CudaSlice::len);
        if held < bytes {
            self.0 = None;
            let bytes = bytes.next_multiple_of(1 << 12);
            // SAFETY: kernels write what others read.
            #[allow(unsafe_code)]
            let slice = unsafe { gpu.stream.alloc::<u8>(bytes) }.w()?;
            self.0 = Some(slice);
        }
        Ok(self.address(gpu))
    }

    /// Room, cleared when it has to grow.
    pub(super) fn cleared(&mut self, gpu: &Gpu, bytes: usize) -> Result<Address> {
        if self.0.as_ref().map_or(0, CudaSlice::len) < bytes {
            self.0 = Some(gpu.stream.alloc_zeros::<u8>(bytes).w()?);
        }
        Ok(self.address(gpu))
    }

    fn address(&self, gpu: &Gpu) -> Address {
        let slice = self.0.as_ref();
        slice.map_or(0, |slice| slice.device_ptr(&gpu.stream).0)
    }
}

/// Where a contiguous tensor's elements are; 0 if not on a GPU, or of a type that
/// no kernel takes.
pub(in crate::model) fn address(tensor: &Tensor) -> Address {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(CudaStorage { slice, device }) = &*storage else {
        return 0;
    };
    let stream = device.cuda_stream();
    let base: sys::CUdeviceptr = match slice {
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        _ => return 0,
    };
    base + (layout.start_offset() * storage_size(&storage)) as u64
}

fn storage_size(storage: &Storage) -> usize {
    match storage {
        Storage::Cuda(storage) => storage.dtype().size_in_bytes(),
        _ => 0,
    }
}
