// The decoder's kernels, for NVIDIA GPUs from compute capability 8.0 on. Compiled
// at start-up for the GPU at hand; so nothing is included.
//
// Activations and weights are bfloat16, sums are float. Rounding is where
// transformers rounds, but for what is never stored: scores, attention weights
// and logits stay float. Structs are those of `parameters.rs` and `tables.rs`.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x << 16); }

// To the nearest, ties to even.
__device__ __forceinline__ bf16 narrow(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

__device__ __forceinline__ float rounded(float x) { return wide(narrow(x)); }

// Two neighbours in one word.
__device__ __forceinline__ float first(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 paired(float a, float b) { return narrow(a) | (u32)narrow(b) << 16; }

__device__ __forceinline__ void unpack(uint4 from, float (&to)[8]) {
    u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = first(words[i]);
        to[2 * i + 1] = second(words[i]);
    }
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(paired(x[0], x[1]), paired(x[2], x[3]), paired(x[4], x[5]), paired(x[6], x[7]));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// The block's sum, to all its threads; `scratch` has 32 places.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp];
    return sum;
}

// From compute capability 9.0 on, a kernel starts while the one before it still runs,
// and lets the next start. What it does before it waits is limited to what no kernel
// of the step writes: that is when weights come in. Every kernel waits, so that what
// it waits for is all that was launched before it.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Towards the L2 cache; `bytes` is a multiple of 16, as is the address.
__device__ __forceinline__ void prefetch(const void* at, u32 bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes));
#endif
}

// ---- Simple passes over rows ----

// What the simple kernels take; each says what it is there.
struct Simple {
    const void* from;
    const void* with;
    void* out;
    u32 width, kind;
    float factor;
    u32 n;
};

// Rows `with` of the matrix `from`, times a factor.
extern "C" __global__ void gather(Simple s) {
    let_next_start();
    wait_for_previous();
    const bf16* row = (const bf16*)s.from + (u64)((const u32*)s.with)[blockIdx.x] * s.width;
    bf16* to = (bf16*)s.out + (u64)blockIdx.x * s.width;
    for (u32 i = threadIdx.x; i < s.width; i += blockDim.x) to[i] = narrow(wide(row[i]) * s.factor);
}

