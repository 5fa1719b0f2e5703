//! Llama and its relatives: Mistral, Qwen2, Qwen3, and whatever calls itself by their names (SmolLM2).
//!
//! They are one architecture with small differences, which are data here ([`VARIANTS`]).
//! Source: `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`, `modeling_qwen3.py` of transformers 4.57.

use candle_core::DType;

use super::checkpoint::Checkpoint;
use super::decoder::{Decoder, Logits, ROWS_PER_STEP, StepInput, StepSequence, TOKENS_PER_STEP, Wants};
use super::layers::{Linear, Part, Rope, SideBySide, activation, size};
use super::pass::failed;
use super::{Family, KvCache, KvSpec, Model};
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Device, Keeping, Matrix, RmsNorm, Run, Runs, Tensor, gated, paged_attention, paged_scratch_bytes,
    place_heads, rms_norm, take_rows,
};
use crate::repository::Spec;
use crate::value::Task;
use crate::weights::{Footprint, Index, Weights, check};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    footprint,
    load,
    ignored,
    tokens_per_image: None,
};

/// How one `model_type` differs from the others.
struct Variant {
    model_type: &'static str,
    /// Of queries, keys and values.
    qkv_bias: Bias,
    /// Of what attention ends with.
    output_bias: Bias,
    feed_forward_bias: Bias,
    /// Whether every head of queries and keys is normalised by itself.
    qk_norm: bool,
    window: Window,
    /// Where the file does not say, and it is not the heads' part of the width.
    head_dim: Option<usize>,
}

/// Whether layers have biases.
#[derive(Debug, Clone, Copy)]
enum Bias {
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

const VARIANTS: &[Variant] = &[LLAMA, MISTRAL, QWEN2, QWEN3];

impl Variant {
    /// By what `config.json` says it is or, when that is foreign, by what `model.toml` says.
    fn of(spec: &Spec) -> Result<&'static Variant> {
        let named = |name: &str| VARIANTS.iter().find(|variant| variant.model_type == name);
        let variant = named(spec.str_or("model_type", &spec.family)?).or_else(|| named(&spec.family));
        variant.ok_or_else(|| spec.config_error("model_type", format!("family '{}' does not build it", FAMILY.name)))
    }
}

impl Bias {
    fn read(self, spec: &Spec) -> Result<bool> {
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
struct Config {
    variant: &'static Variant,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    activation: Activation,
    eps: f64,
    vocabulary: usize,
    context: usize,
    rope: Rope,
    /// Of each layer.
    windows: Vec<Option<usize>>,
    /// Whether the last layer's weight is the embedding table.
    tied: bool,
}

impl Config {
    fn read(spec: &Spec) -> Result<Config> {
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
            context: rope.longest.map_or(positions, |longest| longest.min(positions)),
            rope,
            windows: variant.window.read(spec, layers)?,
            tied: spec.bool_or("tie_word_embeddings", false)?,
        })
    }

    /// Keys and values are as exact as weights are.
    fn kv(&self, weights: DType) -> KvSpec {
        KvSpec {
            layers: self.windows.len(),
            heads: self.kv_heads,
            head_dim: self.head_dim,
            dtype: if weights == DType::F32 { DType::F32 } else { DType::F16 },
            block_tokens: KvSpec::BLOCK_TOKENS,
        }
    }

