//! The GPU path against the CPU's and against itself. Needs a GPU:
//! `cargo test --release -p steering-worker --features cuda --test cuda`.

#![cfg(feature = "cuda")]

mod support;

#[path = "cuda/edits.rs"]
mod edits;
#[path = "cuda/scores.rs"]
mod scores;

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, safetensors};
use edits::edits;
use steering_proto::{
    HookPoint, Site,
    intervention::{Edit, Intervention, Positions, StrengthUnit, Token},
    payload::Vector,
    readout::{Probe, Readout, Source},
};
use steering_worker::{
    model::{Batch, Chunk, LoadOptions, Logits, Model, Precision, Scores, Shared, cuda_device},
    steering::{Participant, Program, ProgramSpec, SteeringState, StepHook, Tally},
};
use support::{
    FAMILIES, Fixture,
    decode::{Run, decode, decode_alone},
};

/// Those that the kernels take.
const FITTING: [&str; 5] = ["gemma2", "gemma3", "llama_rope3", "smollm2", "qwen3"];

fn gpu() -> Device {
    cuda_device(0).expect("a GPU")
}

fn options(device: &Device) -> LoadOptions {
    LoadOptions {
        precision: Precision::Bf16,
        quantize: None,
        dequantize: false,
        map: true,
        device: device.clone(),
    }
}

fn load(fixture: &Fixture, device: &Device) -> Model {
    fixture.model("model/config.json", &options(device))
}

/// A sequence's part of a step.
struct Part<'a> {
    program: &'a Program,
    tokens: &'a [u32],
    logits: Logits,
    shared: Option<Shared>,
}

/// Reads parts from position 0 on in one step.
fn step(model: &Model, parts: &[Part<'_>]) -> (Scores, Vec<Vec<Tally>>) {
    let chunk = |(slot, part): (usize, &Part<'_>)| Chunk {
        slot,
        start: 0,
        tokens: part.tokens.to_vec(),
        logits: part.logits,
        shared: part.shared,
    };
    let batch = Batch {
        chunks: parts.iter().enumerate().map(chunk).collect(),
    };
    let state = |part: &Part<'_>| SteeringState::new(part.program, part.tokens.len());
    let mut states: Vec<_> = parts.iter().map(state).collect();
    let participants = parts.iter().zip(&mut states).map(|(part, state)| {
        let token = |(position, &id): (u32, &u32)| Token {
            id,
            position,
            generated: false,
            special: false,
        };
        let tokens = (0..).zip(part.tokens).map(token).collect();
        Participant::new(part.program, state, tokens)
    });
    let mut hook = StepHook::new(participants.collect());
    let mut scores = Scores::default();
    let mut cache = model.new_cache(parts.len());
    let read = model.forward(&batch, &mut cache, &mut hook, &mut scores);
    read.expect("forward");
    let tallies = parts.iter().zip(&states);
    let tallies = tallies.map(|(part, state)| state.tallies(part.program));
    (scores, tallies.collect())
}

fn alone(model: &Model, program: &Program, tokens: &[u32]) -> (Vec<f32>, Vec<Tally>) {
    let part = Part {
        program,
        tokens,
        logits: Logits::From(0),
        shared: None,
    };
    let (scores, mut tallies) = step(model, &[part]);
    (scores.logits, tallies.remove(0))
}

fn tokens(model: &Model, n: usize, seed: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size;
    (0..n)
        .map(|i| ((i * i * 7 + i * 31 + seed * 97 + 11) % vocabulary) as u32)
        .collect()
}

fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().zip(expected);
    let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (a, b)| {
        (error + (a - b).powi(2), size + b.powi(2))
    });
    (error / size).sqrt()
}

fn vector(width: usize, seed: usize) -> Vec<f32> {
    (0..width)
        .map(|i| ((i * 31 + seed * 17 + i * i * 3) % 64) as f32 / 64.0 - 0.5)
        .collect()
}

fn compile(interventions: &[Intervention]) -> Program {
    let spec = ProgramSpec {
        interventions,
        ..ProgramSpec::default()
    };
    Program::compile(&spec).expect("compiles")
}

