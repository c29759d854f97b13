//! Putting a model together from its files.

use std::{
    fs,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Mutex,
};

use candle_core::{DType, Device, quantized::gguf_file::Content};
use sha2::{Digest, Sha256};
use steering_proto::payload::hex;

use super::{
    ConfigError, Model, ModelConfig, Quantization, SMALL,
    attention::Attention,
    config::RopeScaling,
    decoder::Layer,
    gpu::GpuDecoder,
    layers::{Linear, Mlp, RmsNorm},
    rope::Rope,
    weights::{GgufFile, Loader, Part, SafetensorsFiles, Scheme, Source, Target, WeightsError},
};
use crate::model::weights::LayerPart as P;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Type of activations and of weights that are not quantised.
    pub precision: Precision,
    /// Quantise matrices on load.
    pub quantize: Option<Quantization>,
    /// Expand quantised matrices to `precision`.
    pub dequantize: bool,
    /// Use matrices where they are in their files, if they can be, rather than copy them.
    pub map: bool,
    /// Where to run.
    pub device: Device,
}

/// Type of activations and of weights that are not quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Precision {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16, Self::F16]
            .into_iter()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| format!("{name:?} is not known; supported are f32, bf16, f16"))
    }
}

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// From the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl LoadError {
    fn file(path: &Path, problem: &impl ToString) -> Self {
        Self::File {
            path: path.display().to_string(),
            problem: problem.to_string(),
        }
    }
}

/// Reads a GGUF file's header.
pub(crate) fn read_gguf_header(path: &Path) -> Result<Content, LoadError> {
    let file = File::open(path).map_err(|e| LoadError::file(path, &e))?;
    Content::read(&mut BufReader::new(file)).map_err(|e| LoadError::file(path, &e))
}

impl Model {
    /// Loads a Hugging Face checkpoint: `config.json` and its safetensors files.
    pub fn load_hf(
        config: &Path,
        weights: &[PathBuf],
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let json = fs::read_to_string(config).map_err(|e| LoadError::file(config, &e))?;
        let config = ModelConfig::from_hf(&json)?;
        // What is quantised is made anew, and copied once more if it was mapped.
        let map = options.map && options.device.is_cpu() && options.quantize.is_none();
        let files = SafetensorsFiles::open(weights, map)?;
        let mut digest = Sha256::new_with_prefix(json.as_bytes());
        files
            .headers
            .iter()
            .for_each(|header| digest.update(header));
        let scheme = Scheme::HuggingFace {
            sandwich_norms: config.sandwich_norms,
        };
        let quantization = options.quantize.map_or("", Quantization::name);
        build(
            config,
            &files,
            scheme,
            options,
            quantization,
            &hex(&digest.finalize()),
        )
    }

    /// Loads a GGUF file, whose header has been read.
    pub fn load_gguf(
        path: &Path,
        mut content: Content,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let config = ModelConfig::from_gguf(&content)?;
        let digest = gguf_digest(path, &content).map_err(|e| LoadError::file(path, &e))?;
        // The vocabulary, mostly.
        content.metadata.clear();
        content.metadata.shrink_to_fit();
        let map = options.map && options.device.is_cpu() && !options.dequantize;
        let file = GgufFile::open(path, content, map)?;
        let quantization = if options.dequantize { "" } else { "gguf" };
        build(config, &file, Scheme::Gguf, options, quantization, &digest)
    }
}

/// SHA-256 of a file up to its tensors.
fn gguf_digest(path: &Path, content: &Content) -> std::io::Result<String> {
    let mut header = Vec::new();
    let mut file = File::open(path)?.take(content.tensor_data_offset);
    file.read_to_end(&mut header)?;
    Ok(hex(&Sha256::digest(&header)))
}

