//! Requests that tests send.

use steering_client::{
    Amount, CavEdit, CavOperation, Client, FeatureEdit, FeatureKey, FeatureOperation,
    FeatureSelector, GenerationBuilder, Steering, Transcript, VariantTranscript, v1,
};

use crate::fixture::{Case, CaseIntervention, SAE};

/// Greedy, nothing from generation_config.json.
pub fn greedy(max_new_tokens: u32) -> v1::Sampling {
    v1::Sampling {
        max_new_tokens: Some(max_new_tokens),
        do_sample: Some(false),
        repetition_penalty: Some(1.0),
        ..v1::Sampling::default()
    }
}

/// Sampled widely.
pub fn sampled(max_new_tokens: u32, seed: u64) -> v1::Sampling {
    v1::Sampling {
        max_new_tokens: Some(max_new_tokens),
        temperature: Some(1.5),
        top_k: Some(0),
        top_p: Some(1.0),
        repetition_penalty: Some(1.0),
        seed: Some(seed),
        ignore_eos: true,
        ..v1::Sampling::default()
    }
}

/// A request without variants: one unsteered.
pub fn unsteered(prompt: v1::Prompt, sampling: v1::Sampling) -> v1::GenerateRequest {
    let mut builder = GenerationBuilder::new(prompt);
    builder.sampling(sampling);
    builder.build()
}

/// The case's interventions, their payloads put into the builder's tables.
pub async fn interventions(
    client: &Client,
    case: &Case,
    builder: &mut GenerationBuilder,
) -> Vec<v1::Intervention> {
    let mut all = Vec::new();
    for intervention in &case.interventions {
        let steering = steering(intervention);
        let resolved = client.resolve(&steering, builder).await;
        all.extend(resolved.expect("known names"));
    }
    all
}

fn steering(intervention: &CaseIntervention) -> Steering {
    match intervention {
        CaseIntervention::Feature { labels, value, .. } => Steering {
            features: labels.iter().map(|label| set(label, *value)).collect(),
            default_sae: Some(SAE.to_owned()),
            ..Steering::default()
        },
        CaseIntervention::Cav {
            label,
            strength,
            hook,
        } => Steering {
            cavs: vec![CavEdit {
                cav: label.clone(),
                operation: CavOperation::Add(*strength),
            }],
            cav_hook: Some(hook.clone()),
            ..Steering::default()
        },
    }
}

fn set(label: &str, value: f32) -> FeatureEdit {
    FeatureEdit {
        feature: FeatureSelector {
            sae: None,
            key: FeatureKey::Label(label.to_owned()),
        },
        operation: FeatureOperation::Set(Amount::Raw(value)),
    }
}

/// One case as a request with one variant.
pub async fn of_case(client: &Client, case: &Case, sampling: v1::Sampling) -> v1::GenerateRequest {
    let mut builder = GenerationBuilder::new(case.to_prompt());
    let edits = interventions(client, case, &mut builder).await;
    builder.sampling(sampling).variant(&case.name, edits);
    builder.build()
}

/// Runs a request to its end.
pub async fn run(client: &Client, request: v1::GenerateRequest) -> Transcript {
    let stream = client.generate(request).await.expect("accepted");
    stream.collect().await.expect("a whole stream")
}

/// Runs a request with one variant.
pub async fn run_one(client: &Client, request: v1::GenerateRequest) -> VariantTranscript {
    let mut transcript = run(client, request).await;
    assert_eq!(transcript.variants.len(), 1);
    transcript.variants.remove(0)
}

/// A transcript but for how much of the prompt was shared: that depends on who
/// was there before, and nothing else does.
pub fn without_sharing(transcript: &VariantTranscript) -> VariantTranscript {
    let mut transcript = transcript.clone();
    transcript.usage.shared_prompt_tokens = 0;
    transcript
}