#[test]
fn logits_are_as_near_the_reference_as_those_of_the_cpu_in_bf16() {
    let device = gpu();
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let (cpu, gpu) = (load(&fixture, &Device::Cpu), load(&fixture, &device));
        // Others' rows are no whole reads of 16 bytes: the tensor library has them.
        let fits = FITTING.contains(&family);
        assert_eq!(gpu.prefers_top(), fits, "{family}");
        let cases = &fixture.cases.cases;
        let mut runs: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(slot, case)| Run::new(&fixture, case, slot))
            .collect();
        decode(&gpu, &mut gpu.new_cache(cases.len()), &mut runs, 3);
        for (case, together) in cases.iter().zip(&runs) {
            let golden = fixture.logits[&case.name].to_vec2::<f32>().expect("f32");
            let on_cpu = decode_alone(&cpu, &fixture, case).relative_error(&golden);
            let on_gpu = decode_alone(&gpu, &fixture, case).relative_error(&golden);
            let in_chunks = together.relative_error(&golden);
            println!(
                "{family}/{}: CPU {on_cpu:.4}, GPU {on_gpu:.4}, {in_chunks:.4}",
                case.name
            );
            for error in [on_gpu, in_chunks] {
                assert!(error <= 1.5 * on_cpu + 0.002, "{family}/{}", case.name);
            }
        }
    }
}

/// Qwen 2 has biases; its fixture's MLP is cut to a width that the kernels take.
#[test]
fn biases_are_added() {
    let fixture = Fixture::load("qwen2");
    let folder = tempfile::tempdir().expect("folder");
    let mut tensors = HashMap::new();
    for file in fixture.weights() {
        tensors.extend(safetensors::load(file, &Device::Cpu).expect("weights"));
    }
    for (name, tensor) in &mut tensors {
        let axis = match name.rsplit('.').nth(1) {
            Some("gate_proj" | "up_proj") => 0,
            Some("down_proj") => 1,
            _ => continue,
        };
        let cut = tensor.narrow(axis, 0, 48).and_then(|t| t.contiguous());
        *tensor = cut.expect("cut");
    }
    let weights = folder.path().join("model.safetensors");
    safetensors::save(&tensors, &weights).expect("saved");
    let config = std::fs::read_to_string(fixture.dir.join("model/config.json")).expect("read");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["intermediate_size"] = 48.into();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let load = |device| {
        let model = Model::load_hf(&path, std::slice::from_ref(&weights), &options(device));
        model.expect("loads")
    };
    let (cpu, gpu) = (load(&Device::Cpu), load(&gpu()));
    assert!(gpu.prefers_top());
    for n in [9, 40] {
        let prompt = tokens(&cpu, n, 1);
        let (expected, _) = alone(&cpu, &Program::default(), &prompt);
        let off = error(&alone(&gpu, &Program::default(), &prompt).0, &expected);
        assert!(off < 0.05, "{n} tokens: off by {off}");
    }
}

#[test]
fn every_edit_does_what_it_does_on_the_cpu() {
    let device = gpu();
    for family in ["gemma2", "qwen3"] {
        let fixture = Fixture::load(family);
        let (cpu, gpu) = (load(&fixture, &Device::Cpu), load(&fixture, &device));
        let prompt = tokens(&gpu, 13, 1);
        let (unsteered, _) = alone(&gpu, &Program::default(), &prompt);
        let all = edits(&gpu);
        for edits in all.chunks(1).chain([&all[..]]) {
            let program = compile(edits);
            let (expected, on_cpu) = alone(&cpu, &program, &prompt);
            let (got, on_gpu) = alone(&gpu, &program, &prompt);
            let what = format!("{family} {} {}", edits[0].hook, edits[0].describe());
            let (off, effect) = (error(&got, &expected), error(&got, &unsteered));
            println!("{what}: off by {off:.4}, effect {effect:.4}");
            assert!(
                off < 0.04 && off < effect.max(0.02),
                "{what}: {off} {effect}"
            );
            for (cpu, gpu) in on_cpu.iter().zip(&on_gpu) {
                assert_eq!(cpu.positions_touched, gpu.positions_touched, "{what}");
                let (a, b) = (cpu.mean_relative_delta(), gpu.mean_relative_delta());
                assert!((a - b).abs() <= 0.05 * a.abs() + 1e-3, "{what}: {a} {b}");
            }
        }
    }
}

