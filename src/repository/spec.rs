//! A version folder's description, from its small files in Hugging Face's layout, or from one GGUF file.
//!
//! It knows what the files say. It reads no weight bytes, and must not know tensors, tokenizers or
//! what an architecture makes of its configuration.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{Fields, Folder, safe_relative, shown};
use super::gguf::{TokenizerFiles, gguf_config};
use super::model_toml::{F32Matmul, ModelConfig};
pub use super::sentence_transformers::{DenseSpec, EmbeddingSpec, Pooling};
use crate::error::{Error, Result};
use crate::value::Task;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SINGLE: &str = "model.safetensors";
const SHARDS: &str = "model.safetensors.index.json";

/// More labels than any classifier has; a larger number is a broken file.
const MAX_LABELS: usize = 1_000_000;

/// What a version says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub model: String,
    pub version: String,
    pub dir: PathBuf,
    pub task: Task,
    /// `family` of `model.toml`, or `model_type` of `config.json` as it stands: `bert`, `xlm-roberta`, `vit`.
    pub family: String,
    /// `config.json`, an object; of a GGUF file what would be in it.
    pub config: Value,
    /// How an embedding is made; for [`Task::Embed`] only. A folder without `modules.json` is a plain
    /// encoder: pooled by the mean, and normalised.
    pub embedding: Option<EmbeddingSpec>,
    /// `preprocessor_config.json`, an object, where there is one.
    pub preprocessor: Option<Value>,
    /// Relative to `dir`: `model.safetensors`, or the shards that the index names, in order of name, or else the one GGUF
    /// file of the folder, which describes itself: no other file is then read, but for golden cases.
    /// The weights of dense modules are not among them: see [`DenseSpec::weights_file`].
    pub weight_files: Vec<PathBuf>,
    /// In the order of the logits: `id2label`, or `LABEL_0`.. for `num_labels` (2 when absent).
    /// Empty for tasks without a classifying head ([`Task::Embed`], [`Task::Generate`]).
    pub labels: Vec<String>,
    /// `[gpu] f32_matmul` of `model.toml`.
    pub f32_matmul: F32Matmul,
    /// `[generate] cache_tokens` of `model.toml`.
    pub cache_tokens: Option<usize>,
    /// `[batch] max_items` of `model.toml`: of a model that writes, the sequences that it writes at once.
    pub sequences: Option<usize>,
}

impl Spec {
    /// Reads the folder `dir` of `model@version`.
    ///
    /// Errors: [`Error::Unloadable`] with the file, and the key where there is one.
    pub fn read(dir: &Path, model: &str, version: &str, config: &ModelConfig) -> Result<Spec> {
        let folder = Folder { dir, label: format!("{model}/{version}") };
        if !dir.is_dir() {
            return Err(Error::unloadable(&folder.label, "is not a folder"));
        }
        let gguf = find_gguf(&folder)?;
        let (source, object) = match &gguf {
            Some(name) => (name.as_str(), described_by(&folder, name)?),
            None => (CONFIG, folder.object(CONFIG)?),
        };
        let fields = Fields { file: folder.file_label(source), object: &object };
        let family = match &config.family {
            Some(family) => family.clone(),
            None => fields.required("model_type", fields.str("model_type")?)?.to_owned(),
        };
        let labels = match config.task {
            Task::Classify | Task::ImageClassify | Task::Rerank => read_labels(&fields)?,
            Task::Embed | Task::Generate => Vec::new(),
        };
        let embedding = match config.task {
            Task::Embed => Some(EmbeddingSpec::read(&folder, hidden_size(&fields)?)?),
            _ => None,
        };
        Ok(Spec {
            model: model.to_owned(),
            version: version.to_owned(),
            dir: dir.to_owned(),
            task: config.task,
            family,
            embedding,
            preprocessor: folder.optional_object("preprocessor_config.json")?.map(Value::Object),
            weight_files: match gguf {
                Some(name) => vec![PathBuf::from(name)],
                None => find_weights(&folder)?,
            },
            labels,
            f32_matmul: config.gpu.f32_matmul,
            cache_tokens: config.generate.cache_tokens,
            sequences: config.batch.max_items,
            config: Value::Object(object),
        })
    }

    /// `model@version`.
    pub fn reference(&self) -> String {
        format!("{}@{}", self.model, self.version)
    }

    /// Every file that holds weights: the transformer's, then those of sentence-transformers' dense modules.
    pub fn all_weight_files(&self) -> Vec<PathBuf> {
        let dense = self.embedding.iter().flat_map(|embedding| &embedding.dense);
        self.weight_files.iter().cloned().chain(dense.map(|dense| dense.weights_file())).collect()
    }

