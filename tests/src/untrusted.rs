//! Everything that reads what strangers send, each as a function of bytes. Fuzz targets
//! (`tests/fuzz`) call them, and a test replays their corpus: none may panic, run on, or
//! take memory that its input has not paid for.

use std::{
    ffi::OsString,
    fs::File,
    io::{Cursor, Seek, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use candle_core::quantized::gguf_file::{Content, Value};
use prost::Message as _;
use steering_client::{CavEdit, Condition, FeatureEdit, FeatureSelector, Gate, Readout, v1};
use steering_proto::{
    HookPoint,
    generate::{Generate, Message},
    score::Score,
};
use steering_registry::{
    cavs::CavFile,
    format::{
        SourceFile, gguf::read_gguf, npy::read_npz, safetensors::read_safetensors, tensor::Tensor,
        torch::TorchFile,
    },
    labels::{LabelContext, LabelFormat, read_labels},
};
use steering_service::settings;
use steering_worker::{
    Config, source,
    text::{GgufMetadata, TextCodec},
};

/// Tensors of more elements than this are described, not read.
const ELEMENTS_READ: usize = 1 << 16;

/// Reads bytes as one kind of input, and must not panic.
pub type Reader = fn(&[u8]);

/// All of them, by the name of their fuzz target.
pub const ALL: [(&str, Reader); 12] = [
    ("request", request),
    ("edit", edit),
    ("hook", hook),
    ("safetensors", safetensors),
    ("npz", npz),
    ("torch", torch),
    ("registry_gguf", registry_gguf),
    ("worker_gguf", worker_gguf),
    ("labels", labels),
    ("keys", keys),
    ("template", template),
    ("settings", settings_file),
];

/// From the wire to the domain: a generation, and a text to score.
pub fn request(data: &[u8]) {
    if let Ok(wire) = v1::GenerateRequest::decode(data) {
        let _ = Generate::try_from(wire);
    }
    if let Ok(wire) = v1::ScoreTextRequest::decode(data) {
        let _ = Score::try_from(wire);
    }
}

/// Edits, readouts and conditions as they are written on a command line.
pub fn edit(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let shown = [
        text.parse::<FeatureEdit>().map(|edit| edit.to_string()),
        text.parse::<FeatureSelector>().map(|one| one.to_string()),
        text.parse::<CavEdit>().map(|edit| edit.to_string()),
        text.parse::<Readout>().map(|readout| readout.to_string()),
    ];
    // What is understood can be shown.
    assert!(shown.into_iter().flatten().all(|text| !text.is_empty()));
    let _ = (text.parse::<Condition>(), text.parse::<Gate>());
}

/// Names of hook points.
pub fn hook(data: &[u8]) {
    let parsed = std::str::from_utf8(data).map(str::parse::<HookPoint>);
    if let Ok(Ok(point)) = parsed {
        assert_eq!(point.to_string().parse(), Ok(point));
    }
}

/// safetensors of SAEs and CAVs.
pub fn safetensors(data: &[u8]) {
    let source = in_file(data);
    if let Ok(file) = read_safetensors(&source) {
        file.tensors.values().for_each(read);
    }
    let _ = CavFile::read(&source, scratch());
}

/// numpy's archives.
pub fn npz(data: &[u8]) {
    let arrays = read_npz(in_file(data), scratch(), &mut |_, _| Ok(()));
    arrays
        .into_iter()
        .flatten()
        .for_each(|(_, tensor)| read(&tensor));
}

/// Files of `torch.save`: zip archives with a pickle.
pub fn torch(data: &[u8]) {
    let source = in_file(data);
    if let Ok(file) = TorchFile::open(source.clone(), scratch()) {
        let _ = file.pickle.root_entries();
    }
    let _ = CavFile::read(&source, scratch());
}

/// GGUF control vectors.
pub fn registry_gguf(data: &[u8]) {
    let source = in_file(data);
    if let Ok(file) = read_gguf(&source) {
        file.tensors.values().for_each(read);
    }
    let _ = CavFile::read(&source, scratch());
}

/// GGUF models: what passes the check is given to the library's reader and the tokenizer.
pub fn worker_gguf(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new_in(scratch()).expect("a temporary file");
    file.write_all(data).expect("written");
    if source::check_gguf(file.path()).is_err() {
        return;
    }
    if let Ok(content) = Content::read(&mut Cursor::new(data)) {
        let _ = TextCodec::from_gguf(&content.metadata);
    }
}

/// Label files of every format.
pub fn labels(data: &[u8]) {
    let context = LabelContext {
        d_sae: 64,
        source: "fuzz".to_owned(),
    };
    let detected = LabelFormat::detect(Cursor::new(data)).ok();
    let all = [
        LabelFormat::Notebook,
        LabelFormat::Rows,
        LabelFormat::Neuronpedia,
    ];
    for format in detected.into_iter().chain(all) {
        let _ = read_labels(data, format, &context, &mut |_| Ok(()));
    }
}

/// A file of API keys and, behind a zero byte, a header that is checked against it.
pub fn keys(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let file = parts.next().unwrap_or_default();
    let header = parts.next().unwrap_or_default();
    let _ = steering_service::admits(file, header);
}

/// Chat templates, as a model brings them.
pub fn template(data: &[u8]) {
    let Ok(template) = std::str::from_utf8(data) else {
        return;
    };
    let strings = |items: &[&str]| {
        let items = items.iter().map(|item| Value::String((*item).to_owned()));
        Value::Array(items.collect())
    };
    let types = [2, 3, 3, 1].map(Value::I32).to_vec();
    let metadata = GgufMetadata::from([
        (
            "tokenizer.ggml.model".to_owned(),
            Value::String("llama".to_owned()),
        ),
        (
            "tokenizer.ggml.tokens".to_owned(),
            strings(&["<unk>", "<s>", "</s>", "a"]),
        ),
        (
            "tokenizer.ggml.scores".to_owned(),
            Value::Array(vec![Value::F32(0.0); 4]),
        ),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(types)),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        (
            "tokenizer.chat_template".to_owned(),
            Value::String(template.to_owned()),
        ),
    ]);
    let codec = TextCodec::from_gguf(&metadata).expect("the tokenizer is sound");
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let conversation = [
        message("system", "Be brief."),
        message("user", "Write a haiku."),
        message("assistant", "An old silent pond"),
    ];
    let _ = codec.render_chat(&conversation, true);
}

/// A service's settings in a TOML file.
pub fn settings_file(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new_in(scratch()).expect("a temporary file");
    file.write_all(data).expect("written");
    let mut flag = OsString::from("--config=");
    flag.push(file.path());
    let args = vec!["steer-worker".into(), "--model=m".into(), flag];
    let _ = settings::load_from::<Config>(args);
}

fn read(tensor: &Tensor) {
    if tensor.shape().iter().product::<usize>() <= ELEMENTS_READ {
        let _ = tensor.values();
    }
}

fn in_file(data: &[u8]) -> Arc<SourceFile> {
    let mut file: File = tempfile::tempfile_in(scratch()).expect("a temporary file");
    file.write_all(data).expect("written");
    file.rewind().expect("rewound");
    Arc::new(SourceFile::new(file, "fuzz").expect("a file"))
}

/// Where files are fastest: in memory, if the machine has such a folder.
fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        }
    })
}