#[test]
fn what_the_device_edits_equals_what_the_hook_edits() {
    let fixture = Fixture::load("gemma2");
    let gpu = load(&fixture, &gpu());
    let prompt = tokens(&gpu, 9, 2);
    let edits = edits(&gpu);
    // A probe at the same hook points makes the hook see the activations.
    let probe = |edit: &Intervention| Probe {
        name: String::new(),
        readout: Readout {
            hook: edit.hook,
            source: Source::Direction {
                vector: Arc::new(Vector {
                    name: String::new(),
                    values: vector(gpu.width(edit.hook.site), 1),
                }),
                bias: 0.0,
            },
        },
    };
    let probes: Vec<_> = edits.iter().map(probe).collect();
    let seen = ProgramSpec {
        interventions: &edits,
        probes: &probes,
        ..ProgramSpec::default()
    };
    let seen = Program::compile(&seen).expect("compiles");
    let (by_device, device_tallies) = alone(&gpu, &compile(&edits), &prompt);
    let (by_hook, hook_tallies) = alone(&gpu, &seen, &prompt);
    let off = error(&by_device, &by_hook);
    assert!(off < 0.02, "{off}");
    for (a, b) in device_tallies.iter().zip(&hook_tallies) {
        assert_eq!(a.positions_touched, b.positions_touched);
    }
}

#[test]
fn few_rows_get_the_same_bits_in_any_company() {
    let device = gpu();
    for family in FITTING {
        let fixture = Fixture::load(family);
        let gpu = load(&fixture, &device);
        let edited = compile(&edits(&gpu));
        let plain = Program::default();
        let prompts: Vec<_> = (0..5).map(|seed| tokens(&gpu, 3, seed)).collect();
        let part = |(i, tokens)| Part {
            program: if i % 2 == 0 { &edited } else { &plain },
            tokens,
            logits: Logits::From(0),
            shared: None,
        };
        let parts: Vec<_> = prompts
            .iter()
            .map(Vec::as_slice)
            .enumerate()
            .map(part)
            .collect();
        let (together, _) = step(&gpu, &parts);
        let size = 3 * gpu.config().vocab_size;
        for (i, part) in parts.iter().enumerate() {
            let (by_itself, _) = alone(&gpu, part.program, part.tokens);
            let same = by_itself == together.logits[i * size..(i + 1) * size];
            assert!(same, "{family}, sequence {i}");
        }
        let (edited, plain) = (&together.logits[..size], &together.logits[size..2 * size]);
        assert_ne!(edited, plain);
    }
}

#[test]
fn many_rows_stay_near_few() {
    let device = gpu();
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let gpu = load(&fixture, &device);
        let edited = compile(&edits(&gpu));
        let prompts: Vec<_> = (0..30).map(|seed| tokens(&gpu, 3, seed)).collect();
        let part = |tokens| Part {
            program: &edited,
            tokens,
            logits: Logits::From(0),
            shared: None,
        };
        let parts: Vec<_> = prompts.iter().map(Vec::as_slice).map(part).collect();
        let (together, _) = step(&gpu, &parts);
        let size = 3 * gpu.config().vocab_size;
        for (part, got) in parts.iter().zip(together.logits.chunks_exact(size)) {
            let off = error(got, &alone(&gpu, part.program, part.tokens).0);
            assert!(off < 0.03, "{family}: {off}");
        }
    }
}

#[test]
fn chunks_that_share_layers_get_the_same_bits() {
    let device = gpu();
    for family in FITTING {
        let fixture = Fixture::load(family);
        let gpu = load(&fixture, &device);
        let n_layers = gpu.config().layers.len();
        let prompt = tokens(&gpu, 5, 4);
        let at = |layer: usize, seed| {
            let hook = HookPoint {
                layer,
                site: Site::ResidPost,
            };
            let edit = Edit::Add {
                vector: Arc::new(Vector {
                    name: String::new(),
                    values: vector(gpu.config().d_model, seed),
                }),
                strength: 1.0,
                unit: StrengthUnit::Raw,
            };
            let positions = Positions::all();
            compile(&[Intervention {
                hook,
                edit,
                positions,
                gate: None,
            }])
        };
        let programs = [Program::default(), at(0, 1), at(n_layers - 1, 2)];
        let shared = [None, Some(1), Some(n_layers)];
        let part = |(program, layers): (_, Option<usize>)| Part {
            program,
            tokens: &prompt,
            logits: Logits::From(0),
            shared: layers.map(|layers| Shared { leader: 0, layers }),
        };
        let parts: Vec<_> = programs.iter().zip(shared).map(part).collect();
        let (together, tallies) = step(&gpu, &parts);
        let size = prompt.len() * gpu.config().vocab_size;
        for (i, program) in programs.iter().enumerate() {
            let (by_itself, tally) = alone(&gpu, program, &prompt);
            let same = by_itself == together.logits[i * size..(i + 1) * size];
            assert!(same, "{family}, chunk {i}");
            assert_eq!(tally, tallies[i], "{family}, chunk {i}");
        }
    }
}
