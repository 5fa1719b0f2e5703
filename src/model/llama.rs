//! Llama and its relatives: Mistral, Qwen2, Qwen3, and whatever calls itself by their names (SmolLM2).
//!
//! They are one architecture with small differences, which are data (`config`).
//! Source: `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`, `modeling_qwen3.py` of transformers 4.57.

mod config;

use std::time::Instant;

use self::config::Config;
use super::checkpoint::Checkpoint;
use super::decoder::{
    Begun, Decoder, Logits, ROWS_PER_STEP, SEQUENCES, StepInput, StepSequence, TOKENS_PER_STEP, Wants,
};
use super::layers::{Linear, Part, SideBySide};
use super::pass::failed;
use super::recorded_steps::RecordedSteps;
use super::recordings::Warmth;
use super::{Family, KvCache, KvSpec, Model};
use crate::device::give_way;
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Ask, Device, Form, Given, Keeping, Matrix, RmsNorm, Run, Runs, Segments, StepForm, Tensor, Told, gated,
    paged_attention, place_heads, rms_norm,
};
use crate::repository::Spec;
use crate::weights::{CacheFootprint, Footprint, Index, Progress, Weights, check};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    footprint,
    load,
    ignored,
    tokens_per_image: None,
    longest: Some(|spec| {
        let config = Config::read(spec)?;
        Ok(config.context.min(blocks(spec, &config) * KvSpec::BLOCK_TOKENS))
    }),
};

fn footprint(spec: &Spec, index: &Index, keeping: Keeping) -> Result<Footprint> {
    let config = Config::read(spec)?;
    if keeping != Keeping::Cpu && config.head_dim > WIDEST_ON_A_GPU {
        let reason = format!("{} on a GPU, where heads are up to {WIDEST_ON_A_GPU} wide", config.head_dim);
        return Err(spec.config_error("head_dim", reason));
    }
    let (workspace, blocks) = (config.workspace(keeping), blocks(spec, &config));
    let mut checkpoint = Checkpoint::headers(index, PREFIX, keeping).kept_compact();
    let model = Llama::build(spec, config, (&mut checkpoint, &Device::Cpu))?;
    let kv = model.kv();
    let cache = CacheFootprint {
        bytes_per_block: kv.bytes_per_block(),
        block_tokens: kv.block_tokens,
        blocks,
        longest: model.context(),
        sequences: spec.sequences.unwrap_or(SEQUENCES).min(ROWS_PER_STEP),
    };
    let workspace = workspace.saturating_add(cache.bytes());
    let wanted = checkpoint.into_wanted();
    check(index, &wanted, &ignored)?;
    // Weights that are spelled out for products of many rows are so one after the other, in the same memory.
    let spelled = wanted.iter().map(|want| want.layout.spelled_bytes(&want.whole(), keeping)).max();
    let workspace = workspace.saturating_add(spelled.unwrap_or(0));
    Ok(Footprint { wanted, workspace, cache: Some(cache) })
}

/// Of the cache: for as many tokens as the spec says, or for a long conversation and several short ones.
fn blocks(spec: &Spec, config: &Config) -> usize {
    let tokens = spec.cache_tokens.unwrap_or(config.context.max(CACHE_TOKENS));
    tokens.div_ceil(KvSpec::BLOCK_TOKENS)
}

fn load(spec: &Spec, weights: Weights, device: &Device) -> Result<Model> {
    let config = Config::read(spec)?;
    let blocks = blocks(spec, &config);
    let mut checkpoint = Checkpoint::loaded(weights, PREFIX, (device.keeping(), spec.f32_matmul)).kept_compact();
    let model = Llama::build(spec, config, (&mut checkpoint, device))?;
    let cache = KvCache::new(&model.kv(), blocks, device).map_err(failed)?;
    Ok(Model::Decoder(Box::new(model), Box::new(cache)))
}

const PREFIX: &str = "model.";

/// The widest heads that kernels attend with.
const WIDEST_ON_A_GPU: usize = 256;

/// Tokens of all sequences together that are kept where nothing is said.
const CACHE_TOKENS: usize = 16 << 10;

/// Frequencies that old checkpoints hold, and a last layer that was saved though it is the embedding table.
fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name == "lm_head.weight"
}

struct Llama {
    config: Config,
    device: Device,
    /// How it is kept there, or will be.
    keeping: Keeping,
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    /// How many sequences are written at once, where that is said.
    sequences: Option<usize>,
    recorded: RecordedSteps,
}

