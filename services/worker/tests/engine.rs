//! What a request gets depends on nothing but the request: not on who else is
//! in the batch, who leaves, who reads slowly, how prompts are cut, or what was
//! read before. Bit for bit, on the CPU.

mod support;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rand::RngExt;
use steering_proto::intervention::{Intervention, Positions};
use steering_worker::{
    engine::{EngineHandle, Event, SamplingPlan, Task},
    model::Model,
    text::TextCodec,
};
use support::{
    FAMILIES, Fixture, f32_on_cpu,
    requests::{Answer, Random, Reader, Request, config, in_pieces, program, with_engine},
};

const PREFIX_BYTES: usize = 1 << 20;

fn load(family: &str) -> (Arc<Model>, Arc<TextCodec>) {
    let fixture = Fixture::load(family);
    let model = fixture.model("model/config.json", &f32_on_cpu());
    let codec = TextCodec::from_hf_folder(&fixture.dir.join("model")).expect("tokenizer");
    (Arc::new(model), Arc::new(codec))
}

/// One after the other, each as if it were the first, prompts in one piece.
fn alone(model: &Arc<Model>, codec: &Arc<TextCodec>, requests: &[Request]) -> Vec<Answer> {
    let ask = |request: &Request| {
        with_engine(model, codec, config(16, 512, 0), |engine| {
            request.ask(engine, Reader::Eager).expect("stays")
        })
    };
    requests.iter().map(ask).collect()
}

