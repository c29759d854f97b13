use super::{activations::Activations, isa::Portable, product::split, *};
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

fn check(ours: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }
}

/// What is left of activations in 8 bits with a scale for every `group`.
fn rounded(x: &[f32], group: usize) -> Vec<f32> {
    let block = |x: &[f32]| -> Vec<f32> {
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = 1.0 / scale;
        x.iter()
            .map(|v| (v * inverse).round_ties_even() * scale)
            .collect()
    };
    x.chunks(group).flat_map(block).collect()
}

/// [`Isa::dot`] of bytes, from these sums on.
struct Dot<'a> {
    bytes: [&'a [u8; 32]; 2],
    from: i32,
    to: &'a mut [f32; 8],
}

impl Kernel for Dot<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, isa: impl Isa) {
        let [a, b] = self.bytes;
        let sums = isa.dot(isa.ints(self.from), isa.bytes(a), isa.bytes(b));
        *self.to = isa.array(isa.ints_to_floats(sums));
    }
}

fn product(x: &[f32], m: usize, weights: Weights<'_>) -> Vec<f32> {
    products(x, m, &[weights]).remove(0)
}

/// The product without any instruction set's own operations.
fn portable(x: &[f32], m: usize, weights: Weights<'_>) -> Vec<f32> {
    let mut out = vec![0.0; m * weights.out_width];
    let x = Activations::new(x, weights.in_width, &[weights.format]);
    for columns in split(&x, &weights, &mut out) {
        columns.run::<false>(Portable::<false>);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn quantised_products_are_those_of_the_dequantised_matrix_and_rounded_activations(
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
        let together = product(&x, m, weights);
        check(&together, &expected(&rounded(&x, block), &dense, k), 2e-6 * k as f32);
        // Half a step of 1/127 for each element, of which few go the same way.
        check(&together, &expected(&x, &dense, k), 0.02 * (k as f32).sqrt());
        let alone: Vec<f32> = x.chunks(k).flat_map(|x| product(x, 1, weights)).collect();
        prop_assert_eq!(&together, &alone, "bit for bit");
        check(&portable(&x, m, weights), &together, 2e-6 * k as f32);
        let rows = unpacked_rows(&weights, &[n as u32 - 1, 0]);
        prop_assert_eq!(&rows[..k], &dense[(n - 1) * k..]);
        prop_assert_eq!(&rows[k..], &dense[..k]);
    }

    #[test]
    fn what_is_not_a_number_stays_so(
        format in 0usize..8, blocks in 1usize..4, at: proptest::sample::Index, infinite: bool,
    ) {
        let (dtype, block) = GGML[format];
        let k = blocks * block;
        let matrix = Tensor::from_vec(numbers(9 * k, 1), (9, k), &Device::Cpu).expect("matrix");
        let bytes = QTensor::quantize(&matrix, dtype).expect("quantise");
        let bytes = bytes.data().expect("bytes");
        let format = Format::of_ggml(dtype).expect("known");
        let weights = Weights { format, bytes: &bytes, out_width: 9, in_width: k };
        let (mut x, sound) = (numbers(2 * k, 2), numbers(2 * k, 2));
        x[at.index(k)] = if infinite { f32::INFINITY } else { f32::NAN };
        let (broken, sound) = (product(&x, 2, weights), product(&sound, 2, weights));
        prop_assert!(broken[..9].iter().all(|v| v.is_nan()));
        prop_assert_eq!(&broken[9..], &sound[9..]);
    }

    #[test]
    fn rows_do_not_depend_on_the_batch_and_widths_may_be_odd(
        m in 2usize..70, n in 1usize..40, k in 1usize..600, seed: u64,
    ) {
        let dense = numbers(n * k, seed);
        let bytes: Vec<u8> = dense.iter().flat_map(|v| v.to_le_bytes()).collect();
        let weights = Weights { format: Format::F32, bytes: &bytes, out_width: n, in_width: k };
        let x = numbers(m * k, seed ^ 1);
        let together = product(&x, m, weights);
        check(&together, &expected(&x, &dense, k), 2e-6 * k as f32);
        let alone: Vec<f32> = x.chunks(k).flat_map(|x| product(x, 1, weights)).collect();
        prop_assert_eq!(&together, &alone, "bit for bit");
        check(&portable(&x, m, weights), &together, 2e-6 * k as f32);
    }

    #[test]
    fn several_matrices_at_once_are_each_alone(m in 1usize..9, k in 1usize..9, seed: u64) {
        let k = 256 * k;
        let (w, x) = (numbers(24 * k, seed), numbers(m * k, seed ^ 1));
        let dense: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = Tensor::from_vec(w, (24, k), &Device::Cpu).expect("matrix");
        let packed = QTensor::quantize(&matrix, GgmlDType::Q6K).expect("quantise");
        let packed = packed.data().expect("bytes");
        let weights = |format, bytes| Weights { format, bytes, out_width: 24, in_width: k };
        let (a, b) = (weights(Format::F32, &dense[..]), weights(Format::Q6K, &packed[..]));
        let together = products(&x, m, &[a, b, a]);
        prop_assert_eq!(together, vec![product(&x, m, a), product(&x, m, b), product(&x, m, a)]);
    }

    #[test]
    fn dots_are_exact(a: [u8; 32], b: [i8; 32], from in -1000i32..1000) {
        let b = b.map(|b| b.max(-127));
        let bytes = [&a, bytemuck::cast_ref(&b)];
        let mut sums = [0.0; 8];
        dispatch(Dot { bytes, from, to: &mut sums });
        for (lane, sum) in sums.iter().enumerate() {
            let products = (4 * lane..4 * lane + 4).map(|i| i32::from(a[i]) * i32::from(b[i]));
            prop_assert_eq!(*sum, (from + products.sum::<i32>()) as f32);
        }
        let mut portably = [0.0; 8];
        let dot = Dot { bytes, from, to: &mut portably };
        dot.run::<false>(Portable::<false>);
        prop_assert_eq!(sums, portably);
    }
}
