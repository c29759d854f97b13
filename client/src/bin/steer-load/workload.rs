//! Requests made of random numbers: prompts, directions, features.

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use steering_client::{Client, GenerationBuilder, prompt, v1};

/// What the requests of a load are like.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// Distinct interventions; requests take them in turn.
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub(crate) interventions: usize,
    /// Edits of one intervention.
    #[arg(long, value_name = "E", default_value_t = 1)]
    pub(crate) edits: usize,
    /// Layers that the edits are spread over, evenly through the model.
    #[arg(long, value_name = "L", default_value_t = 1)]
    pub(crate) layers: usize,
    /// What an edit is.
    #[arg(long, value_enum, default_value = "feature")]
    pub(crate) kind: Kind,
    /// Value of features, or strength of vectors.
    #[arg(long, value_name = "X", default_value_t = 5.0)]
    pub(crate) strength: f32,
    /// Tokens of every prompt; all prompts differ.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) prompt_tokens: usize,
    /// Tokens that every request generates; none ends earlier.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_new_tokens: u32,
    /// Seed of everything random here.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Set an SAE feature: two directions, one threshold.
    Feature,
    /// Add a vector.
    Vector,
}

/// Whether requests are steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steered {
    Off,
    On,
}

/// Makes requests for one model.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    shape: Shape,
    pub(crate) model: v1::GetModelResponse,
    /// Token in front of every prompt, where the tokenizer adds one.
    bos: Option<u32>,
    rng: Rng,
    requests: usize,
    /// A request per intervention that was asked for: to make directions of random numbers
    /// anew each time would cost as much as sending them.
    steered: Vec<v1::GenerateRequest>,
}

impl Workload {
    pub(crate) async fn new(client: &Client, shape: Shape) -> anyhow::Result<Self> {
        let model = client.get_model().await?;
        let layers = model.n_layers as usize;
        ensure!(
            (1..=layers).contains(&shape.layers) && shape.layers <= shape.edits,
            "--layers is {}; the model has {layers} layers, and every layer needs an edit \
             (--edits {})",
            shape.layers,
            shape.edits
        );
        ensure!(shape.interventions > 0, "--interventions is at least 1");
        ensure!(shape.prompt_tokens > 0, "--prompt-tokens is at least 1");
        let tokens = client.tokenize(prompt::text("a")).await?.tokens;
        let bos = tokens.first().filter(|token| token.special);
        Ok(Self {
            bos: bos.map(|token| token.token_id),
            rng: Rng(shape.seed),
            requests: 0,
            steered: Vec::new(),
            shape,
            model,
        })
    }

    /// A load of another shape, with prompts of its own.
    pub(crate) fn with(&mut self, change: impl FnOnce(&mut Shape)) -> Self {
        let mut other = Self {
            rng: Rng(self.rng.next()),
            steered: Vec::new(),
            ..self.clone()
        };
        change(&mut other.shape);
        other
    }

    /// The next request: a prompt nobody has sent before, the next intervention.
    pub(crate) fn request(&mut self, steered: Steered) -> anyhow::Result<v1::GenerateRequest> {
        let number = self.requests;
        self.requests += 1;
        if steered == Steered::Off {
            let mut builder = self.builder();
            builder.variant("baseline", Vec::new());
            return Ok(builder.build());
        }
        let which = number % self.shape.interventions;
        while self.steered.len() <= which {
            let mut builder = self.builder();
            let next = self.steered.len();
            let edits = self.edits(next, self.shape.strength, &mut builder)?;
            builder.variant("steered", edits);
            self.steered.push(builder.build());
        }
        let mut request = self.steered[which].clone();
        request.prompt = Some(self.prompt());
        Ok(request)
    }

    /// One prompt under `variants` strengths of one intervention.
    pub(crate) fn sweep(&mut self, variants: usize) -> anyhow::Result<v1::GenerateRequest> {
        let mut builder = self.builder();
        for i in 0..variants {
            let strength = self.shape.strength * (i + 1) as f32 / variants as f32;
            let edits = self.edits(0, strength, &mut builder)?;
            builder.variant(format!("{strength}"), edits);
        }
        Ok(builder.build())
    }

    fn prompt(&mut self) -> v1::Prompt {
        let vocabulary = u64::from(self.model.vocab_size.max(1));
        let random = self.shape.prompt_tokens - usize::from(self.bos.is_some());
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        ids.extend((0..random).map(|_| (self.rng.next() % vocabulary) as u32));
        prompt::token_ids(ids)
    }

    fn builder(&mut self) -> GenerationBuilder {
        let mut builder = GenerationBuilder::new(self.prompt());
        builder.sampling(v1::Sampling {
            max_new_tokens: Some(self.shape.max_new_tokens),
            do_sample: Some(false),
            ignore_eos: true,
            ..v1::Sampling::default()
        });
        builder
    }

