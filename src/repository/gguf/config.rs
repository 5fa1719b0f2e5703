//! `config.json` from metadata and tensor infos.

use std::f64::consts::PI;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::gguf::{Header, Metadata, Strings, shown, small_f32s};

const ARCHITECTURE: &str = "general.architecture";
/// Architectures, and Hugging Face's class for them; `model_type` is the same word.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];
const EMBEDDING: &str = "token_embd.weight";
const TOKENS: &str = "tokenizer.ggml.tokens";
const FACTORS: &str = "rope_freqs.weight";
const ATTENTION: &str = "rope.scaling.attn_factor";

/// The `config.json` that a checkpoint of Hugging Face would have of the model in the file at `path`, whose header is
/// `header`. Errors name the key or tensor.
pub fn gguf_config(path: &Path, header: &Header) -> Result<Map<String, Value>, String> {
    let file = Description::new(header)?;
    let (embedding, vocabulary) = file.embedding()?;
    let hidden = file.required("embedding_length")?;
    if hidden != embedding {
        let key = file.key("embedding_length");
        return Err(format!("{key} is {hidden}, but the rows of tensor '{EMBEDDING}' have {embedding} values"));
    }
    let heads = file.required("attention.head_count")?;
    let head_dim = file.head_dim(hidden, heads)?;
    let positions = file.required("context_length")?;
    let theta = file.metadata.f64(&file.key("rope.freq_base"))?.unwrap_or(10_000.0);
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
    let window = file.usize("attention.sliding_window")?.filter(|window| *window > 0);
    let biases = ["blk.0.attn_q.bias", "blk.0.ffn_down.bias"].map(|name| header.tensor(name).is_some());
    let (kind, class) = file.kind(window, biases)?;
    put("architectures", json!([class]));
    put("model_type", json!(kind));
    put("vocab_size", json!(vocabulary));
    put("hidden_size", json!(hidden));
    put("intermediate_size", json!(file.required("feed_forward_length")?));
    put("num_hidden_layers", json!(file.required("block_count")?));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(file.usize("attention.head_count_kv")?.unwrap_or(heads)));
    put("head_dim", json!(head_dim));
    put("hidden_act", json!("silu"));
    put("max_position_embeddings", json!(positions));
    put("rms_norm_eps", json!(file.epsilon()?));
    put("rope_theta", json!(theta));
    put("rope_scaling", file.scaling(path, (head_dim, theta), positions)?);
    put("tie_word_embeddings", json!(header.tensor("output.weight").is_none()));
    match kind {
        "llama" => ["attention_bias", "mlp_bias"].iter().zip(biases).for_each(|(key, there)| {
            put(key, json!(there));
        }),
        "mistral" => drop(put("sliding_window", json!(window))),
        _ if window.is_some() => {
            put("sliding_window", json!(window));
            put("use_sliding_window", json!(true));
            put("max_window_layers", json!(0));
        }
        _ => {}
    }
    for (key, id) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        let id = file.token(&format!("tokenizer.ggml.{id}_token_id"), vocabulary)?;
        put(key, json!(id));
    }
    let ends = file.ends(vocabulary)?;
    if ends.len() > 1 {
        put("eos_token_id", json!(ends));
    }
    Ok(config)
}

struct Description<'a> {
    header: &'a Header,
    metadata: &'a Metadata,
    architecture: &'static str,
    class: &'static str,
}

impl<'a> Description<'a> {
    fn new(header: &'a Header) -> Result<Self, String> {
        let metadata = &header.metadata;
        let name = metadata.str(ARCHITECTURE)?.ok_or_else(|| format!("{ARCHITECTURE} is missing"))?;
        let known = ARCHITECTURES.into_iter().find(|(known, _)| *known == name);
        let (architecture, class) = known.ok_or_else(|| {
            let names = ARCHITECTURES.map(|(name, _)| name).join(", ");
            format!("the architecture {} is not read; {names} are", shown(name))
        })?;
        let file = Description { header, metadata, architecture, class };
        let experts = file.usize("expert_count")?.unwrap_or(0);
        match experts {
            0 => Ok(file),
            _ => Err(format!("{} is {experts}: a mixture of experts is not read", file.key("expert_count"))),
        }
    }

