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

// ---- Between layers: residual sums, edits, norms ----

// One edit of one row.
struct Edit {
    const float* read;
    const float* write;
    u32 kind, operation, activation, normalization;
    float value, upper, bias, threshold, magnitude_scale, magnitude_bias, write_norm, read_sum;
};

enum { FEATURE, ADD, ADD_FRACTION, PROJECT };
enum { SET, MIN, MAX, SCALE, PLUS };
enum { RELU, JUMP_RELU, GATED };
enum { AS_IT_IS, CONSTANT_NORM, LAYER_NORM };

// Eight neighbouring elements of a row, one thread's.
struct Row {
    float x[8];
    u32 width;
    bool mine; // whether the row reaches this thread
    float* scratch;

    __device__ float sum_of_squares() const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * x[i];
        return block_sum(mine ? sum : 0.0f, scratch);
    }

    __device__ float dot(const float* with) const {
        float sum = 0.0f;
        if (mine) {
#pragma unroll
            for (int i = 0; i < 8; i++) sum += x[i] * with[8 * threadIdx.x + i];
        }
        return block_sum(sum, scratch);
    }

    // Root-mean-square norm. Gemma multiplies by the weight before rounding.
    __device__ void normalize(const float* weight, float eps, u32 scale_in_float) {
        float r = 1.0f / sqrtf(sum_of_squares() / (float)width + eps);
        if (!mine) return;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float w = weight[8 * threadIdx.x + i];
            x[i] = scale_in_float ? rounded(x[i] * r * w) : rounded(rounded(x[i] * r) * rounded(w));
        }
    }
};

__device__ float activated(const Edit& edit, float z) {
    if (edit.activation == RELU) return fmaxf(z, 0.0f);
    if (edit.activation == JUMP_RELU) return z > edit.threshold ? fmaxf(z, 0.0f) : 0.0f;
    float magnitude = fmaxf(z * edit.magnitude_scale + edit.magnitude_bias, 0.0f);
    return z + edit.threshold > 0.0f ? magnitude : 0.0f;
}

// The factor of the decoder.
__device__ float feature_phi(const Edit& edit, const Row& row, float norm) {
    float z = row.dot(edit.read), undo = 1.0f;
    if (edit.normalization == CONSTANT_NORM) {
        float scale = sqrtf((float)row.width) / norm;
        if (!(scale < __int_as_float(0x7f800000))) return 0.0f;
        z *= scale;
        undo = 1.0f / scale;
    } else if (edit.normalization == LAYER_NORM) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += row.x[i];
        float mean = block_sum(row.mine ? sum : 0.0f, row.scratch) / (float)row.width;
#pragma unroll
        for (int i = 0; i < 8; i++) squares += (row.x[i] - mean) * (row.x[i] - mean);
        squares = block_sum(row.mine ? squares : 0.0f, row.scratch);
        undo = sqrtf(squares / fmaxf((float)row.width - 1.0f, 1.0f));
        z = (z - mean * edit.read_sum) / (undo + 1e-5f);
    }
    float f = activated(edit, z + edit.bias), edited = edit.value;
    if (edit.operation == MIN) edited = fmaxf(f, edit.value);
    if (edit.operation == MAX) edited = fminf(f, edit.value);
    if (edit.operation == SCALE) edited = f * edit.value;
    if (edit.operation == PLUS) edited = f + edit.value;
    return (edited - f) * undo;
}

__device__ float phi(const Edit& edit, const Row& row, float norm) {
    if (edit.kind == FEATURE) return feature_phi(edit, row, norm);
    if (edit.kind == ADD) return edit.value;
    if (edit.kind == ADD_FRACTION) return edit.value * norm;
    float p = row.dot(edit.write);
    return fminf(fmaxf(p, edit.value), edit.upper) - p;
}

// The edits of a row at a hook point: all read it as it was before any of them.
// `touches` gets the norms of the delta and of the row for each edit.
__device__ void apply(Row& row, const u32* ranges, const Edit* edits, float2* touches) {
    if (!ranges) return;
    u32 from = ranges[blockIdx.x], to = ranges[blockIdx.x + 1];
    if (from == to) return;
    float norm = sqrtf(row.sum_of_squares());
    float delta[8] = {0};
    bool changed = false;
    for (u32 i = from; i < to; i++) {
        Edit edit = edits[i];
        float factor = phi(edit, row, norm);
        if (threadIdx.x == 0) touches[i] = make_float2(fabsf(factor) * edit.write_norm, norm);
        if (factor == 0.0f) continue;
        changed |= edit.write_norm > 0.0f;
        if (!row.mine) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) delta[j] += factor * edit.write[8 * threadIdx.x + j];
    }
    if (!changed) return;
