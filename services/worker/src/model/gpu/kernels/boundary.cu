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

