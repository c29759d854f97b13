//! `steer generate` and `steer tokenize`: the request sent, the output printed.

use std::time::Duration;

use serde_json::json;
use steering_client::{
    Client, Endpoints, GenerationBuilder, prompt,
    v1::{
        self, Intervention, Positions, feature_edit::Operation, feature_ref::Feature,
        intervention::Edit, prompt::Content,
    },
};

use crate::{
    mock::{Mock, lock},
    mock_registry::{BASEBALL, cav, feature},
};

fn set(row: u32, operation: Operation) -> Intervention {
    Intervention {
        edit: Some(Edit::Feature(v1::FeatureEdit {
            feature: row,
            operation: Some(operation),
        })),
        positions: None,
        ..Default::default()
    }
}

fn add(row: u32, hook_name: &str, strength: f32, unit: v1::StrengthUnit) -> Intervention {
    Intervention {
        edit: Some(Edit::VectorAdd(v1::VectorAdd {
            vector: row,
            hook_name: hook_name.to_owned(),
            strength,
            unit: unit.into(),
        })),
        positions: None,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_prompt_is_one_user_message_and_one_baseline() {
    let mock = Mock::start().await;
    let run = mock.steer(&["generate", "Write a haiku."]).await;
    assert_eq!(run.ok(), "Hello é!\n");
    let expected = v1::GenerateRequest {
        prompt: Some(prompt::user("Write a haiku.")),
        variants: vec![v1::Variant {
            name: "baseline".to_owned(),
            interventions: Vec::new(),
            ..Default::default()
        }],
        sampling: Some(v1::Sampling::default()),
        ..v1::GenerateRequest::default()
    };
    assert_eq!(mock.worker.request(), expected);
    assert!(
        run.stderr
            .contains("warning: the SAE is of a sibling model")
    );
    assert!(
        run.stderr
            .contains("mock-model · seed 4242 · 3 prompt tokens")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sampling_option_reaches_the_worker() {
    let mock = Mock::start().await;
    let args = "generate hi --seed 18446744073709551615 --temperature 0.7 --top-k 0 --top-p 0.9 \
                --min-p 0.05 --repetition-penalty 1.1 --do-sample --stop --- --stop END \
                --max-new-tokens 20 --ignore-eos";
    mock.steer(&args.split_whitespace().collect::<Vec<_>>())
        .await
        .ok();
    let expected = v1::Sampling {
        max_new_tokens: Some(20),
        temperature: Some(0.7),
        top_k: Some(0),
        top_p: Some(0.9),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        seed: Some(u64::MAX),
        stop: vec!["---".to_owned(), "END".to_owned()],
        do_sample: Some(true),
        top_logprobs: 0,
        ignore_eos: true,
    };
    assert_eq!(mock.worker.request().sampling, Some(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_turns_sampling_off() {
    let mock = Mock::start().await;
    mock.steer(&["generate", "hi", "--greedy"]).await.ok();
    let sampling = mock.worker.request().sampling.expect("sampling");
    assert_eq!(sampling.do_sample, Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_take_all_their_forms() {
    let mock = Mock::start().await;
    mock.steer(&["tokenize", "hi", "--raw"]).await.ok();
    mock.steer_with_input(&["tokenize", "-", "--raw"], "two\nlines\n")
        .await
        .ok();
    mock.steer(&[
        "tokenize",
        "hi",
        "--system",
        "be brief",
        "--add-generation-prompt",
    ])
    .await
    .ok();
    let prompts = lock(&mock.worker.prompts).clone();
    let text = |prompt: &v1::Prompt| match &prompt.content {
        Some(Content::Text(text)) => text.clone(),
        other => panic!("{other:?} is not raw text"),
    };
    assert_eq!(text(&prompts[0]), "hi");
    assert_eq!(text(&prompts[1]), "two\nlines");
    let message = prompt::message;
    let messages = vec![message("system", "be brief"), message("user", "hi")];
    assert_eq!(prompts[2], prompt::chat(messages, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn features_are_moved_as_they_are_and_once() {
    let mock = Mock::start().await;
    let edits = [
        "baseball=525",
        "nba:min=0.5max",
        "#7:scale=0.5",
        "l1::ice hockey:ablate",
    ];
    let mut args = vec!["generate", "hi"];
    args.extend(edits.iter().flat_map(|edit| ["--feature", edit]));
    mock.steer(&args).await.ok();
    let request = mock.worker.request();
    assert_eq!(request.features, [feature(BASEBALL), feature(7)]);
    let variant = &request.variants[0];
    assert_eq!(variant.name, "steered");
    let expected = [
        set(0, Operation::Set(525.0)),
        set(0, Operation::Min(500.0)),
        set(1, Operation::Scale(0.5)),
        set(1, Operation::Set(0.0)),
    ];
    assert_eq!(variant.interventions, expected);
    let refs = lock(&mock.registry.feature_refs);
    assert_eq!(refs[0].sae_id, "");
    assert_eq!(refs[2].feature, Some(Feature::FeatureIndex(7)));
    assert_eq!(refs[3].sae_id, "l1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_sae_is_sent_before_or_after_the_command() {
    let mock = Mock::start().await;
    mock.steer(&["--sae", "l1", "generate", "hi", "--feature", "nba=1"])
        .await
        .ok();
    mock.steer(&["generate", "hi", "--feature", "nba=1", "--sae", "l1"])
        .await
        .ok();
    let refs = lock(&mock.registry.feature_refs);
    assert!(refs.iter().all(|reference| reference.sae_id == "l1"));
    assert_eq!(refs.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cavs_act_at_each_of_their_hook_points() {
    let mock = Mock::start().await;
    let edits = ["two=1000", "one=0.1norm", "one:ablate", "one:clamp=..2"];
    let mut args = vec!["generate", "hi"];
    args.extend(edits.iter().flat_map(|edit| ["--cav", edit]));
    mock.steer(&args).await.ok();
    let request = mock.worker.request();
    let vector = |name, i: usize| cav(name).directions[i].vector.clone().expect("vector");
    assert_eq!(
        request.vectors,
        [vector("two", 0), vector("two", 1), vector("one", 0)]
    );
    let (first, second) = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post");
    let bare = |edit| Intervention {
        edit: Some(edit),
        positions: None,
        ..Default::default()
    };
    let expected = [
        add(0, first, 1000.0, v1::StrengthUnit::Raw),
        add(1, second, 1000.0, v1::StrengthUnit::Raw),
        add(2, second, 0.1, v1::StrengthUnit::FractionOfNorm),
        bare(Edit::DirectionAblate(v1::DirectionAblate {
            vector: 2,
            hook_name: second.to_owned(),
        })),
        bare(Edit::ProjectionClamp(v1::ProjectionClamp {
            vector: 2,
            hook_name: second.to_owned(),
            lower: None,
            upper: Some(2.0),
        })),
    ];
    assert_eq!(request.variants[0].interventions, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_option_moves_a_cav() {
    let mock = Mock::start().await;
    let hook = "blocks.0.hook_mlp_out";
    mock.steer(&["generate", "hi", "--cav", "one=1", "--hook", hook])
        .await
        .ok();
    let expected = [add(0, hook, 1.0, v1::StrengthUnit::Raw)];
    assert_eq!(mock.worker.request().variants[0].interventions, expected);
    let run = mock
        .steer(&["generate", "hi", "--cav", "two=1", "--hook", hook])
        .await;
    run.fails(
        1,
        &[
            "CAV \"two\" has directions at blocks.0.hook_resid_post",
            "hint:",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_reach_every_edit() {
    let mock = Mock::start().await;
    let args = "generate hi --feature baseball=1 --cav one=1 --positions generated \
                --window 2: --skip-special-tokens";
    mock.steer(&args.split_whitespace().collect::<Vec<_>>())
        .await
        .ok();
    let expected = Positions {
        scope: v1::PositionScope::Generated.into(),
        window: Some(v1::PositionWindow {
            start: 2,
            end: None,
        }),
        skip_special_tokens: true,
        token_ids: Vec::new(),
    };
    let request = mock.worker.request();
    assert_eq!(request.variants[0].interventions.len(), 2);
    for intervention in &request.variants[0].interventions {
        assert_eq!(intervention.positions.as_ref(), Some(&expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compare_is_one_request_and_two_sections() {
    let mock = Mock::start().await;
    let run = mock
        .steer(&["generate", "hi", "--feature", "baseball=525", "--compare"])
        .await;
    assert_eq!(
        run.ok(),
        "== baseline ==\nHello é!\n\n== steered ==\nHello é!\n"
    );
    let request = mock.worker.request();
    let names: Vec<&str> = request.variants.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["baseline", "steered"]);
    assert!(request.variants[0].interventions.is_empty());
    let applied = "steered: \"baseball\" set 525 at blocks.1.hook_resid_post · \
                   changed 5 of 6 positions · mean |Δ|/|x| 0.250";
    assert!(run.stderr.contains(applied), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_document() {
    let mock = Mock::start().await;
    let run = mock
        .steer(&[
            "generate",
            "hi",
            "--feature",
            "baseball=525",
            "--seed",
            "7",
            "--json",
        ])
        .await;
    let expected = json!({
        "model": "mock-model",
        "prompt_token_ids": [2, 5, 7],
        "seed": 7,
        "probes": [],
        "variants": [{
            "name": "steered",
            "token_ids": [10, 11, 12],
            "logprobs": [-0.5, -0.5, -0.5],
            "text": "Hello é!",
            "finish_reason": "max_new_tokens",
            "stop_condition": null,
            "interventions": [{
                "hook_name": "blocks.1.hook_resid_post",
                "payload_name": "baseball",
                "payload_digest": "abcd",
                "edit": "set 525",
                "positions_touched": 6,
                "positions_changed": 5,
                "mean_relative_delta": 0.25,
                "merged_into": null,
                "gate_firings": null,
            }],
            "usage": {"prompt_tokens": 3, "generated_tokens": 3, "shared_prompt_tokens": 0},
            "readings": [],
            "kl_divergence": [],
        }],
        "warnings": ["the SAE is of a sibling model"],
    });
    assert_eq!(run.json(), expected);
    assert_eq!(run.stderr, "warning: the SAE is of a sibling model\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_nothing() {
    let mock = Mock::start().await;
    *lock(&mock.worker.repeats) = 9_999;
    let client = Client::connect(&Endpoints {
        worker: mock.worker_url(),
        ..Endpoints::default()
    })
    .expect("a URL");
    let mut builder = GenerationBuilder::new(prompt::user("hi"));
    builder.variant("baseline", Vec::new());
    let stream = client.generate(builder.build()).await.expect("a stream");
    // Thousands of tokens arrive before the first is read.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let transcript = stream.collect().await.expect("the whole stream");
    assert_eq!(transcript.variants[0].token_ids.len(), 30_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_listed() {
    let mock = Mock::start().await;
    let run = mock.steer(&["tokenize", "hi"]).await;
    assert_eq!(
        run.ok(),
        "position  token  piece  special\n0         2      <bos>  yes\n1         7      ▁hi\n"
    );
    let expected = json!({
        "tokens": [
            {"token_id": 2, "piece": "<bos>", "special": true},
            {"token_id": 7, "piece": "▁hi", "special": false},
        ],
        "rendered": "<bos>hi",
    });
    assert_eq!(
        mock.steer(&["tokenize", "hi", "--json"]).await.json(),
        expected
    );
}
