//! What `config.json` says of a model of the family, held against sense before anything is multiplied.

use candle_core::DType;

use super::FAMILY;
use crate::error::Result;
use crate::model::decoder::{ROWS_PER_STEP, TOKENS_PER_STEP};
use crate::model::layers::{Rope, activation, size};
use crate::ops::{Activation, Keeping, KvSpec, likeliest_device_bytes, paged_device_bytes, paged_scratch_bytes};
use crate::repository::Spec;
use crate::value::Task;

/// Tokens of texts that are scored at once on a GPU.
const SCORED_TOKENS: usize = 4096;

/// What lies between tensors and between layers of a cache on a GPU, each of which begins on a border. Bytes.
const BORDERS: u64 = 1 << 20;

/// How one `model_type` differs from the others.
pub(super) struct Variant {
    pub(super) model_type: &'static str,
    /// Of queries, keys and values.
    pub(super) qkv_bias: Bias,
    /// Of what attention ends with.
    pub(super) output_bias: Bias,
    pub(super) feed_forward_bias: Bias,
    /// Whether every head of queries and keys is normalised by itself.
    pub(super) qk_norm: bool,
    window: Window,
    /// Where the file does not say, and it is not the heads' part of the width.
    head_dim: Option<usize>,
}

/// Whether layers have biases.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bias {
    Never,
    Always,
    /// Where this key is true.
    Where(&'static str),
}

/// Which layers see only the last `sliding_window` tokens.
#[derive(Debug, Clone, Copy)]
enum Window {
    None,
    /// All, if there is one; a file that does not speak of it means so many.
    All(usize),
    /// Where `use_sliding_window` says so, those that `layer_types` names, or from `max_window_layers` on.
    Some {
        unsaid: usize,
        first: usize,
    },
}

const LLAMA: Variant = Variant {
    model_type: "llama",
    qkv_bias: Bias::Where("attention_bias"),
    output_bias: Bias::Where("attention_bias"),
    feed_forward_bias: Bias::Where("mlp_bias"),
    qk_norm: false,
    window: Window::None,
    head_dim: None,
};

const MISTRAL: Variant = Variant {
    model_type: "mistral",
    qkv_bias: Bias::Never,
    output_bias: Bias::Never,
    feed_forward_bias: Bias::Never,
    window: Window::All(4096),
    ..LLAMA
};

const QWEN2: Variant = Variant {
    model_type: "qwen2",
    qkv_bias: Bias::Always,
    window: Window::Some { unsaid: 4096, first: 28 },
    ..MISTRAL
};

const QWEN3: Variant = Variant {
    model_type: "qwen3",
    qkv_bias: Bias::Where("attention_bias"),
    output_bias: Bias::Where("attention_bias"),
    qk_norm: true,
    head_dim: Some(128),
    ..QWEN2
};

pub(super) const VARIANTS: &[Variant] = &[LLAMA, MISTRAL, QWEN2, QWEN3];

impl Variant {
    /// By what `config.json` says it is or, when that is foreign, by what `model.toml` says.
    fn of(spec: &Spec) -> Result<&'static Variant> {
        let named = |name: &str| VARIANTS.iter().find(|variant| variant.model_type == name);
        let variant = named(spec.str_or("model_type", &spec.family)?).or_else(|| named(&spec.family));
        variant.ok_or_else(|| spec.config_error("model_type", format!("family '{}' does not build it", FAMILY.name)))
    }
}

impl Bias {
    pub(super) fn read(self, spec: &Spec) -> Result<bool> {
        match self {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::Where(key) => spec.bool_or(key, false),
        }
    }
}

impl Window {
    /// Of each layer.
    fn read(self, spec: &Spec, layers: usize) -> Result<Vec<Option<usize>>> {
        let length = |unsaid: usize| match spec.config.get("sliding_window") {
            None => Ok(Some(unsaid)),
            Some(value) if value.is_null() => Ok(None),
            Some(_) => size(spec, "sliding_window").map(Some),
        };
        match self {
            Window::None => Ok(vec![None; layers]),
            Window::All(unsaid) => Ok(vec![length(unsaid)?; layers]),
            Window::Some { unsaid, first } => {
                let length = if spec.bool_or("use_sliding_window", false)? { length(unsaid)? } else { None };
                let first = spec.usize_or("max_window_layers", first)?;
                let named = layer_types(spec, layers)?;
                let slides = |layer: usize| named.as_ref().map_or(layer >= first, |named| named[layer]);
                Ok((0..layers).map(|layer| length.filter(|_| slides(layer))).collect())
            }
        }
    }
}

/// Which layers are said to slide, where the file says so of each.
fn layer_types(spec: &Spec, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = spec.value("layer_types") else { return Ok(None) };
    let names = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let slides = names.iter().map(|name| match name.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(spec.config_error(
            "layer_types",
            format!("{name} is not supported; known are full_attention, sliding_attention"),
        )),
    });
    let slides = slides.collect::<Result<Vec<bool>>>()?;
    if slides.len() != layers {
        return Err(spec.config_error("layer_types", format!("expected {layers} names, found {}", slides.len())));
    }
    Ok(Some(slides))
}

/// The sizes and rules of one version.
pub(super) struct Config {
    pub(super) variant: &'static Variant,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) intermediate: usize,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) rope: Rope,
    /// Of each layer.
    pub(super) windows: Vec<Option<usize>>,
    /// Whether the last layer's weight is the embedding table.
    pub(super) tied: bool,
}