    /// `model_type` and class: the same word as the architecture, but that Hugging Face's Llama has no window and its
    /// Mistral no biases.
    fn kind(&self, window: Option<usize>, biases: [bool; 2]) -> Result<(&'static str, &'static str), String> {
        match (self.architecture, window) {
            ("llama", Some(_)) if biases == [false; 2] => Ok(("mistral", "MistralForCausalLM")),
            ("llama", Some(_)) => {
                Err(format!("{} and biases together are not read", self.key("attention.sliding_window")))
            }
            _ => Ok((self.architecture, self.class)),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn usize(&self, name: &str) -> Result<Option<usize>, String> {
        self.metadata.usize(&self.key(name))
    }

    fn f64(&self, name: &str) -> Result<Option<f64>, String> {
        self.metadata.f64(&self.key(name))
    }

    /// One or more.
    fn required(&self, name: &str) -> Result<usize, String> {
        match self.usize(name)? {
            None => Err(format!("{} is missing", self.key(name))),
            Some(0) => Err(format!("{} is 0", self.key(name))),
            Some(number) => Ok(number),
        }
    }

    /// The width of the table of tokens and the number of them, which its tokenizer must have too.
    fn embedding(&self) -> Result<(usize, usize), String> {
        let missing = || format!("tensor '{EMBEDDING}' is missing");
        let table = self.header.tensor(EMBEDDING).ok_or_else(missing)?;
        let &[width, rows] = table.dims.as_slice() else {
            return Err(format!("tensor '{EMBEDDING}' is no table: its shape is {:?}", table.dims));
        };
        let words = self.tokens()?.map(Strings::len);
        if let Some(words) = words.filter(|words| *words != rows) {
            return Err(format!("{TOKENS} has {words} tokens, but tensor '{EMBEDDING}' has rows for {rows}"));
        }
        let stated = self.usize("vocab_size")?;
        if let Some(stated) = stated.filter(|stated| *stated != rows) {
            let key = self.key("vocab_size");
            return Err(format!("{key} is {stated}, but tensor '{EMBEDDING}' has rows for {rows}"));
        }
        Ok((width, rows))
    }

    fn tokens(&self) -> Result<Option<&'a Strings>, String> {
        self.metadata.strings(TOKENS)
    }

    /// Of keys and values alike; all of it is turned.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, String> {
        let usual = || {
            let reason = format!("{hidden} values are no {heads} heads, and {} is missing", self.key(KEY_LENGTH));
            if hidden.is_multiple_of(heads) { Ok(hidden / heads) } else { Err(reason) }
        };
        const KEY_LENGTH: &str = "attention.key_length";
        let size = self.usize(KEY_LENGTH)?.map_or_else(usual, Ok)?;
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = self.usize(name)?.filter(|other| *other != size) {
                return Err(format!("{} is {other}, but heads are {size} wide: that is not read", self.key(name)));
            }
        }
        Ok(size)
    }

    fn epsilon(&self) -> Result<f64, String> {
        let name = "attention.layer_norm_rms_epsilon";
        self.f64(name)?.ok_or_else(|| format!("{} is missing", self.key(name)))
    }

    /// How positions beyond those of the training are reached: `null`, or what Hugging Face calls `rope_scaling`.
    ///
    /// Source: `llama_model::load_hparams` (`llama-model.cpp`), `llama_context`'s constructor and `rope_yarn` (`ops.cpp`).
    fn scaling(&self, path: &Path, head: (usize, f64), positions: usize) -> Result<Value, String> {
        let key = self.key("rope.scaling.type");
        let (by, stretch) = self.stretch()?;
        let (kind, said) = match (self.metadata.str(&key)?, stretch) {
            (Some(kind), _) => (kind, format!("{key} is {}", shown(kind))),
            // llama.cpp's own default is linear, by 1 where nothing is said; its converters write 0 for that, too.
            (None, Some(factor)) if factor != 0.0 && factor != 1.0 => ("linear", format!("{by} is {factor}")),
            (None, _) => ("none", format!("{key} is not there")),
        };
        let factor = || {
            let factor = stretch.filter(|factor| *factor > 0.0);
            factor.ok_or_else(|| format!("{by} is missing, or not above 0"))
        };
        let attention = self.f64(ATTENTION)?.filter(|attention| *attention != 1.0);
        if let Some(attention) = attention.filter(|attention| kind != "yarn" || *attention <= 0.0) {
            let key = self.key(ATTENTION);
            return Err(format!("{key} is {attention}, and {said}: it is read above 0, and beside YaRN, only"));
        }
        let original = self.usize("rope.scaling.original_context_length")?;
        let factors = self.header.tensor(FACTORS);
        match (kind, factors) {
            ("none", Some(factors)) => {
                let factors = small_f32s(path, factors)?;
                let fitted = llama3(&factors, head, original);
                fitted.ok_or_else(|| format!("tensor '{FACTORS}' is not what Llama 3's scaling makes: it is not read"))
            }
            ("none", None) => Ok(Value::Null),
            (_, Some(_)) => Err(format!("{said}, and there is a tensor '{FACTORS}' too")),
            ("linear", None) => Ok(json!({ "rope_type": "linear", "factor": factor()? })),
            ("yarn", None) => {
                let factor = factor()?;
                let original = original.unwrap_or(positions);
                let mut yarn = json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original,
                });
                // There it is one of two factors of rotated queries and keys, here it is both.
                if let Some(attention) = attention {
                    yarn["attention_factor"] = json!(attention * (1.0 + 0.1 * factor.ln()));
                }
                Ok(yarn)
            }
            (other, None) => Err(format!("{key}: {} is not read; none, linear and yarn are", shown(other))),
        }
    }

    /// By how much positions are drawn together, and the key that says so: the old one only where the new one is not there.
    fn stretch(&self) -> Result<(String, Option<f64>), String> {
        let [new, old] = ["rope.scaling.factor", "rope.scale_linear"];
        let name = if self.f64(new)?.is_none() && self.f64(old)?.is_some() { old } else { new };
        Ok((self.key(name), self.f64(name)?))
    }

    fn token(&self, key: &str, vocabulary: usize) -> Result<Option<u32>, String> {
        match self.metadata.u32(key)? {
            Some(id) if id as usize >= vocabulary => {
                Err(format!("{key} is {id}, the vocabulary has {vocabulary} tokens"))
            }
            id => Ok(id),
        }
    }

    /// Every token that ends an answer: those that the file names, and control tokens that llama.cpp knows by their text
    /// (`special_eog_ids` of `llama-vocab.cpp`), the end of a sequence first.
    fn ends(&self, vocabulary: usize) -> Result<Vec<u32>, String> {
        const TEXTS: [&str; 8] = [
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|end_of_text|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|eom_id|>",
            "<EOT>",
        ];
        const CONTROL: i64 = 3;
        let mut ends = Vec::new();
        let mut add = |id: u32| {
            if !ends.contains(&id) {
                ends.push(id)
            }
        };
        for name in ["eos", "eot", "eom"] {
            if let Some(id) = self.token(&format!("tokenizer.ggml.{name}_token_id"), vocabulary)? {
                add(id);
            }
        }
        let kinds = self.metadata.numbers("tokenizer.ggml.token_type")?.and_then(|kinds| kinds.integers());
        if let (Some(tokens), Some(kinds)) = (self.tokens()?, kinds) {
            let control = tokens.iter().zip(kinds).enumerate().filter(|(_, (_, kind))| *kind == CONTROL);
            control.filter(|(_, (text, _))| TEXTS.contains(text)).for_each(|(id, _)| add(id as u32));
        }
        Ok(ends)
    }
}

