//! Logits against Hugging Face transformers with the workshop notebook's hooks.
//! The references are made by `tests/golden/generate.py`.

mod support;

use steering_worker::{
    model::{LoadOptions, Precision},
    steering::Program,
};
use support::{
    FAMILIES, Fixture,
    decode::{Run, decode, decode_alone},
    f32_on_cpu,
};

/// Largest difference allowed between our logits and the reference's.
const TOLERANCE: f32 = 1e-4;

fn check(fixture: &Fixture, family: &str, run: &Run<'_>) {
    let name = &run.case.name;
    let expected = fixture.logits[name].to_vec2::<f32>().expect("f32");
    let error = run.difference(&expected);
    assert!(
        error <= TOLERANCE,
        "{family}/{name}: logits differ by {error}"
    );
    assert_eq!(run.greedy(), run.case.token_ids, "{family}/{name}");
}

#[test]
fn logits_match_the_reference_alone() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        for case in &fixture.cases.cases {
            check(&fixture, family, &decode_alone(&model, &fixture, case));
        }
    }
}

#[test]
fn logits_match_the_reference_in_one_batch_with_chunked_prompts() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        let cases = &fixture.cases.cases;
        let mut runs: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(slot, case)| Run::new(&fixture, case, slot))
            .collect();
        decode(&model, &mut model.new_cache(cases.len()), &mut runs, 3);
        for run in &runs {
            check(&fixture, family, run);
        }
    }
}

#[test]
fn both_spellings_of_a_configuration_mean_the_same_model() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        for style in ["config_new_style.json", "config_old_style.json"] {
            if !fixture.dir.join(style).exists() {
                continue;
            }
            let model = fixture.model(style, &f32_on_cpu());
            let case = fixture.case("long_prompt_clamp");
            check(&fixture, family, &decode_alone(&model, &fixture, case));
        }
    }
}

#[test]
fn without_its_interventions_a_steered_case_fails() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let model = fixture.model("model/config.json", &f32_on_cpu());
        let steered = fixture
            .cases
            .cases
            .iter()
            .filter(|c| !c.interventions.is_empty());
        for case in steered {
            let mut runs = [Run::new(&fixture, case, 0)];
            runs[0].program = Program::default();
            decode(&model, &mut model.new_cache(1), &mut runs, usize::MAX);
            assert_ne!(runs[0].greedy(), case.token_ids, "{family}/{}", case.name);
        }
    }
}

#[test]
fn quantised_on_load_is_near_its_dequantised_self() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let case = fixture.case("clamp");
        for format in ["q8_0", "q6k", "q5k", "q5_1", "q5_0", "q4k", "q4_1", "q4_0"] {
            let options = |dequantize| LoadOptions {
                quantize: Some(format.parse().expect("known")),
                dequantize,
                ..f32_on_cpu()
            };
            let quantised = fixture.model("model/config.json", &options(false));
            assert_eq!(quantised.quantization(), format);
            let expanded = fixture.model("model/config.json", &options(true));
            let quantised = decode_alone(&quantised, &fixture, case);
            let expanded = decode_alone(&expanded, &fixture, case);
            // They differ by the rounding of activations to 8 bits alone.
            let error = quantised.relative_error(&expanded.logits);
            assert!(error <= 0.03, "{family}/{format}: {error}");
            // Its MLP's inner width takes blocks of 32; the widest formats fall back.
            if family == "qwen3" {
                let full = fixture.logits["clamp"].to_vec2::<f32>().expect("f32");
                assert!(
                    quantised.difference(&full) > TOLERANCE,
                    "{format} changed nothing"
                );
            }
        }
    }
}

#[test]
fn half_precisions_stay_near_the_reference() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let case = fixture.case("cav");
        let full = fixture.logits["cav"].to_vec2::<f32>().expect("f32");
        let spread = full.iter().flatten().map(|v| v.abs()).fold(0.0, f32::max);
        for (precision, allowed) in [(Precision::Bf16, 0.2), (Precision::F16, 0.05)] {
            let options = LoadOptions {
                precision,
                ..f32_on_cpu()
            };
            let model = fixture.model("model/config.json", &options);
            let error = decode_alone(&model, &fixture, case).difference(&full);
            assert!(
                error <= allowed * spread,
                "{family}/{}: {error} of {spread}",
                precision.name()
            );
        }
    }
}
