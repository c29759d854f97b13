use super::*;

fn request() -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(v1::Prompt {
            content: Some(v1::prompt::Content::Text("hello".to_owned())),
        }),
        ..Default::default()
    }
}

fn rejected(request: v1::GenerateRequest) -> String {
    let err = Generate::try_from(request).expect_err("rejected");
    err.violations[0].field.clone()
}

#[test]
fn no_variants_means_one_baseline() {
    let generate = Generate::try_from(request()).expect("valid");
    assert_eq!(generate.variants.len(), 1);
    assert_eq!(generate.variants[0].name, "baseline");
}

#[test]
fn sampling_is_bounded() {
    type Spoil = fn(&mut v1::Sampling);
    let cases: [(&str, Spoil); 8] = [
        ("sampling.max_new_tokens", |s| s.max_new_tokens = Some(0)),
        ("sampling.temperature", |s| s.temperature = Some(-1.0)),
        ("sampling.temperature", |s| s.temperature = Some(f32::NAN)),
        ("sampling.top_p", |s| s.top_p = Some(0.0)),
        ("sampling.min_p", |s| s.min_p = Some(1.5)),
        ("sampling.repetition_penalty", |s| {
            s.repetition_penalty = Some(0.0);
        }),
        ("sampling.stop[0]", |s| s.stop = vec![String::new()]),
        ("sampling.top_logprobs", |s| s.top_logprobs = 21),
    ];
    for (field, spoil) in cases {
        let mut request = request();
        spoil(request.sampling.get_or_insert_default());
        assert_eq!(rejected(request), field);
    }
}

#[test]
fn paths_reach_into_variants() {
    let mut request = request();
    request.variants = vec![
        v1::Variant::default(),
        v1::Variant {
            name: "b".to_owned(),
            interventions: vec![v1::Intervention::default()],
            ..Default::default()
        },
    ];
    assert_eq!(rejected(request), "variants[1].interventions[0].edit");
}

#[test]
fn names_are_unique_and_prompts_present() {
    let mut twice = request();
    let named = v1::Variant {
        name: "a".to_owned(),
        interventions: vec![],
        ..Default::default()
    };
    twice.variants = vec![named.clone(), named];
    assert_eq!(rejected(twice), "variants[1].name");
    assert_eq!(rejected(v1::GenerateRequest::default()), "prompt");
}
