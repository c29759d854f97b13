//! Gates, stop conditions, probes and telemetry of `steer generate`.

use serde_json::json;
use steering_client::v1::{self, condition::Comparison, readout::Source};

use crate::{
    mock::Mock,
    mock_registry::{BASEBALL, cav, feature},
};

const HOOK: &str = "blocks.1.hook_resid_post";

fn of_feature(row: u32) -> Option<v1::Readout> {
    let source = Some(Source::Feature(row));
    Some(v1::Readout { source })
}

fn of_vector(row: u32, hook_name: &str) -> Option<v1::Readout> {
    let source = Some(Source::Direction(v1::DirectionReadout {
        vector: row,
        hook_name: hook_name.to_owned(),
        bias: 0.0,
    }));
    Some(v1::Readout { source })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_reaches_every_edit() {
    let mock = Mock::start().await;
    let args = [
        "generate",
        "hi",
        "--feature",
        "baseball=300",
        "--cav",
        "one=2",
        "--when",
        "nba>0.5max:for=8",
    ];
    mock.steer(&args).await.ok();
    let request = mock.worker.request();
    // "nba" and "baseball" are one feature, so one row.
    assert_eq!(request.features, [feature(BASEBALL)]);
    let gate = v1::Gate {
        condition: Some(v1::Condition {
            readout: of_feature(0),
            comparison: Some(Comparison::Above(500.0)),
        }),
        mode: v1::GateMode::ForTokens.into(),
        tokens: 8,
    };
    assert_eq!(request.variants[0].interventions.len(), 2);
    for intervention in &request.variants[0].interventions {
        assert_eq!(intervention.gate.as_ref(), Some(&gate));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_conditions_end_every_variant() {
    let mock = Mock::start().await;
    let args = [
        "generate",
        "hi",
        "--feature",
        "baseball=300",
        "--compare",
        "--stop-when",
        "cav:one<-3",
        "--stop-when",
        "#7>1",
    ];
    mock.steer(&args).await.ok();
    let request = mock.worker.request();
    let vector = cav("one").directions[0].vector.clone().expect("vector");
    assert_eq!(request.vectors, [vector]);
    let expected = [
        v1::Condition {
            readout: of_vector(0, HOOK),
            comparison: Some(Comparison::Below(-3.0)),
        },
        v1::Condition {
            readout: of_feature(1),
            comparison: Some(Comparison::Above(1.0)),
        },
    ];
    for variant in &request.variants {
        assert_eq!(variant.stop_when, expected, "{}", variant.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_telemetry_are_asked_for_and_printed() {
    let mock = Mock::start().await;
    let mut args = vec!["generate", "hi", "--feature", "nba=1"];
    args.extend(["--probe", "baseball", "--probe"]);
    args.extend(["cav:two", "--hook", "blocks.0.hook_resid_post"]);
    args.extend(["--kl", "--edit-norms", "--prompt-readings", "--priority"]);
    args.push("batch");
    let run = mock.steer(&args).await;
    let request = mock.worker.request();
    let probe = |name: &str, readout| v1::Probe {
        name: name.to_owned(),
        readout,
    };
    let expected = [
        probe("baseball", of_feature(0)),
        probe("cav:two", of_vector(0, "blocks.0.hook_resid_post")),
    ];
    assert_eq!(request.probes, expected);
    let telemetry = v1::Telemetry {
        edit_norms: true,
        kl_divergence: true,
        prompt_readings: true,
    };
    assert_eq!(request.telemetry, Some(telemetry));
    assert_eq!(request.priority(), v1::Priority::Batch);
    let expected = "\
Hello é!

read variant per token mean max at
baseball steered ▁██ 6.667 10 token 1
cav:two steered ▁██ 6.667 10 token 1
|Δ|/|x| at blocks.1.hook_resid_post steered ▁▁▁ 0.25 0.25 token 1
KL to unsteered steered ▁▁▁ 0.125 0.125 \" é\"
";
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeeze(run.ok()), squeeze(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_in_the_document() {
    let mock = Mock::start().await;
    let args = "generate hi --probe nba --edit-norms --kl --json";
    let document = mock
        .steer(&args.split(' ').collect::<Vec<_>>())
        .await
        .json();
    assert_eq!(document["probes"], json!(["nba"]));
    let variant = &document["variants"][0];
    assert_eq!(variant["kl_divergence"], json!([0.125, 0.125, 0.125]));
    assert_eq!(
        variant["readings"][1],
        json!({
            "position": 3,
            "token_id": 7,
            "before": [10.0],
            "after": [10.0],
            "edit_norms": [{"hook_name": HOOK, "relative_norm": 0.25}],
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readout_needs_one_direction() {
    let mock = Mock::start().await;
    let run = mock.steer(&["generate", "hi", "--probe", "cav:two"]).await;
    run.fails(1, &["CAV \"two\" has directions at blocks.0", "--hook"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_conditions_exit_with_2() {
    let mock = Mock::start().await;
    let cases: [(&[&str], &str); 5] = [
        (&["--when", "hockey>5"], "--feature"),
        (&["--cav", "one=1", "--when", "hockey"], "compares nothing"),
        (&["--stop-when", "hockey>5:once"], "goes on with"),
        (&["--prompt-readings"], "--probe"),
        (&["--priority", "urgent"], "interactive, batch"),
    ];
    for (options, expected) in cases {
        let args: Vec<&str> = ["generate", "hi"].iter().chain(options).copied().collect();
        mock.steer(&args).await.fails(2, &[expected]);
    }
}
