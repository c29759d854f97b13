//! What is refused, with which code and field, and that serving goes on.

use steering_client::{Client, Error, GenerationBuilder, VariantTranscript, prompt, v1};
use steering_e2e::{Fixture, Services, WorkerOptions, fixture::SAE, request};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const FAMILY: &str = "gemma2";
const HOOK: &str = "blocks.2.hook_resid_post";

/// Changes a request that would be served.
type Spoil = Box<dyn Fn(&mut v1::GenerateRequest)>;

/// A bad request: its name, what is bad, the field that is blamed.
type Bad = (&'static str, Spoil, &'static str);

async fn start() -> (Fixture, Services) {
    let fixture = Fixture::load(FAMILY);
    let options = WorkerOptions {
        max_sequences: 4,
        ..WorkerOptions::default()
    };
    let services = Services::with_imports(&fixture, options).await;
    (fixture, services)
}

/// One feature and one vector, one edit of each.
async fn good(client: &Client, fixture: &Fixture) -> v1::GenerateRequest {
    request::of_case(client, fixture.case("two_layers"), request::greedy(2)).await
}

fn bad(
    name: &'static str,
    spoil: impl Fn(&mut v1::GenerateRequest) + 'static,
    field: &'static str,
) -> Bad {
    (name, Box::new(spoil), field)
}

/// The first edit of a vector.
fn vector_add(request: &mut v1::GenerateRequest) -> &mut v1::VectorAdd {
    let edits = request.variants[0].interventions.iter_mut();
    let adds = edits.filter_map(|intervention| match &mut intervention.edit {
        Some(v1::intervention::Edit::VectorAdd(add)) => Some(add),
        _ => None,
    });
    adds.last().expect("a vector edit")
}

fn set_edit(request: &mut v1::GenerateRequest, edit: v1::intervention::Edit) {
    request.variants[0].interventions[1].edit = Some(edit);
}

fn set_sampling(request: &mut v1::GenerateRequest, change: impl Fn(&mut v1::Sampling)) {
    change(request.sampling.as_mut().expect("sampling"));
}

fn bad_edits() -> Vec<Bad> {
    const ADD_HOOK: &str = "variants[0].interventions[1].vector_add.hook_name";
    vec![
        bad(
            "unknown hook",
            |r| vector_add(r).hook_name = "blocks.1.hook_nowhere".into(),
            ADD_HOOK,
        ),
        bad("no hook", |r| vector_add(r).hook_name.clear(), ADD_HOOK),
        bad(
            "layer out of range",
            |r| vector_add(r).hook_name = "blocks.5.hook_resid_post".into(),
            ADD_HOOK,
        ),
        bad(
            "wrong vector length",
            |r| r.vectors[0].values.truncate(47),
            "variants[0].interventions[1].vector_add.vector",
        ),
        bad(
            "empty vector",
            |r| r.vectors[0].values.clear(),
            "vectors[0].values",
        ),
        bad(
            "NaN",
            |r| r.vectors[0].values[3] = f32::NAN,
            "vectors[0].values[3]",
        ),
        bad(
            "infinity",
            |r| r.features[0].decoder[5] = f32::INFINITY,
            "features[0].decoder[5]",
        ),
        bad(
            "infinite strength",
            |r| vector_add(r).strength = f32::INFINITY,
            "variants[0].interventions[1].vector_add.strength",
        ),
        bad(
            "unit unspecified",
            |r| vector_add(r).unit = 0,
            "variants[0].interventions[1].vector_add.unit",
        ),
        bad(
            "unit unknown",
            |r| vector_add(r).unit = 77,
            "variants[0].interventions[1].vector_add.unit",
        ),
        bad(
            "normalisation unspecified",
            |r| r.features[0].input_normalization = 0,
            "features[0].input_normalization",
        ),
        bad(
            "no activation",
            |r| r.features[0].activation = None,
            "features[0].activation",
        ),
        bad(
            "row out of range",
            |r| vector_add(r).vector = 9,
            "variants[0].interventions[1].vector_add.vector",
        ),
        bad(
            "no edit",
            |r| r.variants[0].interventions[1].edit = None,
            "variants[0].interventions[1].edit",
        ),
        bad(
            "scope unspecified",
            |r| r.variants[0].interventions[1].positions = Some(v1::Positions::default()),
            "variants[0].interventions[1].positions.scope",
        ),
        bad(
            "positions of a token that is none",
            |r| {
                r.variants[0].interventions[1].positions = Some(v1::Positions {
                    scope: v1::PositionScope::All.into(),
                    token_ids: vec![1_000_000, 3],
                    ..v1::Positions::default()
                });
            },
            "variants[0].interventions[1].positions.token_ids",
        ),
        bad(
            "zero direction",
            |r| {
                r.vectors[0].values.fill(0.0);
                let ablate = v1::DirectionAblate {
                    vector: 0,
                    hook_name: HOOK.into(),
                };
                set_edit(r, v1::intervention::Edit::DirectionAblate(ablate));
            },
            "variants[0].interventions[1].direction_ablate.vector",
        ),
        bad(
            "two values for one feature",
            |r| {
                use v1::feature_edit::Operation::Set;
                let edit = |value| v1::FeatureEdit {
                    feature: 0,
                    operation: Some(Set(value)),
                };
                r.variants[0].interventions[0].edit =
                    Some(v1::intervention::Edit::Feature(edit(1.0)));
                set_edit(r, v1::intervention::Edit::Feature(edit(2.0)));
            },
            "variants[0].interventions[1].feature",
        ),
    ]
}

