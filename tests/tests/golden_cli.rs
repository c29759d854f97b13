//! Every golden case through the real `steer` binary and both services.

use serde::Deserialize;
use serde_json::Value;
use steering_e2e::{
    Fixture, Services, WorkerOptions,
    binaries::steer,
    fixture::{Case, CaseIntervention, CasePrompt, MODEL, SAE},
    request,
};

/// Largest difference of a log-probability from the reference.
const LOGPROB_TOLERANCE: f64 = 1e-4;

/// What is compared, from `--json` or from gRPC.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    prompt_token_ids: Vec<u32>,
    token_ids: Vec<u32>,
    logprobs: Vec<f64>,
    text: String,
}

async fn golden(family: &str) {
    let fixture = Fixture::load(family);
    let services = Services::start(&fixture, WorkerOptions::default()).await;
    import(&services, &fixture).await;
    for case in &fixture.cases.cases {
        let answer = match prompt_arguments(&case.prompt) {
            Some(prompt) => ask_steer(&services, &fixture, case, prompt).await,
            None => ask_grpc(&services, &fixture, case).await,
        };
        compare(&fixture, case, &answer);
    }
    services.stop().await;
}

async fn import(services: &Services, fixture: &Fixture) {
    let (sae, cavs) = (&fixture.cases.sae, &fixture.cases.cavs);
    let (params, labels) = (fixture.file(&sae.path), fixture.file(&sae.labels));
    let name = ["--name", SAE, "--hook", &sae.hook, "--model", MODEL];
    run(
        services,
        &[&["saes", "import", &params][..], &name].concat(),
    )
    .await;
    run(services, &["labels", "import", &labels, "--sae", SAE]).await;
    let file = fixture.file(&cavs.path);
    let place = ["--hook", &cavs.hook, "--model", MODEL];
    run(services, &[&["cavs", "import", &file][..], &place].concat()).await;
}

async fn run(services: &Services, args: &[&str]) -> Value {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    steer(services, &args).await
}

/// How `steer generate` says the prompt; none for conversations.
fn prompt_arguments(prompt: &CasePrompt) -> Option<Vec<String>> {
    match prompt {
        CasePrompt::Text { text } => Some(vec![text.clone(), "--raw".to_owned()]),
        CasePrompt::Chat {
            messages,
            add_generation_prompt,
        } => match messages.as_slice() {
            [message] if message.role == "user" => {
                let open = add_generation_prompt.then(|| "--add-generation-prompt".to_owned());
                Some(
                    std::iter::once(message.content.clone())
                        .chain(open)
                        .collect(),
                )
            }
            _ => None,
        },
    }
}

async fn ask_steer(
    services: &Services,
    fixture: &Fixture,
    case: &Case,
    prompt: Vec<String>,
) -> Answer {
    let mut args = vec!["generate".to_owned()];
    args.extend(prompt);
    args.extend(edit_arguments(fixture, case));
    let sampling = ["--repetition-penalty", "1", "--greedy", "--max-new-tokens"];
    args.extend(sampling.map(str::to_owned));
    args.push(fixture.cases.n_new.to_string());
    let mut document = steer(services, &args).await;
    let mut answer: Answer =
        serde_json::from_value(document["variants"][0].take()).expect("a variant");
    let prompt = document["prompt_token_ids"].take();
    answer.prompt_token_ids = serde_json::from_value(prompt).expect("ids");
    answer
}

fn edit_arguments(fixture: &Fixture, case: &Case) -> Vec<String> {
    let mut args = Vec::new();
    for intervention in &case.interventions {
        match intervention {
            CaseIntervention::Feature {
                labels,
                value,
                hook,
            } => {
                assert_eq!(*hook, fixture.cases.sae.hook, "the SAE has one hook point");
                for label in labels {
                    args.extend(["--feature".to_owned(), format!("{label}={value}")]);
                }
            }
            CaseIntervention::Cav {
                label,
                strength,
                hook,
            } => {
                args.extend(["--cav".to_owned(), format!("{label}={strength}")]);
                if *hook != fixture.cases.cavs.hook {
                    args.extend(["--hook".to_owned(), hook.clone()]);
                }
            }
        }
    }
    args
}

async fn ask_grpc(services: &Services, fixture: &Fixture, case: &Case) -> Answer {
    let sampling = request::greedy(fixture.cases.n_new);
    let request = request::of_case(&services.client, case, sampling).await;
    let mut transcript = request::run(&services.client, request).await;
    let variant = transcript.variants.remove(0);
    Answer {
        prompt_token_ids: transcript.prompt_token_ids,
        token_ids: variant.token_ids,
        logprobs: variant.logprobs.into_iter().map(f64::from).collect(),
        text: variant.text,
    }
}

fn compare(fixture: &Fixture, case: &Case, answer: &Answer) {
    let name = format!("{} {}", fixture.dir.display(), case.name);
    assert_eq!(answer.prompt_token_ids, case.prompt_token_ids, "{name}");
    assert_eq!(answer.token_ids, case.token_ids, "{name}");
    assert_eq!(answer.text, case.text, "{name}");
    assert_eq!(answer.logprobs.len(), case.token_ids.len(), "{name}");
    let pairs = answer.logprobs.iter().zip(fixture.logprobs(case));
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(
        worst <= LOGPROB_TOLERANCE,
        "{name}: logprobs differ by {worst}"
    );
}

/// A feature of an older version, by its SAE's digest, where the newest has the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feature_of_an_older_version_is_named_by_digest() {
    let fixture = Fixture::load("gemma2");
    let services = Services::start(&fixture, WorkerOptions::default()).await;
    import(&services, &fixture).await;
    let show = async |feature: &str| {
        let args = ["features", "show", feature, "--vectors"];
        run(&services, &args).await
    };
    let steer_by = async |feature: &str| {
        let edit = format!("{feature}=2");
        let prompt = ["generate", "a", "--raw", "--max-new-tokens", "1"];
        let steered = run(&services, &[&prompt[..], &["--feature", &edit]].concat()).await;
        steered["variants"][0]["interventions"][0]["payload_digest"].clone()
    };
    let (first, payload) = (show("#3").await, steer_by("#3").await);
    assert!(payload.is_string(), "{payload}");
    let digest = first["feature"]["sae_digest"].as_str().expect("digest");
    let newer = Fixture::load("gemma3").file(&Fixture::load("gemma3").cases.sae.path);
    let hook = &fixture.cases.sae.hook;
    let place = ["--name", SAE, "--hook", hook, "--model", MODEL];
    let version = [&["saes", "import", &newer, "--new-version"][..], &place].concat();
    run(&services, &version).await;
    assert_ne!(
        show("#3").await["feature"]["decoder"],
        first["feature"]["decoder"]
    );

    for digits in [8, 64] {
        let sae = format!("{SAE}@{}", &digest[..digits]);
        let old = format!("{sae}::#3");
        assert_eq!(show(&old).await, first);
        // The newest version is of another width.
        let similar = ["features", "similar", &old, "--in", &sae];
        let similar = run(&services, &similar).await;
        assert!(similar["compared_count"].as_u64() > Some(1), "{similar}");
        assert_eq!(steer_by(&old).await, payload);
    }
    services.stop().await;
}

macro_rules! families {
    ($($family:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $family() {
                golden(stringify!($family)).await;
            }
        )*

        #[test]
        fn no_family_is_forgotten() {
            assert_eq!([$(stringify!($family)),*], Fixture::FAMILIES);
        }
    };
}

families!(gemma2, gemma3, llama, llama_rope3, smollm2, qwen2, qwen3);
