use std::collections::HashMap;

use candle_core::safetensors;

use super::*;

const SHAPE: (usize, usize) = (24, 40);

/// What a head of 16-bit floats makes of three rows, in bits, and the head.
fn read(stored: DType, map: bool, halves: bool) -> (Vec<u32>, Matrix) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.safetensors");
    let tensor = |n: usize, dims: (usize, usize)| {
        let values = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0);
        Tensor::from_iter(values, &Device::Cpu)
            .and_then(|t| t.reshape(dims))
            .expect("tensor")
    };
    let weight = tensor(SHAPE.0 * SHAPE.1, SHAPE).to_dtype(stored);
    let tensors = HashMap::from([("lm_head.weight", weight.expect("converts"))]);
    safetensors::save(&tensors, &path).expect("saves");
    let files = SafetensorsFiles::open(&[path], map).expect("opens");
    let scheme = Scheme::HuggingFace {
        sandwich_norms: false,
    };
    let target = Target {
        dtype: DType::F32,
        device: Device::Cpu,
        quantize: None,
        dequantize: false,
        halves,
    };
    let weight = Loader::new(&files, scheme, target)
        .embedding(Part::Head, SHAPE)
        .expect("loads");
    let head = Linear { weight, bias: None };
    let y = head.forward(&tensor(3 * SHAPE.1, (3, SHAPE.1)));
    let y: Vec<f32> = y.and_then(|y| y.flatten_all()?.to_vec1()).expect("product");
    let matrix = head.weight;
    (y.into_iter().map(f32::to_bits).collect(), matrix)
}

#[test]
fn matrices_of_16_bit_floats_stay_so_and_give_the_same_bits() {
    for stored in [DType::BF16, DType::F16] {
        let (expanded, matrix) = read(stored, false, false);
        assert!(matches!(&matrix, Matrix::Dense(t) if t.dtype() == DType::F32));
        let (copied, matrix) = read(stored, false, true);
        assert!(matches!(&matrix, Matrix::Dense(t) if t.dtype() == stored));
        let (mapped, matrix) = read(stored, true, true);
        assert!(matches!(&matrix, Matrix::Packed(p) if p.suits(DType::F32, false, true)));
        let (small, matrix) = read(stored, true, false);
        assert!(matches!(&matrix, Matrix::Dense(t) if t.dtype() == DType::F32));
        assert!(expanded.iter().any(|bits| *bits != 0));
        assert_eq!([&copied, &mapped, &small], [&expanded; 3], "{stored:?}");
    }
}