    /// The file that is the whole version, where it is one GGUF file.
    pub fn gguf(&self) -> Option<PathBuf> {
        self.gguf_name().map(|name| self.dir.join(name))
    }

    fn gguf_name(&self) -> Option<&Path> {
        self.weight_files.first().map(PathBuf::as_path).filter(|name| crate::gguf::is_named(name))
    }

    /// Where [`Spec::config`] comes from, relative to `dir`.
    fn config_name(&self) -> String {
        self.gguf_name().map_or(CONFIG.to_owned(), |name| name.display().to_string())
    }

    /// A small file of the version, whole; `None` when there is none of that name. Of a version that is one GGUF file,
    /// those of its tokenizer are what that file would be written as, and there are no others.
    ///
    /// Errors: [`Error::Unloadable`] for a file that cannot be read, and a GGUF file without such a tokenizer.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.gguf() else {
            return match fs::read(self.dir.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                Err(e) => Err(self.file_error(name, e)),
            };
        };
        if !matches!(name, TOKENIZER | TOKENIZER_CONFIG) {
            return Ok(None);
        }
        let files = TokenizerFiles::read(&path).map_err(|why| self.file_error(&self.config_name(), why))?;
        let value = if name == TOKENIZER { files.tokenizer } else { files.config };
        serde_json::to_vec(&value).map(Some).map_err(Error::internal)
    }

    /// The length of an embedding; `None` for other tasks.
    pub fn dimension(&self) -> Option<usize> {
        let embedding = self.embedding.as_ref()?;
        match embedding.dense.last() {
            Some(dense) => Some(dense.out_features),
            None => self.with_fields(hidden_size).ok().flatten(),
        }
    }

    /// A key of `config.json`; `None` when it is absent or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// A whole number that `config.json` must have. A wrong type is an error here and in every reader below.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.with_fields(|fields| fields.required(key, fields.usize(key)?))
    }

    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        self.with_fields(|fields| Ok(fields.usize(key)?.unwrap_or(default)))
    }

    pub fn f64(&self, key: &str) -> Result<f64> {
        self.with_fields(|fields| fields.required(key, fields.f64(key)?))
    }

    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        self.with_fields(|fields| Ok(fields.f64(key)?.unwrap_or(default)))
    }

    /// Tokens that a model which writes has positions for; nothing where its configuration says nothing.
    ///
    /// YaRN is published as a factor beside `max_position_embeddings` as the model was trained with them (Qwen2.5, Qwen3), and makes
    /// the context that factor longer, as vLLM has it (`_get_and_verify_max_len`).
    pub fn context(&self) -> Result<Option<usize>> {
        let positions = self.with_fields(|fields| fields.usize("max_position_embeddings"))?;
        let scaling = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| self.value(key));
        let Some((positions, scaling)) = positions.zip(scaling) else { return Ok(positions) };
        let kind = ["rope_type", "type"].into_iter().find_map(|key| scaling.get(key)).and_then(Value::as_str);
        let number = |key: &str| scaling.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
        let stretched = match (kind, number("original_max_position_embeddings"), number("factor")) {
            // Whether the numbers make sense is told where they are used.
            (Some("yarn"), Some(original), Some(factor)) => (original * factor) as usize,
            _ => 0,
        };
        Ok(Some(positions.max(stretched)))
    }

    pub fn str(&self, key: &str) -> Result<&str> {
        let fields = self.fields()?;
        fields.required(key, fields.str(key)?)
    }

    pub fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.fields()?.str(key)?.unwrap_or(default))
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        self.with_fields(|fields| Ok(fields.bool(key)?.unwrap_or(default)))
    }

    /// An error about a key of `config.json`, for a family that cannot use its value.
    pub fn config_error(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        self.file_error(&self.config_name(), format!("{key}: {reason}"))
    }

    /// An error about a file of the version; `file` is relative to its folder.
    pub fn file_error(&self, file: &str, reason: impl std::fmt::Display) -> Error {
        Error::unloadable(format!("{}/{}/{file}", self.model, self.version), reason)
    }

    fn fields(&self) -> Result<Fields<'_>> {
        let name = self.config_name();
        let object = self.config.as_object().ok_or_else(|| self.file_error(&name, "expected an object"))?;
        Ok(Fields { file: format!("{}/{}/{name}", self.model, self.version), object })
    }

    fn with_fields<T>(&self, read: impl Fn(&Fields<'_>) -> Result<T>) -> Result<T> {
        read(&self.fields()?)
    }
}

