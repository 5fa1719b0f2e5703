//! `modules.json` and its folders: how sentence-transformers turns token states into one embedding.
//!
//! It reads descriptions only. Whatever would change the numbers and is not read here is refused by
//! name, never ignored. It must not know weights or tensors.
//!
//! Source: the `save` methods of sentence-transformers 2 to 5 (`models/Pooling.py`, `Dense.py`, `Normalize.py`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::files::{Fields, Folder, safe_relative, shown};
use crate::error::Result;

/// How token states become one vector, and what happens to it then.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingSpec {
    pub pooling: Pooling,
    /// Applied in order after pooling.
    pub dense: Vec<DenseSpec>,
    /// Whether the version itself scales its output to length 1.
    pub normalize: bool,
    /// Tokens of one input, special tokens included.
    pub max_seq_length: Option<usize>,
    pub do_lower_case: bool,
}

/// One vector from the states of a sequence; padding never counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    Mean,
    /// The first token's state.
    Cls,
    Max,
}

impl Pooling {
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Max => "max",
        }
    }
}

/// A linear layer after pooling.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseSpec {
    /// The module's folder, below the version folder: `2_Dense`.
    pub dir: PathBuf,
    pub in_features: usize,
    pub out_features: usize,
    pub bias: bool,
    /// The class as the file names it: `torch.nn.modules.activation.Tanh`.
    pub activation: String,
}

impl DenseSpec {
    /// The module's weights (`linear.weight` `[out, in]`, `linear.bias` `[out]`), below the version folder.
    pub fn weights_file(&self) -> PathBuf {
        self.dir.join("model.safetensors")
    }
}

/// Where older versions of the library wrote `sentence_bert_config.json`.
const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

impl EmbeddingSpec {
    /// Reads the modules of a version folder. Without `modules.json` it is a plain encoder, which is
    /// pooled by the mean and normalised.
    pub(super) fn read(folder: &Folder<'_>, hidden_size: Option<usize>) -> Result<Self> {
        let (max_seq_length, do_lower_case) = transformer_config(folder)?;
        let plain =
            EmbeddingSpec { pooling: Pooling::Mean, dense: Vec::new(), normalize: true, max_seq_length, do_lower_case };
        let Some(modules) = folder.json("modules.json")? else { return Ok(plain) };
        refuse_default_prompt(folder)?;
        let modules = modules.as_array().ok_or_else(|| folder.error("modules.json", "expected a list of modules"))?;
        let mut modules =
            modules.iter().map(|module| Module::read(folder, module)).collect::<Result<Vec<_>>>()?.into_iter();

        match modules.next() {
            Some(Module { kind: ModuleKind::Transformer, path }) if path.is_empty() => {}
            Some(Module { kind: ModuleKind::Transformer, path }) => {
                let reason = format!("the transformer is in {path:?}, but only one at the top of the folder is read");
                return Err(folder.error("modules.json", reason));
            }
            _ => return Err(folder.error("modules.json", "expected a Transformer as the first module")),
        }
        let (pooling, mut width) = match modules.next() {
            Some(Module { kind: ModuleKind::Pooling, path }) => read_pooling(folder, &path, hidden_size)?,
            _ => return Err(folder.error("modules.json", "expected a Pooling as the second module")),
        };
        let mut spec = EmbeddingSpec { pooling, normalize: false, ..plain };
        for module in modules {
            if spec.normalize {
                return Err(folder.error("modules.json", "expected nothing after Normalize"));
            }
            match module.kind {
                ModuleKind::Normalize => spec.normalize = true,
                ModuleKind::Dense => {
                    let dense = read_dense(folder, &module.path, width)?;
                    width = Some(dense.out_features);
                    spec.dense.push(dense);
                }
                ModuleKind::Transformer | ModuleKind::Pooling => {
                    return Err(folder.error("modules.json", "expected one Transformer and one Pooling"));
                }
            }
        }
        Ok(spec)
    }
}

struct Module {
    kind: ModuleKind,
    path: String,
}

enum ModuleKind {
    Transformer,
    Pooling,
    Dense,
    Normalize,
}

impl Module {
    fn read(folder: &Folder<'_>, value: &Value) -> Result<Module> {
        let Value::Object(object) = value else {
            return Err(folder.error("modules.json", format!("expected a module, found {}", shown(value))));
        };
        let fields = Fields { file: folder.file_label("modules.json"), object };
        let class = fields.required("type", fields.str("type")?)?;
        // The package moved its modules about, so the class's own name decides; a class from another
        // package is somebody's code, whatever it is called.
        let kind = match class.strip_prefix("sentence_transformers.").and_then(|inside| inside.rsplit('.').next()) {
            Some("Transformer") => ModuleKind::Transformer,
            Some("Pooling") => ModuleKind::Pooling,
            Some("Dense") => ModuleKind::Dense,
            Some("Normalize") => ModuleKind::Normalize,
            _ => {
                let known = "expected a Transformer, Pooling, Dense or Normalize of sentence_transformers";
                return Err(fields.error("type", format!("{class:?} is not supported, {known}")));
            }
        };
        let path = fields.str("path")?.unwrap_or("").to_owned();
        if !path.is_empty() {
            safe_relative(&path).map_err(|why| fields.error("path", why))?;
        }
        Ok(Module { kind, path })
    }
}