fn bad_prompts_and_sampling() -> Vec<Bad> {
    vec![
        bad("no prompt", |r| r.prompt = None, "prompt"),
        bad(
            "empty prompt",
            |r| r.prompt = Some(prompt::text("")),
            "prompt.text",
        ),
        bad(
            "no token ids",
            |r| r.prompt = Some(prompt::token_ids(vec![])),
            "prompt.token_ids.ids",
        ),
        bad(
            "no messages",
            |r| r.prompt = Some(prompt::chat(vec![], true)),
            "prompt.chat.messages",
        ),
        bad(
            "token id out of range",
            |r| r.prompt = Some(prompt::token_ids(vec![2, 385])),
            "prompt.token_ids.ids[1]",
        ),
        bad(
            "over-long prompt",
            |r| r.prompt = Some(prompt::token_ids(vec![5; 512])),
            "prompt",
        ),
        bad(
            "refused role",
            |r| r.prompt = Some(prompt::chat(vec![prompt::message("system", "x")], true)),
            "prompt.chat.messages",
        ),
        bad(
            "too many variants",
            |r| r.variants = vec![v1::Variant::default(); 5],
            "variants",
        ),
        bad(
            "name used twice",
            |r| r.variants = vec![r.variants[0].clone(); 2],
            "variants[1].name",
        ),
        bad(
            "too many interventions",
            |r| r.variants[0].interventions = vec![r.variants[0].interventions[1].clone(); 65],
            "variants[0].interventions",
        ),
        bad(
            "no new tokens",
            |r| set_sampling(r, |s| s.max_new_tokens = Some(0)),
            "sampling.max_new_tokens",
        ),
        bad(
            "too many new tokens",
            |r| set_sampling(r, |s| s.max_new_tokens = Some(100_000)),
            "sampling.max_new_tokens",
        ),
        bad(
            "negative temperature",
            |r| set_sampling(r, |s| s.temperature = Some(-1.0)),
            "sampling.temperature",
        ),
        bad(
            "top_p of 0",
            |r| set_sampling(r, |s| s.top_p = Some(0.0)),
            "sampling.top_p",
        ),
        bad(
            "NaN penalty",
            |r| set_sampling(r, |s| s.repetition_penalty = Some(f32::NAN)),
            "sampling.repetition_penalty",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_blamed_on_their_field_and_serving_goes_on() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let good = good(client, &fixture).await;
    let expected = request::run_one(client, good.clone()).await;
    let mut wrong = Vec::new();
    for (name, spoil, field) in bad_edits().into_iter().chain(bad_prompts_and_sampling()) {
        let mut request = good.clone();
        spoil(&mut request);
        match client.generate(request).await {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) => wrong.extend(blame_problem(name, &status(error), field)),
        }
        let again = request::run_one(client, good.clone()).await;
        let (again, before) = (
            request::without_sharing(&again),
            request::without_sharing(&expected),
        );
        assert_eq!(again, before, "after {name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    services.stop().await;
}

fn blame_problem(name: &str, status: &Status, field: &str) -> Option<String> {
    let details = status.get_details_bad_request();
    let violation = details.and_then(|details| details.field_violations.into_iter().next());
    let blamed = violation.map(|violation| violation.field);
    let right = status.code() == Code::InvalidArgument && blamed.as_deref() == Some(field);
    (!right).then(|| format!("{name}: wanted {field}, got {blamed:?}: {status}"))
}

fn status(error: Error) -> Status {
    match error {
        Error::Rpc { status, .. } => *status,
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_message_is_refused_and_serving_goes_on() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let mut request = good(client, &fixture).await;
    let values = vec![1.0; 9 << 20];
    request.vectors.push(v1::Vector {
        name: "huge".into(),
        values,
    });
    let refused = status(client.generate(request).await.expect_err("36 MiB"));
    let codes = [Code::OutOfRange, Code::ResourceExhausted];
    assert!(codes.contains(&refused.code()), "{refused}");
    request::run_one(client, good(client, &fixture).await).await;
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_are_answered_with_the_nearest() {
    let (_, services) = start().await;
    let client = &services.client;
    let sae = status(client.get_sae("saw").await.expect_err("unknown SAE"));
    let label = feature_ref(SAE, v1::feature_ref::Feature::Label("basketbal".into()));
    let label = status(
        client
            .get_features(vec![label])
            .await
            .expect_err("unknown label"),
    );
    let cav = status(
        client
            .get_cav("rec.sport.basebal")
            .await
            .expect_err("unknown CAV"),
    );
    for (status, nearest) in [
        (sae, SAE),
        (label, "basketball"),
        (cav, "rec.sport.baseball"),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let quoted = format!("{nearest:?}");
        assert!(status.message().contains(&quoted), "{status}");
    }
    let index = feature_ref(SAE, v1::feature_ref::Feature::FeatureIndex(96));
    let index = status(client.get_features(vec![index]).await.expect_err("index"));
    assert_eq!(
        blame_problem("index", &index, "features[0].feature_index"),
        None
    );
    assert_eq!(client.list_saes(None).await.expect("served").items.len(), 1);
    services.stop().await;
}

fn feature_ref(sae_id: &str, feature: v1::feature_ref::Feature) -> v1::FeatureRef {
    v1::FeatureRef {
        sae_id: sae_id.to_owned(),
        feature: Some(feature),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sae_of_another_model_and_width_is_a_failed_precondition() {
    let (fixture, services) = start().await;
    let client = &services.client;
    let mut request = good(client, &fixture).await;
    let feature = &mut request.features[0];
    feature.model_id = "google/other-9b".into();
    feature.encoder.push(0.0);
    feature.decoder.push(0.0);
    let refused = status(client.generate(request).await.expect_err("49 wide"));
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for part in ["49", "48", "google/other-9b"] {
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
    let mut builder = GenerationBuilder::new(prompt::text("Write a haiku."));
    builder.sampling(request::greedy(1));
    let after: VariantTranscript = request::run_one(client, builder.build()).await;
    assert_eq!(after.token_ids.len(), 1);
    services.stop().await;
}