/// The width of the encoder's states, under the name that the family gives it.
fn hidden_size(fields: &Fields<'_>) -> Result<Option<usize>> {
    for key in ["hidden_size", "dim", "d_model", "n_embd"] {
        if let Some(size) = fields.usize(key)? {
            return Ok(Some(size));
        }
    }
    Ok(None)
}

fn read_labels(fields: &Fields<'_>) -> Result<Vec<String>> {
    let count = fields.usize("num_labels")?;
    if let Some(count) = count.filter(|count| !(1..=MAX_LABELS).contains(count)) {
        return Err(fields.error("num_labels", format!("expected 1 to {MAX_LABELS}, found {count}")));
    }
    let labels = match fields.get("id2label") {
        None => return Ok((0..count.unwrap_or(2)).map(|id| format!("LABEL_{id}")).collect()),
        Some(Value::Object(names)) => id2label(fields, names)?,
        Some(other) => return Err(fields.error("id2label", format!("expected an object, found {}", shown(other)))),
    };
    match count {
        Some(count) if count != labels.len() => {
            let found = labels.len();
            Err(fields.error("num_labels", format!("expected {found}, as many as id2label has, found {count}")))
        }
        _ => Ok(labels),
    }
}

/// Labels by id; the ids must be 0 to n - 1, each once.
fn id2label(fields: &Fields<'_>, names: &Map<String, Value>) -> Result<Vec<String>> {
    if names.is_empty() {
        return Err(fields.error("id2label", "expected at least one label"));
    }
    let mut labels: Vec<Option<String>> = vec![None; names.len()];
    for (id, name) in names {
        let place = id.parse::<usize>().ok().and_then(|id| labels.get_mut(id)).filter(|place| place.is_none());
        let Some(place) = place else {
            let last = names.len() - 1;
            return Err(fields.error("id2label", format!("expected the ids 0 to {last}, each once, found {id:?}")));
        };
        *place = Some(match name {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(fields.error("id2label", format!("{id}: expected a string, found {}", shown(other)))),
        });
    }
    Ok(labels.into_iter().flatten().collect())
}

/// The safetensors files of the folder. One file goes before shards when both are there, as in Hugging Face's loader.
fn find_weights(folder: &Folder<'_>) -> Result<Vec<PathBuf>> {
    if folder.has(SINGLE) {
        return Ok(vec![PathBuf::from(SINGLE)]);
    }
    let Some(index) = folder.optional_object(SHARDS)? else {
        return Err(folder.error(SINGLE, format!("is missing, and so is {SHARDS}{}", other_weights(folder))));
    };
    let fields = Fields { file: folder.file_label(SHARDS), object: &index };
    let Some(Value::Object(map)) = fields.get("weight_map") else {
        return Err(fields.error("weight_map", "expected an object from tensor to file"));
    };
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let Value::String(file) = file else {
            return Err(fields.error("weight_map", format!("{tensor}: expected a file name, found {}", shown(file))));
        };
        if !files.contains(Path::new(file)) {
            files.insert(safe_relative(file).map_err(|why| fields.error("weight_map", format!("{tensor}: {why}")))?);
        }
    }
    if files.is_empty() {
        return Err(fields.error("weight_map", "expected at least one tensor"));
    }
    Ok(files.into_iter().collect())
}

/// The GGUF file of a folder that holds no other weights.
fn find_gguf(folder: &Folder<'_>) -> Result<Option<String>> {
    if folder.has(SINGLE) || folder.has(SHARDS) {
        return Ok(None);
    }
    let mut names = files_of(folder, &["gguf"]);
    match names.len() {
        0 | 1 => Ok(names.pop()),
        count => Err(folder.error(&names.swap_remove(1), format!("is one of {count} GGUF files, a version is one"))),
    }
}

fn described_by(folder: &Folder<'_>, name: &str) -> Result<Map<String, Value>> {
    let path = folder.dir.join(name);
    let header = crate::gguf::open(&path).map_err(|why| folder.error(name, why))?;
    gguf_config(&path, &header).map_err(|why| folder.error(name, why))
}

/// Tells somebody whose weights are in a format that is not read which file that is.
fn other_weights(folder: &Folder<'_>) -> String {
    const FORMATS: [&str; 7] = ["bin", "pt", "pth", "onnx", "h5", "msgpack", "safetensors"];
    match files_of(folder, &FORMATS).first() {
        Some(name) => format!(" ({name:?} is not read)"),
        None => String::new(),
    }
}

/// Names in the folder that end so, sorted.
fn files_of(folder: &Folder<'_>, extensions: &[&str]) -> Vec<String> {
    let Ok(entries) = folder.dir.read_dir() else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| Path::new(name).extension().is_some_and(|e| extensions.iter().any(|extension| e == *extension)))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