impl Llama {
    fn build(spec: &Spec, config: Config, (checkpoint, device): (&mut Checkpoint<'_>, &Device)) -> Result<Llama> {
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
        let (device, keeping) = (device.clone(), checkpoint.keeping());
        let (sequences, recorded) = (spec.sequences, RecordedSteps::default());
        Ok(Llama { config, device, keeping, embedding, blocks, norm, head, sequences, recorded })
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
        for StepSequence { tokens, from, wants, .. } in &step.sequences {
            if tokens.is_empty() {
                return Err(Error::internal("a sequence without a token in a step"));
            }
            let length = from.saturating_add(tokens.len());
            if length > context {
                return Err(Error::bad_request(format!("a sequence of {length} tokens, the model takes {context}")));
            }
            let scored = if let Wants::Scored { next } = wants { Some(next) } else { None };
            if let Some(id) = tokens.iter().chain(scored).find(|&&id| id as usize >= vocabulary) {
                return Err(Error::bad_request(format!("token id {id}, the model knows {vocabulary}")));
            }
        }
        Ok(())
    }

    /// Goes through the products of steps of every size: which algorithm suits one is asked once for each power of two of rows.
    fn look_up(&self, progress: &Progress) -> candle_core::Result<()> {
        let Some(recorder) = self.device.looking_up()? else { return Ok(()) };
        let Keeping::Cuda(dtype) = self.keeping else { return Ok(()) };
        for rows in (0..=TOKENS_PER_STEP.ilog2()).map(|power| 1 << power) {
            give_way();
            if progress.is_cancelled() {
                return Ok(());
            }
            let form = Form { segments: Segments::of([rows]), shape: vec![rows, self.config.hidden], dtype };
            recorder.look_up(&form, |mut x, _| {
                // All of them are of the same sizes, but quantised checkpoints mix formats, and what is stacked with them.
                for block in &self.blocks {
                    let projected = block.projections.forward(&x)?;
                    let [q, ..] = projected.as_slice() else { candle_core::bail!("projections that are not three") };
                    let context = q.beside_it()?;
                    drop(projected);
                    x = block.feed_forward(x, context, self.config.activation)?;
                }
                if rows <= ROWS_PER_STEP {
                    self.head.forward_in_f32(&x)?;
                }
                Ok(x)
            })?;
        }
        Ok(())
    }

    /// What steps have in common.
    fn form(&self) -> StepForm<'_> {
        let Config { rope, heads, kv_heads, windows, context, .. } = &self.config;
        StepForm { rotary: &rope.rotary, heads: (heads / kv_heads, windows), context: *context }
    }

    /// A step's rows, and what is wanted of them.
    fn runs<'a>(&self, step: &'a StepInput, kv: &KvCache) -> candle_core::Result<Runs<'a>> {
        let runs = step.sequences.iter().map(|sequence| Run {
            tokens: sequence.tokens.len(),
            from: sequence.from,
            blocks: &sequence.blocks,
        });
        let ids = step.sequences.iter().flat_map(|sequence| &sequence.tokens).copied().collect();
        let given = Given { ids, wanted: wanted_rows(step), asks: step.asks() };
        Runs::new(runs.collect(), kv, &self.config.rope.rotary)?.with(given)
    }

    /// `[rows that are wanted, vocabulary]`; nothing where none is.
    fn rows(&self, runs: &Runs<'_>, kv: &mut KvCache) -> candle_core::Result<Option<Tensor>> {
        let mut x = runs.embed(&self.embedding)?;
        let last = self.blocks.len() - 1;
        for (number, block) in self.blocks.iter().enumerate() {
            let context = block.attend(&x, runs, (kv, number))?;
            // Nobody asks for the others' last states: only their keys and values had to be made.
            let (kept, context) = match number == last && runs.wanted() < runs.total() {
                true if runs.wanted() == 0 => return Ok(None),
                true => (runs.take_wanted(&x)?, runs.take_wanted(&context)?),
                false => (x, context),
            };
            x = block.feed_forward(kept, context, self.config.activation)?;
        }
        self.head.forward_in_f32(&rms_norm(&x, &self.norm)?).map(Some)
    }

    /// Records steps of one token for each sequence, of as many sizes as are needed.
    fn record(&self, kv: &mut KvCache, progress: &Progress) -> (RecordedSteps, candle_core::Result<()>) {
        let recorder = match self.device.looking_up() {
            Ok(Some(recorder)) => recorder,
            Ok(None) => return (RecordedSteps::default(), Ok(())),
            Err(error) => return (RecordedSteps::default(), Err(error)),
        };
        RecordedSteps::make(self.sequences, progress, |rows| {
            recorder.record_step(rows, (&self.form(), &mut *kv), |runs, kv| match self.rows(runs, kv)? {
                Some(rows) => Ok(rows),
                None => candle_core::bail!("a step that wants every row, and gives none"),
            })
        })
    }

    /// What a recorded step tells, where there is one for these rows.
    fn run_recorded(&self, runs: &Runs<'_>, kv: &KvCache) -> Option<Told> {
        let asks = &runs.given().asks;
        let told = |ask: &Ask| matches!(ask, Ask::Likeliest | Ask::Likely { .. });
        let is_short = runs.total() == asks.len() && asks.iter().all(told);
        is_short.then(|| self.recorded.run(asks.len(), |step| step.run(runs, (&self.form(), kv))))?
    }

    /// The step on its way, where there is a recorded one for these rows.
    fn begin_recorded(&self, runs: &Runs<'_>, after: Option<&mut Begun>, kv: &KvCache) -> Option<Begun> {
        let asks = &runs.given().asks;
        let is_greedy = runs.total() == asks.len() && asks.iter().all(|ask| *ask == Ask::Likeliest);
        is_greedy.then(|| self.recorded.run(asks.len(), |step| step.begin(runs, after, (&self.form(), kv))))?
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
            Wants::Last | Wants::Likeliest | Wants::Likely { .. } => next - 1..next,
            Wants::Every | Wants::Scored { .. } => first..next,
        }
    });
    rows.collect()
}

