//! Sums over vectors, in a fixed order: the same whatever the batch.

/// Sum of products in 16 lanes: accurate and fast.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// `‖x‖`.
pub(super) fn norm(x: &[f32]) -> f32 {
    dot(x, x).sqrt()
}

/// `‖v‖` of any `v` with f32's range, whose square may be beyond it.
pub(super) fn norm_f64(v: &[f32]) -> f64 {
    v.iter().map(|&c| f64::from(c).powi(2)).sum::<f64>().sqrt()
}

/// `v / ‖v‖`.
pub(super) fn unit(v: &[f32]) -> Vec<f32> {
    let norm = norm_f64(v);
    v.iter().map(|&c| (f64::from(c) / norm) as f32).collect()
}

/// Mean and unbiased standard deviation.
pub(super) fn mean_and_std(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let squares: f32 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}