/// The parameters of Llama 3's scaling that give these factors; none where there are none.
///
/// llama.cpp's converter writes the factors and not the parameters (`generate_extra_tensors` of `convert_hf_to_gguf.py`):
/// 1 for wavelengths below `original / high`, `factor` for those above `original / low`, and in between the inverse of
/// `(1 - s) / factor + s` with `s = (original / wavelength - low) / (high - low)`, a line in the inverse of the wavelength.
/// Only ratios of `original`, `low` and `high` can be told from that; `low` is taken for 1, as everybody has it.
fn llama3(factors: &[f32], (head_dim, theta): (usize, f64), original: Option<usize>) -> Option<Value> {
    const TOLERANCE: f64 = 1e-4;
    if factors.len() != head_dim / 2 || factors.len() < 2 {
        return None;
    }
    let wavelength = |i: usize| 2.0 * PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    let factor = f64::from(*factors.last()?);
    let share = |found: f64| (1.0 / found - 1.0 / factor) / (1.0 - 1.0 / factor);
    let between: Vec<(f64, f64)> = (0..factors.len())
        .map(|i| (1.0 / wavelength(i), f64::from(factors[i])))
        .filter(|(_, found)| *found > 1.0 && *found < factor)
        .map(|(inverse, found)| (inverse, share(found)))
        .collect();
    let [(first, from), .., (last, to)] = between.as_slice() else { return None };
    let slope = (from - to) / (first - last);
    // s = slope / wavelength - low / (high - low)
    let low = 1.0;
    let high = low + low / (slope * first - from);
    let length = slope * (high - low);
    // Whole numbers, as everybody has them: the factors are f32.
    let (high, length) = ((high * 1e3).round() / 1e3, original.map_or(length.round(), |length| length as f64));
    let expected = |i: usize| match length / wavelength(i) {
        ratio if ratio > high => 1.0,
        ratio if ratio < low => factor,
        ratio => {
            let share = (ratio - low) / (high - low);
            1.0 / ((1.0 - share) / factor + share)
        }
    };
    let fits = (0..factors.len()).all(|i| (f64::from(factors[i]) / expected(i) - 1.0).abs() < TOLERANCE);
    let plain = factor > 1.0 && (1.0..1e9).contains(&length);
    (fits && plain).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length as u64,
        })
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