    /// An intervention is the same whenever it is asked for.
    fn edits(
        &self,
        which: usize,
        strength: f32,
        builder: &mut GenerationBuilder,
    ) -> anyhow::Result<Vec<v1::Intervention>> {
        let (layers, depth) = (self.shape.layers, self.model.n_layers as usize);
        let edit = |i: usize| {
            let layer = (i % layers * 2 + 1) * depth / (2 * layers);
            let hook_name = format!("blocks.{layer}.hook_resid_post");
            let number = which * self.shape.edits + i;
            let edit = self.edit(number, hook_name, strength, builder)?;
            Ok(v1::Intervention {
                edit: Some(edit),
                positions: None,
                gate: None,
            })
        };
        (0..self.shape.edits).map(edit).collect()
    }

    fn edit(
        &self,
        number: usize,
        hook_name: String,
        strength: f32,
        builder: &mut GenerationBuilder,
    ) -> anyhow::Result<v1::intervention::Edit> {
        use v1::{feature_edit::Operation, intervention::Edit};
        let width = self.model.d_model as usize;
        let mut rng = Rng(self.shape.seed ^ (number as u64 + 1).wrapping_mul(GOLDEN));
        Ok(match self.shape.kind {
            Kind::Feature => {
                let feature = v1::SaeFeature {
                    sae_id: "steer-load".to_owned(),
                    feature_index: u32::try_from(number).context("too many features")?,
                    hook_name,
                    model_id: self.model.model_id.clone(),
                    encoder: rng.direction(width),
                    decoder: rng.direction(width),
                    activation: Some(v1::sae_feature::Activation::JumpRelu(
                        v1::JumpReluActivation { threshold: 0.5 },
                    )),
                    input_normalization: v1::InputNormalization::None.into(),
                    ..v1::SaeFeature::default()
                };
                Edit::Feature(v1::FeatureEdit {
                    feature: builder.feature(feature),
                    operation: Some(Operation::Set(strength)),
                })
            }
            Kind::Vector => Edit::VectorAdd(v1::VectorAdd {
                vector: builder.vector(v1::Vector {
                    name: format!("direction {number}"),
                    values: rng.direction(width),
                }),
                hook_name,
                strength,
                unit: v1::StrengthUnit::Raw.into(),
            }),
        })
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: small, seeded, good enough for prompts and directions.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Time to the next of arrivals that come at this rate: exponential.
    pub(crate) fn arrival(&mut self, rate: f64) -> f64 {
        -self.unit().ln() / rate
    }

    /// A vector of length 1 in any direction.
    fn direction(&mut self, width: usize) -> Vec<f32> {
        let normal = |rng: &mut Self| {
            let radius = (-2.0 * rng.unit().ln()).sqrt();
            radius * (std::f64::consts::TAU * rng.unit()).cos()
        };
        let values: Vec<f64> = (0..width).map(|_| normal(self)).collect();
        let norm = values
            .iter()
            .map(|v| v * v)
            .sum::<f64>()
            .sqrt()
            .max(f64::MIN_POSITIVE);
        values
            .into_iter()
            .map(|value| (value / norm) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(shape: impl FnOnce(&mut Shape)) -> Workload {
        let mut base = Workload {
            shape: Shape {
                interventions: 2,
                edits: 4,
                layers: 2,
                kind: Kind::Feature,
                strength: 5.0,
                prompt_tokens: 8,
                max_new_tokens: 3,
                seed: 1,
            },
            model: v1::GetModelResponse {
                d_model: 16,
                n_layers: 6,
                vocab_size: 100,
                ..v1::GetModelResponse::default()
            },
            bos: Some(2),
            rng: Rng(1),
            requests: 0,
            steered: Vec::new(),
        };
        base.with(shape)
    }

    #[test]
    fn interventions_repeat_after_k_requests_and_prompts_never() {
        let mut load = workload(|_| {});
        let mut next = || load.request(Steered::On).expect("a request");
        let (a, b, c) = (next(), next(), next());
        assert_ne!(a.features, b.features);
        assert_eq!(a.features, c.features);
        assert_eq!(a.variants, c.variants);
        assert!(a.prompt != b.prompt && a.prompt != c.prompt);
        let hooks: Vec<&str> = a.features.iter().map(|f| f.hook_name.as_str()).collect();
        let layers = [1, 4, 1, 4].map(|layer| format!("blocks.{layer}.hook_resid_post"));
        assert_eq!(hooks, layers);
    }

    #[test]
    fn a_sweep_sends_its_payload_once() {
        let request = workload(|shape| shape.kind = Kind::Vector)
            .sweep(10)
            .expect("a request");
        assert_eq!((request.variants.len(), request.vectors.len()), (10, 4));
    }

    #[test]
    fn arrivals_come_at_their_rate() {
        let mut rng = Rng(7);
        let total: f64 = (0..10_000).map(|_| rng.arrival(4.0)).sum();
        assert!((total / 10_000.0 - 0.25).abs() < 0.01, "{total}");
    }

    #[test]
    fn directions_have_length_one() {
        let direction = Rng(3).direction(512);
        let norm: f32 = direction.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5);
        let mean: f32 = direction.iter().sum::<f32>() / 512.0;
        assert!(mean.abs() < 0.01);
    }
}