fn build(
    mut config: ModelConfig,
    source: &dyn Source,
    scheme: Scheme,
    options: &LoadOptions,
    quantization: &str,
    digest: &str,
) -> Result<Model, LoadError> {
    let target = Target {
        dtype: options.precision.dtype(),
        device: options.device.clone(),
        quantize: options.quantize,
        dequantize: options.dequantize,
        halves: options.device.is_cpu() && source.elements() > SMALL / size_of::<f32>(),
    };
    let mut loader = Loader::new(source, scheme, target);
    if scheme == Scheme::Gguf
        && let Some(factors) = loader.optional_vector("rope_freqs.weight", config.head_dim / 2)?
    {
        config.ropes[0].scaling = RopeScaling::Factors(factors);
    }
    let vocabulary = (config.vocab_size, config.d_model);
    let embedding = loader.embedding(Part::Embedding, vocabulary)?;
    let head = if config.tied_embeddings {
        embedding.clone()
    } else {
        loader.embedding(Part::Head, vocabulary)?
    };
    let layers = (0..config.layers.len())
        .map(|index| load_layer(&mut loader, &config, index))
        .collect::<Result<_, LoadError>>()?;
    let norm = load_norm(&mut loader, &config, Part::FinalNorm, config.d_model)?;
    let fallbacks = loader.finish()?;
    if fallbacks > 0 {
        tracing::warn!(
            "{fallbacks} matrices have rows that {quantization} blocks do not divide; they are \
             kept as q8_0 or unquantised"
        );
    }
    let mut model = Model {
        gpu: None,
        ropes: config
            .ropes
            .iter()
            .map(|rope| Rope::new(rope, config.head_dim))
            .collect(),
        config,
        digest: digest.to_owned(),
        quantization: quantization.to_owned(),
        dtype: options.precision.dtype(),
        device: options.device.clone(),
        embedding,
        layers,
        norm,
        head: Linear {
            weight: head,
            bias: None,
        },
    };
    model.gpu = GpuDecoder::of(&mut model)?.map(Mutex::new);
    Ok(model)
}

fn load_norm(
    loader: &mut Loader<'_>,
    config: &ModelConfig,
    part: Part,
    width: usize,
) -> Result<RmsNorm, LoadError> {
    let weight = loader.vector(part, width, true)?;
    Ok(RmsNorm::new(
        &weight,
        config.norm_eps,
        config.norm_weight_offset,
    )?)
}

fn load_layer(
    loader: &mut Loader<'_>,
    config: &ModelConfig,
    index: usize,
) -> Result<Layer, LoadError> {
    let c = config;
    let part = |p| Part::Layer(index, p);
    let mut norm = |p, width, wanted: bool| {
        wanted
            .then(|| load_norm(loader, c, part(p), width))
            .transpose()
    };
    let attention_post_norm = norm(P::AttentionPostNorm, c.d_model, c.sandwich_norms)?;
    let mlp_post_norm = norm(P::MlpPostNorm, c.d_model, c.sandwich_norms)?;
    let q_norm = norm(P::QNorm, c.head_dim, c.qk_norm)?;
    let k_norm = norm(P::KNorm, c.head_dim, c.qk_norm)?;
    let mut linear = |weight, bias, has_bias: bool, in_width, out_width| {
        let bias = has_bias.then(|| part(bias));
        loader.linear(part(weight), bias, (in_width, out_width))
    };
    let attention = Attention {
        q: linear(P::Q, P::QBias, c.qkv_bias, c.d_model, c.z_width())?,
        k: linear(P::K, P::KBias, c.qkv_bias, c.d_model, c.kv_width())?,
        v: linear(P::V, P::VBias, c.qkv_bias, c.d_model, c.kv_width())?,
        o: linear(P::O, P::OBias, c.o_bias, c.z_width(), c.d_model)?,
        q_norm,
        k_norm,
    };
    let mlp = Mlp {
        gate: linear(P::Gate, P::GateBias, c.mlp_bias, c.d_model, c.d_mlp)?,
        up: linear(P::Up, P::UpBias, c.mlp_bias, c.d_model, c.d_mlp)?,
        down: linear(P::Down, P::DownBias, c.mlp_bias, c.d_mlp, c.d_model)?,
        activation: c.activation,
    };
    Ok(Layer {
        attention_norm: load_norm(loader, c, part(P::AttentionNorm), c.d_model)?,
        attention,
        attention_post_norm,
        mlp_norm: load_norm(loader, c, part(P::MlpNorm), c.d_model)?,
        mlp,
        mlp_post_norm,
    })
}