    /// Bytes that a step takes beside weights and cache, at most.
    fn workspace(&self) -> u64 {
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

fn footprint(spec: &Spec, index: &Index, keeping: Keeping) -> Result<Footprint> {
    let config = Config::read(spec)?;
    if let Keeping::Cuda(_) = keeping {
        let reason =
            format!("a '{}' model runs on a CPU only: kernels for a GPU are not there yet", config.variant.model_type);
        return Err(spec.config_error("model_type", reason));
    }
    let workspace = config.workspace();
    let mut checkpoint = Checkpoint::headers(index, PREFIX, keeping).with_halves();
    Llama::build(spec, config, &mut checkpoint)?;
    let wanted = checkpoint.into_wanted();
    check(index, &wanted, &ignored)?;
    Ok(Footprint { wanted, workspace })
}

fn load(spec: &Spec, weights: Weights, device: &Device) -> Result<Model> {
    let config = Config::read(spec)?;
    let mut checkpoint = Checkpoint::loaded(weights, PREFIX, (device.keeping(), spec.f32_matmul)).with_halves();
    Ok(Model::Decoder(Box::new(Llama::build(spec, config, &mut checkpoint)?)))
}

const PREFIX: &str = "model.";

/// Frequencies that old checkpoints hold, and a last layer that was saved though it is the embedding table.
fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name == "lm_head.weight"
}

struct Llama {
    config: Config,
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Llama {
    fn build(spec: &Spec, config: Config, checkpoint: &mut Checkpoint<'_>) -> Result<Llama> {
        let embedding = checkpoint.base_matrix("embed_tokens.weight", &[config.vocabulary, config.hidden])?;
        let blocks = (0..config.windows.len()).map(|number| Block::load(spec, (&mut *checkpoint, number), &config));
        let blocks = blocks.collect::<Result<_>>()?;
        let norm = checkpoint.rms_norm("norm", (config.hidden, config.eps))?;
        let head = match config.tied {
            true => Linear::of(embedding.clone()),
            false => {
                let size = (config.hidden, config.vocabulary);
                Linear::load_without_bias(checkpoint, (Part::Head, "lm_head"), size)?
            }
        };
        Ok(Llama { config, embedding, blocks, norm, head })
    }

    fn check(&self, step: &StepInput, kv: &KvCache) -> Result<()> {
        let Config { vocabulary, context, .. } = self.config;
        // Either format will do.
        let (found, own) = (*kv.spec(), KvSpec { dtype: kv.spec().dtype, ..self.kv() });
        if found != own {
            return Err(Error::internal(format!("a cache of {found:?} for a model that has {own:?}")));
        }
        let (tokens, rows) = (step.tokens(), step.rows());
        if tokens > TOKENS_PER_STEP || rows > ROWS_PER_STEP {
            return Err(Error::internal(format!("a step of {tokens} tokens and {rows} rows of logits")));
        }
        for StepSequence { tokens, from, .. } in &step.sequences {
            if tokens.is_empty() {
                return Err(Error::internal("a sequence without a token in a step"));
            }
            let length = from.saturating_add(tokens.len());
            if length > context {
                return Err(Error::bad_request(format!("a sequence of {length} tokens, the model takes {context}")));
            }
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(Error::bad_request(format!("token id {id}, the model knows {vocabulary}")));
            }
        }
        Ok(())
    }

