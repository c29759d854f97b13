//! The report counts what edits touch and change, as computed by hand.

use steering_client::{prompt, v1};
use steering_e2e::{Fixture, Services, WorkerOptions, request};
use v1::{PositionScope, feature_edit::Operation, intervention::Edit};

const HOOK: &str = "blocks.2.hook_resid_post";
/// BOS, and 4 tokens of which 2 are alike.
const PROMPT: [u32; 5] = [2, 351, 369, 351, 279];
/// The last one is never read by the model: 5 generated tokens are.
const NEW: u32 = 6;

async fn report(
    services: &Services,
    edit: Edit,
    positions: Option<v1::Positions>,
) -> v1::InterventionReport {
    let fixture = Fixture::load("gemma2");
    let client = &services.client;
    let mut request =
        request::of_case(client, fixture.case("two_layers"), request::greedy(NEW)).await;
    request.prompt = Some(prompt::token_ids(PROMPT.to_vec()));
    request.sampling.as_mut().expect("sampling").ignore_eos = true;
    request.variants[0].interventions = vec![v1::Intervention {
        edit: Some(edit),
        positions,
        ..Default::default()
    }];
    let variant = request::run_one(client, request).await;
    assert_eq!(variant.token_ids.len(), NEW as usize);
    variant.interventions[0].clone()
}

async fn start() -> Services {
    Services::with_imports(&Fixture::load("gemma2"), WorkerOptions::default()).await
}

fn add() -> Edit {
    Edit::VectorAdd(v1::VectorAdd {
        vector: 0,
        hook_name: HOOK.into(),
        strength: 0.5,
        unit: v1::StrengthUnit::Raw.into(),
    })
}

fn scope(scope: PositionScope) -> v1::Positions {
    v1::Positions {
        scope: scope.into(),
        ..v1::Positions::default()
    }
}

fn window(start: u32, end: Option<u32>) -> v1::Positions {
    v1::Positions {
        window: Some(v1::PositionWindow { start, end }),
        ..scope(PositionScope::All)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_touched_are_as_counted_by_hand() {
    let services = start().await;
    let special = v1::Positions {
        skip_special_tokens: true,
        ..scope(PositionScope::Prompt)
    };
    let ids = v1::Positions {
        token_ids: vec![351],
        ..scope(PositionScope::Prompt)
    };
    let both = v1::Positions {
        scope: PositionScope::Generated.into(),
        ..window(3, Some(7))
    };
    for (name, positions, touched) in [
        ("all", None, 10),
        ("all, said", Some(scope(PositionScope::All)), 10),
        ("prompt", Some(scope(PositionScope::Prompt)), 5),
        ("generated", Some(scope(PositionScope::Generated)), 5),
        ("window", Some(window(1, Some(4))), 3),
        ("open window", Some(window(8, None)), 2),
        ("window past the end", Some(window(100, None)), 0),
        ("window over generated", Some(both), 2),
        ("without BOS", Some(special), 4),
        ("one token", Some(ids), 2),
    ] {
        let report = report(&services, add(), positions).await;
        assert_eq!(report.positions_touched, touched, "{name}");
        assert_eq!(report.positions_changed, touched, "{name}");
        assert_eq!(report.mean_relative_delta > 0.0, touched > 0, "{name}");
        assert_eq!(report.hook_name, HOOK, "{name}");
    }
    services.stop().await;
}

fn feature(operation: Operation) -> Edit {
    Edit::Feature(v1::FeatureEdit {
        feature: 0,
        operation: Some(operation),
    })
}

fn clamp(lower: Option<f32>, upper: Option<f32>) -> Edit {
    Edit::ProjectionClamp(v1::ProjectionClamp {
        vector: 0,
        hook_name: HOOK.into(),
        lower,
        upper,
    })
}

fn ablate() -> Edit {
    Edit::DirectionAblate(v1::DirectionAblate {
        vector: 0,
        hook_name: HOOK.into(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_touch_every_position_and_change_those_they_must() {
    let services = start().await;
    // Activations are at least 0 and norms near 30, so these change all or none.
    for (name, edit, changed) in [
        ("set", feature(Operation::Set(1e4)), 10),
        ("min above", feature(Operation::Min(1e4)), 10),
        ("min below", feature(Operation::Min(0.0)), 0),
        ("max above", feature(Operation::Max(1e4)), 0),
        ("max below", feature(Operation::Max(-1.0)), 10),
        ("scale by 1", feature(Operation::Scale(1.0)), 0),
        ("add", feature(Operation::Add(3.0)), 10),
        ("add 0", feature(Operation::Add(0.0)), 0),
        ("ablate", ablate(), 10),
        ("clamp within", clamp(Some(-1e6), Some(1e6)), 0),
        ("clamp from below", clamp(Some(1e3), None), 10),
        ("clamp from above", clamp(None, Some(-1e3)), 10),
    ] {
        let report = report(&services, edit, None).await;
        assert_eq!(report.positions_touched, 10, "{name}");
        assert_eq!(report.positions_changed, changed, "{name}");
    }
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fraction_of_the_norm_is_the_relative_delta() {
    let services = start().await;
    let cav = services
        .client
        .get_cav("talk.politics.misc")
        .await
        .expect("CAV");
    let norm = cav.directions[0].norm;
    let edit = Edit::VectorAdd(v1::VectorAdd {
        vector: 0,
        hook_name: HOOK.into(),
        strength: 0.25,
        unit: v1::StrengthUnit::FractionOfNorm.into(),
    });
    let report = report(&services, edit, None).await;
    let expected = 0.25 * norm;
    let error = (report.mean_relative_delta - expected).abs();
    assert!(
        error < 1e-4 * expected,
        "{} {expected}",
        report.mean_relative_delta
    );
    services.stop().await;
}