#pragma unroll
    for (int j = 0; j < 8; j++) row.x[j] = rounded(row.x[j] + delta[j]);
}

struct Boundary {
    bf16* x;
    bf16* added;
    bf16* normed;
    const float* post_norm;
    const float* norm;
    const u32* edits_of_added;
    const u32* edits_of_sum;
    const u32* edits_of_next;
    const Edit* edits;
    float2* touches;
    u32 width;
    float eps;
    u32 scale_in_float;
    // Stop after the edits of what is added, and store that.
    u32 only_added;
};

// `x += edited(post_norm(added))`, the edits of x, and the next layer's input
// `norm(x)`: each part only where its pointer is given. A block for each row.
extern "C" __global__ void __launch_bounds__(1024) boundary(Boundary b) {
    __shared__ float scratch[32];
    const u64 at = (u64)blockIdx.x * b.width + 8 * threadIdx.x;
    const uint4 none = make_uint4(0, 0, 0, 0);
    let_next_start();
    if (threadIdx.x == 0 && b.post_norm) prefetch(b.post_norm, b.width * sizeof(float));
    if (threadIdx.x == 0 && b.norm) prefetch(b.norm, b.width * sizeof(float));
    wait_for_previous();
    Row row;
    row.width = b.width;
    row.mine = 8 * threadIdx.x < b.width;
    row.scratch = scratch;
    const uint4 residual = row.mine ? *(const uint4*)(b.x + at) : none;
    if (b.added) {
        unpack(row.mine ? *(const uint4*)(b.added + at) : none, row.x);
        if (b.post_norm) row.normalize(b.post_norm, b.eps, b.scale_in_float);
        apply(row, b.edits_of_added, b.edits, b.touches);
        if (b.only_added) {
            if (row.mine) *(uint4*)(b.added + at) = pack(row.x);
            return;
        }
        float x[8];
        unpack(residual, x);
#pragma unroll
        for (int i = 0; i < 8; i++) row.x[i] = rounded(row.x[i] + x[i]);
    } else {
        unpack(residual, row.x);
    }
    apply(row, b.edits_of_sum, b.edits, b.touches);
    apply(row, b.edits_of_next, b.edits, b.touches);
    if (row.mine) *(uint4*)(b.x + at) = pack(row.x);
    if (!b.norm) return;
    row.normalize(b.norm, b.eps, b.scale_in_float);
    if (row.mine) *(uint4*)(b.normed + at) = pack(row.x);
}

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

// ---- Attention ----

// A chunk's keys and values at one layer: `[n_kv_heads, capacity, head_dim]`, of
// the positions from `first` on.
struct Span {
    bf16* keys;
    bf16* values;
    u32 first, capacity;
};

// Row `row` is the token at `position` of a chunk.
struct Place {
    u32 row, span, position, unused;
};

struct Rotate {
    bf16* qkv; // [n_rows, (n_heads + 2 * n_kv_heads) * head_dim]
    const Place* places;
    const Span* spans;
    const float* frequencies; // [head_dim / 2]
    const float* q_norm;      // [head_dim]
    const float* k_norm;
    u32 n_rows, n_heads, n_kv_heads, head_dim;
    float eps;
    u32 scale_in_float, interleaved;
};

