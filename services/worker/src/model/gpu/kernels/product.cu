// ---- Products with few rows ----

enum { SILU, GELU_TANH, GELU_ERF };

__device__ __forceinline__ float activation(u32 kind, float x) {
    if (kind == SILU) return x / (1.0f + expf(-x));
    if (kind == GELU_ERF) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ bf16 gated_value(u32 kind, float gate, float up) {
    return narrow(rounded(activation(kind, rounded(gate))) * rounded(up));
}

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

struct Product {
    const bf16* weights; // [rows, inner]; of a gated product [2 * rows, inner], gates first
    const bf16* bias;    // one for each row of the weights
    const bf16* x;       // [m, inner]
    void* out;           // [m, rows]
    u32 rows, inner, m;
    u32 activation;
    float cap;
};

enum { PLAIN, GATED_MLP, LOGITS };

// What a lane reads of 32 elements of the inner dimension: eight neighbours of
// two rows of the weights, and of a token of each tile. Both sides of the product
// are permuted alike, so that every read is 16 bytes.
template <int TILES>
struct Operands {
    uint4 w[2];
    uint4 x[TILES];
};

// `x · Wᵀ` for at most 8 · TILES tokens, limited by how fast the weights are read.
// A block has 16 rows of the weights, of a gated product 8 gates and their 8 others;
// its warps share the inner dimension and their sums are added in a fixed order, so
// that a token's result depends on no other. AHEAD steps are on their way while as
// many are multiplied.
template <int TILES, int OUTPUT, int AHEAD>
__device__ __forceinline__ void product(const Product& p) {
    constexpr u32 WARPS = 8, ROWS = OUTPUT == GATED_MLP ? 8 : 16, STEP = WARPS * 32;
    __shared__ float sums[WARPS][TILES][128];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4;
    const u32 own = warp * 32 + lane % 4 * 8, first = blockIdx.x * ROWS;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const bf16* w[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 row = ROWS == 8 ? min(first + group, p.rows - 1) + half * p.rows : min(first + group + 8 * half, p.rows - 1);
        w[half] = p.weights + (u64)row * p.inner;
    }
    float acc[TILES][4] = {};
    Operands<TILES> next[AHEAD], now[AHEAD];
    auto load_weights = [&](u32 from) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            u32 k = from + i * STEP + own;
            next[i].w[0] = k < p.inner ? __ldcs((const uint4*)(w[0] + k)) : zero;
            next[i].w[1] = k < p.inner ? __ldcs((const uint4*)(w[1] + k)) : zero;
        }
    };
    auto load_tokens = [&](u32 from) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            u32 k = from + i * STEP + own;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                u32 token = 8 * t + group;
                bool inside = k < p.inner && token < p.m;
                next[i].x[t] = inside ? *(const uint4*)(p.x + (u64)token * p.inner + k) : zero;
            }
        }
    };
    let_next_start();
    load_weights(0);
    wait_for_previous();
    load_tokens(0);
    for (u32 k = 0; k < p.inner; k += AHEAD * STEP) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) now[i] = next[i];
        load_weights(k + AHEAD * STEP);
        load_tokens(k + AHEAD * STEP);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint4 a = now[i].w[0], b = now[i].w[1], x = now[i].x[t];
                mma(acc[t], a.x, b.x, a.y, b.y, x.x, x.y);
                mma(acc[t], a.z, b.z, a.w, b.w, x.z, x.w);
            }
    }
    // A lane has tokens 2 · (lane % 4) and the next of rows `group` and `group + 8`.
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[warp][t][(lane % 4 * 2 + i % 2) * 16 + group + i / 2 * 8] = acc[t][i];
    __syncthreads();
    auto sum = [&](u32 token, u32 row) {
        float y = 0.0f;
        for (u32 from = 0; from < WARPS; from++) y += sums[from][token / 8][token % 8 * 16 + row];
        if (p.bias) y += wide(p.bias[first + row % ROWS + row / ROWS * p.rows]);
        return y;
    };
    for (u32 at = threadIdx.x; at < ROWS * p.m; at += blockDim.x) {
        u32 token = at / ROWS, row = at % ROWS;
        if (first + row >= p.rows) continue;
        u64 place = (u64)token * p.rows + first + row;
        float y = sum(token, row);
        if (OUTPUT == LOGITS) ((float*)p.out)[place] = capped(y, p.cap);
        else if (OUTPUT == PLAIN) ((bf16*)p.out)[place] = narrow(y);
        else ((bf16*)p.out)[place] = gated_value(p.activation, y, sum(token, row + ROWS));
    }
}

extern "C" __global__ void __launch_bounds__(256) plain_8(Product p) { product<1, PLAIN, 5>(p); }
extern "C" __global__ void __launch_bounds__(256) plain_16(Product p) { product<2, PLAIN, 3>(p); }
extern "C" __global__ void __launch_bounds__(256) gated_8(Product p) { product<1, GATED_MLP, 5>(p); }
extern "C" __global__ void __launch_bounds__(256) gated_16(Product p) { product<2, GATED_MLP, 3>(p); }
extern "C" __global__ void __launch_bounds__(256) logits_8(Product p) { product<1, LOGITS, 5>(p); }
extern "C" __global__ void __launch_bounds__(256) logits_16(Product p) { product<2, LOGITS, 3>(p); }

// ---- After products with many rows ----

// The bias `with` is added to each row of `out`.
extern "C" __global__ void add_bias(Simple s) {
    let_next_start();
    wait_for_previous();
    const bf16* bias = (const bf16*)s.with;
    bf16* row = (bf16*)s.out + (u64)blockIdx.x * s.width;
    for (u32 i = threadIdx.x; i < s.width; i += blockDim.x) row[i] = narrow(wide(row[i]) + wide(bias[i]));
}

// `from` is [m, 2 * width], gates first.
extern "C" __global__ void gate(Simple s) {
    let_next_start();
    wait_for_previous();
    const bf16* row = (const bf16*)s.from + (u64)blockIdx.x * 2 * s.width;
    bf16* to = (bf16*)s.out + (u64)blockIdx.x * s.width;
    for (u32 i = threadIdx.x; i < s.width; i += blockDim.x)
        to[i] = gated_value(s.kind, wide(row[i]), wide(row[s.width + i]));
}

// Rows of logits, in place; a row has many blocks.
extern "C" __global__ void cap_logits(Simple s) {
    let_next_start();
    wait_for_previous();
    float* row = (float*)s.out + (u64)blockIdx.y * s.width;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < s.width; i += gridDim.x * blockDim.x)
        row[i] = capped(row[i], s.factor);
}

