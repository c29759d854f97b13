use super::*;
use candle_core::{Device, Tensor, quantized::QTensor};
use proptest::prelude::*;

const GGML: [(GgmlDType, usize); 8] = [
    (GgmlDType::Q4_0, 32),
    (GgmlDType::Q4_1, 32),
    (GgmlDType::Q5_0, 32),
    (GgmlDType::Q5_1, 32),
    (GgmlDType::Q8_0, 32),
    (GgmlDType::Q4K, 256),
    (GgmlDType::Q5K, 256),
    (GgmlDType::Q6K, 256),
];

pub(super) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Products in f64 of what candle makes of the stored numbers.
fn expected(x: &[f32], dense: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| -> f32 {
        x.iter()
            .zip(w)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>() as f32
    };
    x.chunks(k)
        .flat_map(|x| dense.chunks(k).map(move |w| dot(x, w)))
        .collect()
}

fn check(ours: &[f32], expected: &[f32], k: usize) {
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-6 * k as f32, "{a} {b}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn quantised_products_are_those_of_the_dequantised_matrix(
        format in 0usize..8, m in 1usize..70, n in 1usize..40, blocks in 1usize..12, seed: u64,
    ) {
        let (dtype, block) = GGML[format];
        let k = blocks * block;
        let matrix = Tensor::from_vec(numbers(n * k, seed), (n, k), &Device::Cpu).expect("matrix");
        let tensor = QTensor::quantize(&matrix, dtype).expect("quantise");
        let dense = tensor.dequantize(&Device::Cpu).expect("dequantise");
        let dense = dense.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
        let x = numbers(m * k, seed ^ 1);
        let bytes = tensor.data().expect("bytes");
        let weights = Weights {
            format: Format::of_ggml(dtype).expect("known"),
            bytes: &bytes,
            out_width: n,
            in_width: k,
        };
        check(&product(&x, m, &weights), &expected(&x, &dense, k), k);
    }

    #[test]
    fn rows_do_not_depend_on_the_batch_and_widths_may_be_odd(
        m in 2usize..70, n in 1usize..40, k in 1usize..600, seed: u64,
    ) {
        let dense = numbers(n * k, seed);
        let bytes: Vec<u8> = dense.iter().flat_map(|v| v.to_le_bytes()).collect();
        let weights = Weights { format: Format::F32, bytes: &bytes, out_width: n, in_width: k };
        let x = numbers(m * k, seed ^ 1);
        let together = product(&x, m, &weights);
        check(&together, &expected(&x, &dense, k), k);
        let alone: Vec<f32> = x.chunks(k).flat_map(|x| product(x, 1, &weights)).collect();
        prop_assert_eq!(&together, &alone, "bit for bit");
        let mut scalar = vec![0.0; n * m];
        Columns { x: &pad_rows(&x, k), m, weights: &weights, first: 0, out: &mut scalar }
            .run::<false>();
        check(&transpose(&scalar, n, m), &together, k);
    }
}
