//! Tokens per second of a model's forward pass, without sampling:
//! `cargo run --release -p steering-worker --example decode_speed -- MODEL.gguf`

use std::{fs::File, io::BufReader, path::Path, time::Instant};

use candle_core::{Device, Error, Result, quantized::gguf_file::Content};
use steering_worker::model::{
    Batch, Chunk, LoadOptions, Logits, Model, NoHook, Precision, compute_on_this_thread,
};

fn main() -> Result<()> {
    compute_on_this_thread();
    let path = std::env::args()
        .nth(1)
        .ok_or_else(|| Error::Msg("give a GGUF file".to_owned()))?;
    let only = std::env::args().nth(2);
    let content = Content::read(&mut BufReader::new(File::open(&path)?))?;
    let options = LoadOptions {
        precision: Precision::F32,
        quantize: None,
        dequantize: false,
        device: Device::Cpu,
    };
    let model = Model::load_gguf(Path::new(&path), content, &options).map_err(Error::wrap)?;
    for (name, prompt, sequences, steps) in [
        ("prompt 128", 128, 1, 0),
        ("prompt 512", 512, 1, 0),
        ("decode x1", 8, 1, 32),
        ("decode x4", 8, 4, 16),
        ("decode x16", 8, 16, 8),
    ] {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut rates: Vec<f64> = (0..5)
            .map(|_| rate(&model, prompt, sequences, steps))
            .collect::<Result<_>>()?;
        rates.sort_by(f64::total_cmp);
        println!(
            "{name}: {:.1} tok/s (median of 5, {:.1} to {:.1})",
            rates[2], rates[0], rates[4]
        );
    }
    Ok(())
}

/// Tokens per second of the prompt, or of `steps` decoding steps after it.
fn rate(model: &Model, prompt: usize, sequences: usize, steps: usize) -> Result<f64> {
    let mut cache = model.new_cache(sequences);
    let mut step = |start: usize, n: usize| {
        let chunk = |slot| Chunk {
            slot,
            start,
            tokens: (0..n).map(|i| (1000 + 7 * i + slot) as u32).collect(),
            logits: Logits::Last,
            shared: None,
        };
        let batch = Batch {
            chunks: (0..sequences).map(chunk).collect(),
        };
        model.forward(&batch, &mut cache, &mut NoHook).map(drop)
    };
    let began = Instant::now();
    step(0, prompt)?;
    if steps == 0 {
        return Ok(prompt as f64 / began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    for i in 0..steps {
        step(prompt + i, 1)?;
    }
    Ok((sequences * steps) as f64 / began.elapsed().as_secs_f64())
}