    /// `[rows that are wanted, vocabulary]`; nothing where none is.
    fn rows(&self, step: &StepInput, kv: &mut KvCache) -> candle_core::Result<Option<Tensor>> {
        let runs = step.sequences.iter().map(|sequence| Run {
            tokens: sequence.tokens.len(),
            from: sequence.from,
            blocks: &sequence.blocks,
        });
        let runs = Runs::new(runs.collect(), kv, &self.config.rope.rotary)?;
        let ids: Vec<u32> = step.sequences.iter().flat_map(|sequence| &sequence.tokens).copied().collect();
        let mut x = self.embedding.rows(&ids)?;
        let wanted = wanted_rows(step);
        let last = self.blocks.len() - 1;
        for (number, block) in self.blocks.iter().enumerate() {
            let context = block.attend(&x, &runs, (kv, number))?;
            // Nobody asks for the others' last states: only their keys and values had to be made.
            let (kept, context) = match number == last && wanted.len() < runs.total() {
                true if wanted.is_empty() => return Ok(None),
                true => (take_rows(&x, &wanted)?, take_rows(&context, &wanted)?),
                false => (x, context),
            };
            x = block.feed_forward(&kept, &context, self.config.activation)?;
        }
        self.head.forward(&rms_norm(&x, &self.norm)?).map(Some)
    }
}

/// Which rows of a step logits are wanted of.
fn wanted_rows(step: &StepInput) -> Vec<usize> {
    let mut next = 0;
    let rows = step.sequences.iter().flat_map(|sequence| {
        let first = next;
        next += sequence.tokens.len();
        match sequence.wants {
            Wants::Nothing => next..next,
            Wants::Last => next - 1..next,
            Wants::Every => first..next,
        }
    });
    rows.collect()
}

impl Decoder for Llama {
    fn kv(&self) -> KvSpec {
        self.config.kv(self.embedding.dtype())
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn step(&mut self, step: &StepInput, kv: &mut KvCache) -> Result<Logits> {
        self.check(step, kv)?;
        let rows = match step.sequences.is_empty() {
            true => None,
            false => self.rows(step, kv).map_err(failed)?,
        };
        let values = match rows {
            Some(rows) => rows.to_values().map_err(failed)?,
            None => Vec::new(),
        };
        Logits::new(values, self.config.vocabulary)
    }
}

/// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
struct Block {
    attention_norm: RmsNorm,
    /// Queries, keys, values.
    projections: SideBySide<3>,
    /// Of a query's head, of a key's.
    head_norms: Option<(RmsNorm, RmsNorm)>,
    output: Linear,
    window: Option<usize>,
    feed_forward_norm: RmsNorm,
    gate_and_up: SideBySide<2>,
    down: Linear,
}

impl Block {
    fn load(spec: &Spec, (checkpoint, number): (&mut Checkpoint<'_>, usize), config: &Config) -> Result<Block> {
        let &Config { variant, hidden, intermediate, head_dim, eps, .. } = config;
        let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        let at = |part: &str| format!("layers.{number}.{part}");
        let [qkv_bias, output_bias, bias] =
            [variant.qkv_bias, variant.output_bias, variant.feed_forward_bias].map(|bias| bias.read(spec));
        let bias = bias?;
        let linear = |bias: bool| if bias { Linear::load } else { Linear::load_without_bias };

        let [query, key, value] = ["q_proj", "k_proj", "v_proj"].map(|name| at(&format!("self_attn.{name}")));
        let names = [(query.as_str(), q), (key.as_str(), kv), (value.as_str(), kv)];
        let projections = SideBySide::load(checkpoint, (names, qkv_bias?), hidden)?;
        let mut head_norm = |name: &str| checkpoint.rms_norm(&at(name), (head_dim, eps));
        let head_norms = match variant.qk_norm {
            true => Some((head_norm("self_attn.q_norm")?, head_norm("self_attn.k_norm")?)),
            false => None,
        };
        let output = linear(output_bias?)(checkpoint, (Part::Base, &at("self_attn.o_proj")), (q, hidden))?;
        let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(at);
        let names = [(gate.as_str(), intermediate), (up.as_str(), intermediate)];
        Ok(Block {
            attention_norm: checkpoint.rms_norm(&at("input_layernorm"), (hidden, eps))?,
            projections,
            head_norms,
            output,
            window: config.windows[number],
            feed_forward_norm: checkpoint.rms_norm(&at("post_attention_layernorm"), (hidden, eps))?,
            gate_and_up: SideBySide::load(checkpoint, (names, bias), hidden)?,
            down: linear(bias)(checkpoint, (Part::Base, &at("mlp.down_proj")), (intermediate, hidden))?,
        })
    }

    /// What each row makes of its sequence, whose keys and values go into the cache: `[rows, heads * head_dim]`.
    fn attend(&self, x: &Tensor, runs: &Runs<'_>, (kv, number): (&mut KvCache, usize)) -> candle_core::Result<Tensor> {
        let projected = self.projections.forward(&rms_norm(x, &self.attention_norm)?)?;
        let [q, k, v] = projected.as_slice() else { candle_core::bail!("projections that are not three") };
        let norms = self.head_norms.as_ref().map(|(q, k)| (q, k));
        let queries = place_heads((q, k, v), norms, runs, (kv, number))?;
        drop(projected);
        paged_attention(&queries, runs, self.window, (kv, number))
    }

    fn feed_forward(&self, x: &Tensor, context: &Tensor, by: Activation) -> candle_core::Result<Tensor> {
        let x = self.output.forward_added(context, x)?;
        let both = self.gate_and_up.forward(&rms_norm(&x, &self.feed_forward_norm)?)?;
        let [gate, up] = both.as_slice() else { candle_core::bail!("gate and up that are not two") };
        let inside = gated(gate, up, by)?;
        drop(both);
        self.down.forward_added(&inside, &x)
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

    #[test]
    fn rows_that_are_wanted_are_counted_over_all_sequences() {
        let sequence = |tokens, wants| StepSequence { tokens: vec![0; tokens], from: 0, blocks: vec![0], wants };
        let sequences = vec![
            sequence(2, Wants::Last),
            sequence(3, Wants::Nothing),
            sequence(2, Wants::Every),
            sequence(1, Wants::Last),
        ];
        assert_eq!(wanted_rows(&StepInput { sequences }), [1, 5, 6, 7]);
    }

    #[test]
    fn old_frequencies_and_a_tied_head_are_left_unread_and_nothing_else_is() {
        assert!(ignored("model.layers.3.self_attn.rotary_emb.inv_freq") && ignored("lm_head.weight"));
        for name in ["model.layers.0.self_attn.q_proj.bias", "lm_head.bias", "model.embed_tokens.weight", "inv_freq"] {
            assert!(!ignored(name), "{name}");
        }
    }
}