// Norms and rotates heads: queries in place, keys into the cache; values go there
// as they are. Places behind the rows are other sequences that get a row's keys
// and values too. A warp for each head.
extern "C" __global__ void __launch_bounds__(128) rotate(Rotate r) {
    let_next_start();
    constexpr int AT_ONCE = 4; // of head_dim / 64, which is no more
    const u32 head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 n_all = r.n_heads + 2 * r.n_kv_heads;
    const bool is_query = head < r.n_heads, is_value = head >= r.n_heads + r.n_kv_heads;
    const Place place = r.places[blockIdx.x];
    bf16* from = r.qkv + ((u64)place.row * n_all + head) * r.head_dim;
    bf16* to = from;
    if (!is_query) {
        const Span span = r.spans[place.span];
        u32 kv_head = head - r.n_heads - (is_value ? r.n_kv_heads : 0);
        u64 at = ((u64)kv_head * span.capacity + place.position - span.first) * r.head_dim;
        to = (is_value ? span.values : span.keys) + at;
    }
    // Most heads have one pair of components, or a few, for each lane.
    const u32 half = r.head_dim / 2;
    float c[AT_ONCE], s[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        u32 i = lane + 32 * j;
        float angle = i < half ? (float)place.position * r.frequencies[i] : 0.0f;
        c[j] = rounded(cosf(angle));
        s[j] = rounded(sinf(angle));
    }
    wait_for_previous();
    if (head >= n_all || (is_query && blockIdx.x >= r.n_rows)) return;
    if (is_value) {
        for (u32 i = lane; i < r.head_dim; i += 32) to[i] = from[i];
        return;
    }
    const float* weight = is_query ? r.q_norm : r.k_norm;
    float inverse = 1.0f;
    if (weight) {
        float squares = 0.0f;
        for (u32 i = lane; i < r.head_dim; i += 32) squares += wide(from[i]) * wide(from[i]);
        inverse = 1.0f / sqrtf(warp_sum(squares) / (float)r.head_dim + r.eps);
    }
    auto normed = [&](u32 i) {
        float x = wide(from[i]);
        if (!weight) return x;
        float w = weight[i];
        return r.scale_in_float ? rounded(x * inverse * w) : rounded(rounded(x * inverse) * rounded(w));
    };
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        u32 i = lane + 32 * j;
        if (i >= half) break;
        u32 ia = r.interleaved ? 2 * i : i, ib = r.interleaved ? 2 * i + 1 : i + half;
        float a = normed(ia), b = normed(ib);
        to[ia] = narrow(rounded(a * c[j]) - rounded(b * s[j]));
        to[ib] = narrow(rounded(b * c[j]) + rounded(a * s[j]));
    }
}

struct Attention {
    const bf16* qkv;
    bf16* out; // [n_rows, n_heads * head_dim]
    const Place* places;
    const Span* spans;
    float* partial; // [n_rows, n_heads, n_splits, head_dim + 2]
    u32* arrived;   // [n_rows, blocks in x], zero before and after
    u32 n_heads, n_kv_heads, head_dim;
    float scale, cap;
    u32 window; // 0: none
    u32 split;  // positions of one block; 0: all
};

template <int E>
__device__ __forceinline__ void load(const bf16* from, bool mine, float (&to)[E]) {
    u32 words[E / 2] = {};
    if (mine) {
        if constexpr (E == 8) {
            uint4 v = __ldcg((const uint4*)from);
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else if constexpr (E == 4) {
            uint2 v = __ldcg((const uint2*)from);
            words[0] = v.x, words[1] = v.y;
        } else {
            words[0] = __ldcg((const u32*)from);
        }
    }
#pragma unroll
    for (int i = 0; i < E / 2; i++) to[2 * i] = first(words[i]), to[2 * i + 1] = second(words[i]);
}

// Softmax in progress: greatest score, sum of weights, weighted sum of values.
template <int E>
struct Softmax {
    float greatest, sum, values[E];
};

// Causal attention, one row and two query heads of a key-value head for each block;
// its warps share the positions, four at a time. Positions of a long past are split
// among blocks, and the last to arrive adds up. E: elements of a head for each lane.
template <int E>
__device__ __forceinline__ void attention(const Attention& a) {
    constexpr int WARPS = 16, HEADS = 2, AT_ONCE = 4;
    const float minus_infinity = __int_as_float(0xff800000);
    __shared__ float greatest[WARPS][HEADS], sums[WARPS][HEADS], values[WARPS][HEADS][E * 32];
    __shared__ u32 is_last;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 per_kv = a.n_heads / a.n_kv_heads, pairs = (per_kv + HEADS - 1) / HEADS;
    const u32 kv_head = blockIdx.x / pairs, head = kv_head * per_kv + blockIdx.x % pairs * HEADS;
    const u32 heads = min(per_kv - blockIdx.x % pairs * HEADS, (u32)HEADS);
    const Place place = a.places[blockIdx.z];
    const Span span = a.spans[place.span];
    const u32 end = place.position + 1;
    const u32 begin = a.window && end > a.window ? end - a.window : 0;
    const u32 split = a.split ? a.split : end - begin;
    const u32 n_splits = (end - begin + split - 1) / split;
    const u32 from = begin + blockIdx.y * split, to = min(from + split, end);
    const bool mine = lane * E < a.head_dim;
    const u64 row_width = (u64)(a.n_heads + 2 * a.n_kv_heads) * a.head_dim;
    const u64 base = ((u64)kv_head * span.capacity - span.first) * a.head_dim + lane * E;
    let_next_start();
    wait_for_previous();
    if (blockIdx.y >= n_splits) return;

    float q[HEADS][E];
    Softmax<E> state[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        u32 which = head + min((u32)h, heads - 1);
        load<E>(a.qkv + place.row * row_width + which * a.head_dim + lane * E, mine, q[h]);
        state[h].greatest = minus_infinity;
        state[h].sum = 0.0f;
#pragma unroll
        for (int i = 0; i < E; i++) state[h].values[i] = 0.0f;
    }
    for (u32 p = from + warp * AT_ONCE; p < to; p += WARPS * AT_ONCE) {
        float k[AT_ONCE][E], v[AT_ONCE][E];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            u64 at = base + (u64)min(p + j, to - 1) * a.head_dim;
            load<E>(span.keys + at, mine, k[j]);
            load<E>(span.values + at, mine, v[j]);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float score[AT_ONCE], most = state[h].greatest;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                score[j] = 0.0f;
#pragma unroll
                for (int i = 0; i < E; i++) score[j] += q[h][i] * k[j][i];
            }
#pragma unroll
            for (int offset = 16; offset > 0; offset /= 2)
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) score[j] += __shfl_xor_sync(0xffffffffu, score[j], offset);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                score[j] = p + j < to ? capped(score[j] * a.scale, a.cap) : minus_infinity;
                most = fmaxf(most, score[j]);
            }
            float keep = __expf(state[h].greatest - most);
            state[h].greatest = most;
            state[h].sum *= keep;