/// All at once, each on its own thread.
fn together(
    engine: &EngineHandle,
    requests: &[Request],
    reader: impl Fn(usize) -> Reader,
) -> Vec<Option<Answer>> {
    thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .enumerate()
            .map(|(index, request)| {
                let reader = reader(index);
                scope.spawn(move || request.ask(engine, reader))
            })
            .collect();
        asked
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

fn wait_until_empty(engine: &EngineHandle) {
    let began = Instant::now();
    loop {
        let load = engine.load();
        if load.running_sequences == 0 && load.waiting_requests == 0 {
            assert_eq!(load.kv_bytes_reserved, 0);
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{load:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn storm(family: &str, seed: u64, n: usize) {
    let (model, codec) = load(family);
    let mut random = Random::new(seed, &model);
    let requests: Vec<_> = (0..n).map(|_| random.request()).collect();
    let readers: Vec<_> = (0..n)
        .map(|_| match random.rng.random_range(0..4) {
            0 => Reader::Slow,
            1 => Reader::Leaves(random.rng.random_range(0..6)),
            _ => Reader::Eager,
        })
        .collect();
    let expected = alone(&model, &codec, &requests);
    for (slots, chunk, prefix_bytes) in [(64, 7, PREFIX_BYTES), (5, 3, PREFIX_BYTES), (64, 512, 0)]
    {
        with_engine(
            &model,
            &codec,
            config(slots, chunk, prefix_bytes),
            |engine| {
                // The second time, prompts have been read before.
                for round in 0..2 {
                    let answers = together(engine, &requests, |index| readers[index]);
                    for (index, answer) in answers.iter().enumerate() {
                        if let Some(answer) = answer {
                            assert_eq!(
                                answer, &expected[index],
                                "{family}, request {index} of seed {seed}, {slots} slots, chunks of \
                             {chunk}, round {round}"
                            );
                        }
                    }
                    wait_until_empty(engine);
                }
            },
        );
    }
}

#[test]
fn a_request_gets_the_same_bits_whatever_else_happens() {
    for (seed, family) in FAMILIES.iter().enumerate() {
        storm(family, seed as u64, 24);
    }
}

#[test]
fn many_seeds_of_one_family() {
    for seed in 100..108 {
        storm("gemma2", seed, 16);
    }
}

/// 500 requests are cut at random; those that stay are undisturbed and every
/// slot comes back.
#[test]
fn a_cancel_storm_leaves_no_trace() {
    let (model, codec) = load("gemma3");
    let mut random = Random::new(7, &model);
    let survivors: Vec<_> = (0..8).map(|_| random.request()).collect();
    let expected = alone(&model, &codec, &survivors);
    let cut: Vec<_> = (0..500).map(|_| random.request()).collect();
    let after: Vec<usize> = cut.iter().map(|_| random.rng.random_range(0..5)).collect();
    with_engine(&model, &codec, config(64, 16, PREFIX_BYTES), |engine| {
        thread::scope(|scope| {
            scope.spawn(|| {
                for (request, &after) in cut.iter().zip(&after) {
                    request.ask(engine, Reader::Leaves(after));
                }
            });
            scope.spawn(|| {
                for request in &cut {
                    drop(request.submit(engine)); // gone before the first token
                }
            });
            for _ in 0..4 {
                let answers = together(engine, &survivors, |_| Reader::Eager);
                for (answer, expected) in answers.iter().zip(&expected) {
                    assert_eq!(answer.as_ref(), Some(expected));
                }
            }
        });
        wait_until_empty(engine);
    });
}

/// The attack: read a prompt under strong steering, then ask for the same, or a
/// longer, prompt unsteered, and under other steering.
#[test]
fn steering_never_leaks_through_the_prefix_cache() {
    let (model, codec) = load("llama");
    let mut random = Random::new(11, &model);
    let mut requests: Vec<Request> = Vec::new();
    let prompt: Arc<[u32]> = random.tokens(24).into();
    for _ in 0..40 {
        let mut request = random.request();
        request.prompt = prompt.clone();
        requests.push(request);
    }
    let expected = alone(&model, &codec, &requests);
    with_engine(&model, &codec, config(8, 512, PREFIX_BYTES), |engine| {
        for (request, expected) in requests.iter().zip(&expected) {
            let answer = request.ask(engine, Reader::Eager);
            assert_eq!(answer.as_ref(), Some(expected));
        }
        assert!(engine.load().prefix_tokens > 0, "nothing was shared at all");
    });
}

/// Of its variants, in ascending order.
fn shared_tokens(request: &Request, engine: &EngineHandle) -> Vec<usize> {
    let mut outcome = request.submit(engine);
    let mut shared = Vec::new();
    while let Some(event) = outcome.events.blocking_recv() {
        if let Event::Finished(finish) = event {
            shared.push(finish.shared_prompt_tokens);
        }
    }
    shared.sort_unstable();
    shared
}

#[test]
fn variants_and_later_requests_share_prompts() {
    let (model, codec) = load("smollm2");
    let mut random = Random::new(5, &model);
    let mut request = random.request();
    while !matches!(request.task, Task::Generate { .. }) {
        request = random.request();
    }
    request.prompt = random.tokens(20).into();
    request.variants = (0..4).map(|_| Arc::default()).collect();
    with_engine(&model, &codec, config(64, 512, PREFIX_BYTES), |engine| {
        let first = shared_tokens(&request, engine);
        assert_eq!(first, [0, 20, 20, 20], "three variants follow the first");
        let again = shared_tokens(&request, engine);
        assert_eq!(again, [19, 20, 20, 20], "all but the last token");
    });
}

/// An edit of the first tokens and one of the later ones, alike otherwise: each reports
/// its own part, also of what was read before, in one piece or in others.
#[test]
fn edits_in_pieces_report_their_own_part_of_a_prompt_read_before() {
    let (model, codec) = load("gemma2");
    let mut random = Random::new(3, &model);
    let whole = Intervention {
        positions: Positions::all(),
        gate: None,
        ..random.intervention()
    };
    let prompt: Arc<[u32]> = random.tokens(24).into();
    let sampling = SamplingPlan {
        max_new_tokens: 4,
        ..random.sampling()
    };
    let request = |interventions: &[Intervention]| Request {
        prompt: prompt.clone(),
        variants: vec![program(interventions)],
        task: Task::Generate {
            sampling: Arc::new(sampling.clone()),
            kl_divergence: false,
        },
    };
    let requests = [
        request(std::slice::from_ref(&whole)),
        request(&in_pieces(&whole, 9)),
        request(&in_pieces(&whole, 9)),
        request(&in_pieces(&whole, 15)),
    ];
    let expected = alone(&model, &codec, &requests);
    assert_ne!(expected[1], expected[3]);
    with_engine(&model, &codec, config(8, 512, PREFIX_BYTES), |engine| {
        for (request, expected) in requests.iter().zip(&expected) {
            let answer = request.ask(engine, Reader::Eager);
            assert_eq!(answer.as_ref(), Some(expected));
        }
        assert!(engine.load().prefix_tokens > 0, "nothing was shared at all");
    });
}
