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