#pragma unroll
            for (int i = 0; i < E; i++) state[h].values[i] *= keep;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                float weight = __expf(score[j] - most);
                state[h].sum += weight;
#pragma unroll
                for (int i = 0; i < E; i++) state[h].values[i] += weight * v[j][i];
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (lane == 0) greatest[warp][h] = state[h].greatest, sums[warp][h] = state[h].sum;
#pragma unroll
        for (int i = 0; i < E; i++) values[warp][h][lane * E + i] = state[h].values[i];
    }
    __syncthreads();
    bf16* out = a.out + ((u64)place.row * a.n_heads + head) * a.head_dim;
    float* partial = a.partial + ((u64)blockIdx.z * a.n_heads + head) * gridDim.y * (a.head_dim + 2);
    for (u32 at = threadIdx.x; at < heads * a.head_dim; at += blockDim.x) {
        u32 h = at / a.head_dim, i = at % a.head_dim;
        float most = minus_infinity, sum = 0.0f, value = 0.0f;
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, greatest[w][h]);
        for (int w = 0; w < WARPS; w++) {
            float weight = __expf(greatest[w][h] - most);
            sum += weight * sums[w][h];
            value += weight * values[w][h][i];
        }
        if (n_splits == 1) {
            out[at] = narrow(value / sum);
            continue;
        }
        float* mine_of = partial + ((u64)h * gridDim.y + blockIdx.y) * (a.head_dim + 2);
        mine_of[2 + i] = value;
        if (i == 0) mine_of[0] = most, mine_of[1] = sum;
    }
    if (n_splits == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrived = a.arrived + blockIdx.z * gridDim.x + blockIdx.x;
        is_last = atomicAdd(arrived, 1) == n_splits - 1;
        if (is_last) *arrived = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (u32 at = threadIdx.x; at < heads * a.head_dim; at += blockDim.x) {
        u32 h = at / a.head_dim, i = at % a.head_dim;
        const float* parts = partial + (u64)h * gridDim.y * (a.head_dim + 2);
        float most = minus_infinity, sum = 0.0f, value = 0.0f;
        for (u32 s = 0; s < n_splits; s++) most = fmaxf(most, __ldcg(parts + s * (a.head_dim + 2)));
        for (u32 s = 0; s < n_splits; s++) {
            const float* part = parts + s * (a.head_dim + 2);
            float weight = __expf(__ldcg(part) - most);
            sum += weight * __ldcg(part + 1);
            value += weight * __ldcg(part + 2 + i);
        }
        out[at] = narrow(value / sum);
    }
}