impl Config {
    pub(super) fn read(spec: &Spec) -> Result<Config> {
        let variant = Variant::of(spec)?;
        if spec.task != Task::Generate {
            let reason = format!("a '{}' model does not answer task '{}'", variant.model_type, spec.task);
            return Err(spec.config_error("model_type", reason));
        }
        let (hidden, heads) = (size(spec, "hidden_size")?, size(spec, "num_attention_heads")?);
        let kv_heads = spec.usize_or("num_key_value_heads", heads)?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} do not divide {heads} num_attention_heads");
            return Err(spec.config_error("num_key_value_heads", reason));
        }
        let head_dim = spec.usize_or("head_dim", variant.head_dim.unwrap_or(hidden / heads))?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 12 {
            return Err(spec.config_error("head_dim", format!("expected an even number up to 4096, found {head_dim}")));
        }
        let layers = size(spec, "num_hidden_layers")?;
        if layers > 1024 {
            return Err(spec.config_error("num_hidden_layers", format!("expected at most 1024, found {layers}")));
        }
        let eps = spec.f64_or("rms_norm_eps", 1e-6)?;
        if !(0.0..1.0).contains(&eps) {
            return Err(spec.config_error("rms_norm_eps", format!("expected a small positive number, found {eps}")));
        }
        let positions = size(spec, "max_position_embeddings")?;
        let rope = Rope::read(spec, head_dim, positions)?;
        let context = spec.context()?.unwrap_or(positions);
        Ok(Config {
            variant,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: size(spec, "intermediate_size")?,
            activation: activation(spec, ("hidden_act", "silu"))?,
            eps,
            vocabulary: size(spec, "vocab_size")?,
            context: rope.longest.map_or(context, |longest| longest.min(context)),
            rope,
            windows: variant.window.read(spec, layers)?,
            tied: spec.bool_or("tie_word_embeddings", false)?,
        })
    }

    /// Keys and values are as exact as weights are; on a GPU they are what activations are.
    pub(super) fn kv(&self, weights: DType, keeping: Keeping) -> KvSpec {
        KvSpec {
            layers: self.windows.len(),
            heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: match keeping {
                Keeping::Cuda(dtype) => dtype,
                Keeping::Cpu if weights == DType::F32 => DType::F32,
                Keeping::Cpu => DType::F16,
            },
            block_tokens: KvSpec::BLOCK_TOKENS,
        }
    }

    /// Blocks of a cache beside the generation's own, in which texts are scored: on a GPU some are kept for it.
    pub(super) fn blocks_to_score(&self, keeping: Keeping) -> usize {
        match keeping {
            Keeping::Cpu => usize::MAX,
            Keeping::Cuda(_) => self.context.min(SCORED_TOKENS).div_ceil(KvSpec::BLOCK_TOKENS),
        }
    }

    /// The same as [`Config::workspace`] on a GPU, where what passes take lies in one slab: everything that is ever there side by
    /// side, and not only what is there at once, so that no order of taking and giving leaves too little in one piece.
    fn workspace_on_a_gpu(&self, dtype: DType) -> u64 {
        let size = dtype.size_in_bytes() as u64;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // x, norm(x), q and k and v, q turned, context; the sum, its norm, gate and up, gated, what comes of them
        let values = (6 * self.hidden + 3 * q + 2 * kv + 3 * self.intermediate) as u64;
        let activations = TOKENS_PER_STEP as u64 * (values * size + self.head_dim as u64 * 4);
        let rows = ROWS_PER_STEP as u64 * ((2 * self.hidden) as u64 * size + self.vocabulary as u64 * 4);
        let rows = rows + likeliest_device_bytes(ROWS_PER_STEP, self.vocabulary);
        // Where each row's key goes, and blocks of as many sequences as there may be rows of, with what is done to them.
        let blocks = ROWS_PER_STEP * self.context.div_ceil(KvSpec::BLOCK_TOKENS);
        let tables = ((TOKENS_PER_STEP * (16 + self.heads / self.kv_heads) + 2 * blocks) * size_of::<u32>()) as u64;
        let spec = self.kv(dtype, Keeping::Cuda(dtype));
        let scored = spec.bytes_per_block() * self.blocks_to_score(Keeping::Cuda(dtype)) as u64;
        activations + rows + tables + paged_device_bytes(&spec, self.context) + scored + BORDERS
    }

    /// Bytes that a step takes beside weights and cache, at most.
    pub(super) fn workspace(&self, keeping: Keeping) -> u64 {
        if let Keeping::Cuda(dtype) = keeping {
            return self.workspace_on_a_gpu(dtype);
        }
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // x, norm(x), q and k and v, q turned, context; or x, norm(x), gate and up, gated
        let attention = 2 * self.hidden + 3 * q + 2 * kv;
        let feed_forward = 2 * self.hidden + 3 * self.intermediate;
        let live = attention.max(feed_forward) + self.head_dim;
        // logits come as a tensor and leave as rows of their own
        let rows = 2 * ROWS_PER_STEP * (self.vocabulary + self.hidden);
        let values = TOKENS_PER_STEP as u64 * live as u64 + rows as u64;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        values * size_of::<f32>() as u64 + paged_scratch_bytes((self.heads / self.kv_heads, self.head_dim), threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_type_of_the_family_has_a_variant() {
        let variants: Vec<&str> = VARIANTS.iter().map(|variant| variant.model_type).collect();
        assert_eq!(variants, FAMILY.model_types);
    }
}
