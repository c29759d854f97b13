//! `FindSimilarFeatures` and `EncodeActivations` without gRPC, on an SAE of a real size, beside
//! what the machine can do: memory read once, and matrix products of data in memory.
//!
//!     cargo bench -p steering-registry --bench scans -- 65536 2304
//!
//! Without sizes it says so and ends, so that `cargo test --benches` passes.

use std::{
    hint::black_box,
    io::{BufWriter, Write},
    time::{Duration, Instant},
};

use ndarray::{Array2, linalg::general_mat_mul};
use rayon::prelude::*;
use steering_proto::payload::InputNormalization;
use steering_registry::{
    canonical::{Architecture, Layout},
    scan::{Input, Query, SaeFile, encode, similar},
    vectors::{Object, examine},
};

const TOKENS: usize = 128;
const ROUNDS: usize = 7;
/// Rows multiplied at once where only the product is measured; as a scan has them.
const PRODUCT_ROWS: usize = 224;

fn main() {
    let sizes: Vec<u32> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let &[d_sae, d_in] = sizes.as_slice() else {
        println!("usage: scans D_SAE D_IN");
        return;
    };
    let folder = tempfile::tempdir().expect("folder");
    let sae = write_sae(folder.path(), d_sae, d_in);
    let matrix_bytes = f64::from(d_sae) * f64::from(d_in) * 4.0;
    println!(
        "{d_sae} features of {d_in}, {} threads",
        rayon::current_num_threads()
    );

    let memory = vec![1.0_f32; (matrix_bytes / 4.0) as usize];
    let query: Vec<f32> = random(1).take(d_in as usize).collect();
    let activations: Vec<f32> = random(2).take(TOKENS * d_in as usize).collect();
    let floor = best(|| {
        black_box(memory.par_chunks(1 << 16).map(sum).sum::<f32>());
    });
    let scan = best(|| {
        let query = Query {
            direction: &query,
            except: None,
            top_k: 10,
        };
        black_box(similar(&sae, query).expect("scan"));
    });
    let rate = |time: Duration| matrix_bytes / time.as_secs_f64() / 1e9;
    println!(
        "memory read once     {floor:>10.1?}  {:.1} GB/s",
        rate(floor)
    );
    println!(
        "similar              {scan:>10.1?}  {:.1} GB/s, {:.2} x",
        rate(scan),
        ratio(scan, floor)
    );

    let product = best(|| products(&activations, &memory, d_in as usize));
    let encoding = best(|| {
        let input = Input {
            activations: &activations,
            normalization: InputNormalization::None,
            top_k: 10,
        };
        black_box(encode(&sae, input).expect("scan"));
    });
    let flops = 2.0 * TOKENS as f64 * matrix_bytes / 4.0;
    let rate = |time: Duration| flops / time.as_secs_f64() / 1e9;
    println!(
        "product in memory    {product:>10.1?}  {:.1} GFLOP/s",
        rate(product)
    );
    println!(
        "encode {TOKENS} tokens    {encoding:>10.1?}  {:.1} GFLOP/s, {:.0} % of it",
        rate(encoding),
        100.0 / ratio(encoding, product)
    );
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// The shortest of some runs: others use the machine too.
fn best(mut work: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..ROUNDS).map(run).min().unwrap_or_default()
}

fn sum(values: &[f32]) -> f32 {
    let (lanes, _) = values.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for lane in lanes {
        for (sum, value) in sums.iter_mut().zip(lane) {
            *sum += value;
        }
    }
    sums.iter().sum()
}

/// The products of an encoding, of rows in memory, without anything else.
fn products(activations: &[f32], rows: &[f32], width: usize) {
    let x = Array2::from_shape_vec((TOKENS, width), activations.to_vec()).expect("shape");
    rows.par_chunks(PRODUCT_ROWS * width).for_each(|block| {
        let block =
            ndarray::ArrayView2::from_shape((block.len() / width, width), block).expect("shape");
        let mut out = Array2::zeros((TOKENS, block.nrows()));
        general_mat_mul(1.0, &x, &block.t(), 0.0, &mut out);
        black_box(out);
    });
}

/// A JumpReLU SAE of random numbers of which about one in forty fires.
fn write_sae(folder: &std::path::Path, d_sae: u32, d_in: u32) -> SaeFile {
    let (layout, header) = Layout::new(
        Architecture::JumpRelu,
        InputNormalization::None,
        d_in,
        d_sae,
    );
    let path = folder.join("sae");
    let mut file = BufWriter::new(std::fs::File::create(&path).expect("file"));
    file.write_all(&header).expect("write");
    let rows: Vec<f32> = random(0).take(d_in as usize * 64).collect();
    let rows: &[u8] = bytemuck::cast_slice(&rows);
    let row_len = d_in as usize * 4;
    for i in 0..2 * d_sae as usize {
        file.write_all(&rows[(i % 63) * row_len..][..row_len])
            .expect("write");
    }
    let threshold = 2.0 * (f64::from(d_in).sqrt() / 3.0) as f32;
    for _ in 0..d_sae {
        file.write_all(bytemuck::cast_slice(&[0.0, threshold]))
            .expect("write");
    }
    file.write_all(&vec![0; row_len]).expect("write");
    file.flush().expect("write");
    let open = || std::fs::File::open(&path).expect("file");
    let (digest, sums) = examine(open()).expect("read");
    SaeFile {
        object: Object::new(digest, open(), sums).into(),
        layout,
    }
}

/// Numbers from −1 to 1.
fn random(seed: u32) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / f32::from_bits(0x4b00_0000) - 1.0
    })
}
