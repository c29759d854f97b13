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