extern "C" __global__ void __launch_bounds__(512) attention_64(Attention a) { attention<2>(a); }
extern "C" __global__ void __launch_bounds__(512) attention_128(Attention a) { attention<4>(a); }
extern "C" __global__ void __launch_bounds__(512) attention_256(Attention a) { attention<8>(a); }

// ---- The most likely tokens ----

// The greatest logit, the first token that has it, and Σ exp(logit − greatest).
struct Best {
    float logit, sum;
    u32 token, unused;
};

__device__ Best better(Best a, Best b) {
    bool other = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    Best best = other ? b : a;
    const Best less = other ? a : b;
    if (less.sum > 0.0f) best.sum += less.sum * expf(less.logit - best.logit);
    return best;
}

__device__ Best block_best(Best mine) {
    __shared__ Best warps[32];
    for (int offset = 16; offset > 0; offset /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(0xffffffffu, mine.logit, offset);
        other.sum = __shfl_xor_sync(0xffffffffu, mine.sum, offset);
        other.token = __shfl_xor_sync(0xffffffffu, mine.token, offset);
        mine = better(mine, other);
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) mine = warp ? better(mine, warps[warp]) : warps[0];
    return mine;
}

// Each block of a row of logits takes a stretch of it; `out` is [rows, blocks in x].
extern "C" __global__ void __launch_bounds__(256) best_of_parts(Simple s) {
    let_next_start();
    wait_for_previous();
    const float* row = (const float*)s.from + (u64)blockIdx.y * s.width;
    const u32 stretch = (s.width + gridDim.x - 1) / gridDim.x;
    const u32 end = min((blockIdx.x + 1) * stretch, s.width);
    Best mine = {__int_as_float(0xff800000), 0.0f, 0xffffffffu, 0};
    for (u32 i = blockIdx.x * stretch + threadIdx.x; i < end; i += blockDim.x) {
        Best one = {row[i], 1.0f, i, 0};
        mine = better(mine, one);
    }
    mine = block_best(mine);
    if (threadIdx.x == 0) ((Best*)s.out)[blockIdx.y * gridDim.x + blockIdx.x] = mine;
}

// `from` is [rows, n].
extern "C" __global__ void __launch_bounds__(32) best(Simple s) {
    let_next_start();
    wait_for_previous();
    const Best* parts = (const Best*)s.from + blockIdx.x * s.n;
    Best mine = {__int_as_float(0xff800000), 0.0f, 0xffffffffu, 0};
    for (u32 i = threadIdx.x; i < s.n; i += 32) mine = better(mine, parts[i]);
    mine = block_best(mine);
    if (threadIdx.x == 0) ((Best*)s.out)[blockIdx.x] = mine;
}

struct Candidate {
    u32 token;
    float logit;
};

struct Candidates {
    const float* logits; // [rows, width]
    const Best* best;    // [rows]
    const u32* wanted;   // [rows]
    Candidate* out;      // [rows, room]
    u32* found;          // [rows]
    u32 width, room;
};

// At least as many as are wanted of the greatest of a row's logits, in no order, and
// whatever is as great. `found` is more than there is room for if there are too many,
// or too few near the greatest.
extern "C" __global__ void __launch_bounds__(1024) candidates(Candidates c) {
    constexpr u32 BINS = 512;
    constexpr float BINS_PER_UNIT = 32.0f; // so far below the greatest as is looked at
    __shared__ u32 counts[BINS], last, found;
    let_next_start();
    wait_for_previous();
    const float* row = c.logits + (u64)blockIdx.x * c.width;
    const float greatest = c.best[blockIdx.x].logit;
    // Not a number is in no bin.
    auto bin = [&](float x) {
        float below = (greatest - x) * BINS_PER_UNIT;
        return below < (float)BINS ? (u32)below : BINS;
    };
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) counts[i] = 0;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < c.width; i += blockDim.x) {
        u32 at = bin(row[i]);
        if (at < BINS) atomicAdd(&counts[at], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 sum = 0;
        for (last = 0; last < BINS; last++) {
            sum += counts[last];
            if (sum >= c.wanted[blockIdx.x]) break;
        }
        if (last == BINS) found = c.room + 1;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < c.width && last < BINS; i += blockDim.x) {
        if (bin(row[i]) > last) continue;
        u32 at = atomicAdd(&found, 1);
        if (at < c.room) c.out[(u64)blockIdx.x * c.room + at] = {i, row[i]};
    }
    __syncthreads();
    if (threadIdx.x == 0) c.found[blockIdx.x] = found;
}