impl Decoder for Llama {
    fn kv(&self) -> KvSpec {
        self.config.kv(self.embedding.dtype(), self.keeping)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn blocks_to_score(&self) -> usize {
        self.config.blocks_to_score(self.keeping)
    }

    fn warm(&mut self, kv: &mut KvCache, (records, progress): (bool, &Progress)) -> Warmth {
        let began = Instant::now();
        let looked_up = self.look_up(progress);
        let (recorded, ended) = match looked_up.is_ok() && records {
            true => self.record(kv, progress),
            false => (RecordedSteps::default(), looked_up),
        };
        self.recorded = recorded;
        let failed = ended.err().map(|error| error.to_string());
        Warmth { recorded: self.recorded.count(), took: began.elapsed(), failed }
    }

    fn context(&self) -> usize {
        self.config.context
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn step(&mut self, step: &StepInput, kv: &mut KvCache) -> Result<Logits> {
        self.check(step, kv)?;
        let nothing = || Logits::new(Vec::new(), self.config.vocabulary);
        if step.sequences.is_empty() {
            return nothing();
        }
        let runs = self.runs(step, kv).map_err(failed)?;
        if let Some(told) = self.run_recorded(&runs, kv) {
            return Logits::told(told, self.config.vocabulary);
        }
        let StepForm { rotary, heads, .. } = self.form();
        let runs = runs.on(kv, rotary, heads).map_err(failed)?;
        match self.rows(&runs, kv).map_err(failed)? {
            Some(rows) => Logits::with(&rows, step, runs.tell(&rows).map_err(failed)?),
            None => nothing(),
        }
    }

    fn begins(&self) -> bool {
        self.recorded.count() > 0
    }

    fn begin(&mut self, step: &StepInput, after: Option<&mut Begun>, kv: &mut KvCache) -> Result<Option<Begun>> {
        self.check(step, kv)?;
        let runs = self.runs(step, kv).map_err(failed)?;
        Ok(self.begin_recorded(&runs, after, kv))
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

    /// What it is given is given up as soon as it is used.
    fn feed_forward(&self, before: Tensor, context: Tensor, by: Activation) -> candle_core::Result<Tensor> {
        let x = self.output.forward_added(&context, &before)?;
        drop((before, context));
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
    fn rows_that_are_wanted_are_counted_over_all_sequences() {
        let sequence = |tokens, wants| StepSequence {
            tokens: vec![0; tokens],
            from: 0,
            blocks: std::sync::Arc::new(vec![0]),
            wants,
        };
        let sequences = vec![
            sequence(2, Wants::Last),
            sequence(3, Wants::Nothing),
            sequence(2, Wants::Every),
            sequence(1, Wants::Last),
            sequence(2, Wants::Likeliest),
        ];
        assert_eq!(wanted_rows(&StepInput { sequences }), [1, 5, 6, 7, 9]);
    }

    #[test]
    fn old_frequencies_and_a_tied_head_are_left_unread_and_nothing_else_is() {
        assert!(ignored("model.layers.3.self_attn.rotary_emb.inv_freq") && ignored("lm_head.weight"));
        for name in ["model.layers.0.self_attn.q_proj.bias", "lm_head.bias", "model.embed_tokens.weight", "inv_freq"] {
            assert!(!ignored(name), "{name}");
        }
    }
}