/// The object in `<path>/config.json`, and what errors call the file.
fn module_config(folder: &Folder<'_>, path: &str) -> Result<(String, Map<String, Value>)> {
    // an empty path would read the transformer's own config.json as the module's
    if path.is_empty() {
        return Err(folder.error("modules.json", "path: expected a folder for every module with a configuration"));
    }
    let file = format!("{path}/config.json");
    let object = folder.object(&file)?;
    Ok((folder.file_label(&file), object))
}

/// The pooling mode, and the width of what it gives where that is known.
fn read_pooling(folder: &Folder<'_>, path: &str, hidden_size: Option<usize>) -> Result<(Pooling, Option<usize>)> {
    let (file, object) = module_config(folder, path)?;
    let fields = Fields { file, object: &object };
    let modes = pooling_modes(&fields)?;
    let pooling = match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mean"] => Pooling::Mean,
        ["cls"] => Pooling::Cls,
        ["max"] => Pooling::Max,
        [] => return Err(fields.error("pooling_mode", "no mode is on, expected one of mean, cls, max")),
        [other] => {
            return Err(fields.error("pooling_mode", format!("{other:?} is not supported, expected mean, cls or max")));
        }
        _ => return Err(fields.error("pooling_mode", format!("expected one mode, found {}", modes.join(" and ")))),
    };
    let width_key =
        ["word_embedding_dimension", "embedding_dimension"].into_iter().find(|key| fields.get(key).is_some());
    let width = match width_key {
        Some(key) => fields.usize(key)?,
        None => None,
    };
    if let (Some(width), Some(hidden_size)) = (width, hidden_size)
        && width != hidden_size
    {
        let key = width_key.unwrap_or_default();
        return Err(fields.error(key, format!("expected the encoder's hidden size {hidden_size}, found {width}")));
    }
    Ok((pooling, width.or(hidden_size)))
}

/// The names of the modes that are on, in either form of the file.
fn pooling_modes(fields: &Fields<'_>) -> Result<Vec<String>> {
    const FLAG: &str = "pooling_mode_";
    match fields.get("pooling_mode") {
        Some(Value::String(mode)) => return Ok(vec![mode.clone()]),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            return Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        }
        Some(other) => {
            return Err(
                fields.error("pooling_mode", format!("expected a name or a list of names, found {}", shown(other)))
            );
        }
        None => {}
    }
    // The library's default is the mean, and naming another mode does not turn it off.
    let mut modes = Vec::new();
    if fields.bool("pooling_mode_mean_tokens")?.unwrap_or(true) {
        modes.push("mean".to_owned());
    }
    for key in fields.object.keys().filter(|key| key.starts_with(FLAG) && *key != "pooling_mode_mean_tokens") {
        if fields.bool(key)?.unwrap_or(false) {
            let mode = key.trim_start_matches(FLAG);
            modes.push(mode.strip_suffix("_tokens").or(mode.strip_suffix("_token")).unwrap_or(mode).to_owned());
        }
    }
    Ok(modes)
}

fn read_dense(folder: &Folder<'_>, path: &str, width: Option<usize>) -> Result<DenseSpec> {
    let (file, object) = module_config(folder, path)?;
    let fields = Fields { file, object: &object };
    for key in ["module_input_name", "module_output_name"] {
        if let Some(name) = fields.str(key)?.filter(|name| *name != "sentence_embedding") {
            return Err(fields.error(key, format!("expected \"sentence_embedding\", found {name:?}")));
        }
    }
    let dense = DenseSpec {
        dir: safe_relative(path).map_err(|why| folder.error("modules.json", why))?,
        in_features: fields.required("in_features", fields.usize("in_features")?)?,
        out_features: fields.required("out_features", fields.usize("out_features")?)?,
        bias: fields.bool("bias")?.unwrap_or(true),
        activation: fields.str("activation_function")?.unwrap_or("torch.nn.modules.activation.Tanh").to_owned(),
    };
    if dense.out_features == 0 {
        return Err(fields.error("out_features", "expected at least 1"));
    }
    match width {
        Some(width) if width != dense.in_features => {
            let found = dense.in_features;
            Err(fields.error("in_features", format!("expected {width}, the width of what comes before, found {found}")))
        }
        _ => Ok(dense),
    }
}

/// `max_seq_length` and `do_lower_case` of the transformer module.
fn transformer_config(folder: &Folder<'_>) -> Result<(Option<usize>, bool)> {
    for name in TRANSFORMER_CONFIGS {
        let Some(object) = folder.optional_object(name)? else { continue };
        let fields = Fields { file: folder.file_label(name), object: &object };
        let max_seq_length = fields.usize("max_seq_length")?;
        if max_seq_length == Some(0) {
            return Err(fields.error("max_seq_length", "expected at least 1"));
        }
        return Ok((max_seq_length, fields.bool("do_lower_case")?.unwrap_or(false)));
    }
    Ok((None, false))
}

/// A default prompt is put before every text by the library, and not by this server. An empty one changes nothing.
fn refuse_default_prompt(folder: &Folder<'_>) -> Result<()> {
    const FILE: &str = "config_sentence_transformers.json";
    let Some(object) = folder.optional_object(FILE)? else { return Ok(()) };
    let fields = Fields { file: folder.file_label(FILE), object: &object };
    let Some(name) = fields.str("default_prompt_name")? else { return Ok(()) };
    match fields.get("prompts").and_then(|prompts| prompts.get(name)) {
        Some(Value::String(prompt)) if prompt.is_empty() => Ok(()),
        _ => Err(fields.error("default_prompt_name", format!("the default prompt {name:?} is not supported"))),
    }
}
