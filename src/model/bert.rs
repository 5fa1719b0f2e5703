//! BERT and its relatives: RoBERTa, XLM-RoBERTa and DistilBERT.
//!
//! They are one architecture with different names, keys and small rules, which are data here ([`VARIANTS`]).
//! Source: `modeling_bert.py`, `modeling_roberta.py`, `modeling_distilbert.py` of transformers 4.57.

use std::borrow::Cow;

use super::checkpoint::Checkpoint;
use super::frames::Lengths;
use super::input::Tokens;
use super::layers::{Block, BlockNames, EmbeddingHead, Encoder, Linear, NormOrder, Part, size};
use super::pass::{Stages, in_passes};
use super::recordings::{Recordings, Warmth};
use super::together::Share;
use super::{Family, Model, OneShot, Pending};
use crate::error::{Error, Result};
use crate::ops::{Activation, Device, Keeping, Reduce, Segments, Tensor, TokenTables, embed_tokens, reduce};
use crate::repository::Spec;
use crate::value::Task;
use crate::weights::{Footprint, Index, Progress, Weights, check};

pub(super) const FAMILY: Family = Family {
    name: "bert",
    model_types: &["bert", "roberta", "xlm-roberta", "distilbert"],
    footprint,
    load,
    ignored,
    tokens_per_image: None,
    longest: None,
};

/// How one `model_type` differs from the others.
struct Variant {
    model_type: &'static str,
    prefix: &'static str,
    /// Of `config.json`: hidden, layers, heads, intermediate, activation.
    keys: [&'static str; 5],
    blocks: &'static BlockNames,
    positions: Positions,
    /// Whether there are embeddings of segment types.
    types: bool,
    classifier: Classifier,
}

/// How positions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Positions {
    /// 0, 1, 2, …
    FromZero,
    /// Tokens other than padding count up from one after the padding id, which keeps its own position
    /// (`create_position_ids_from_input_ids`).
    AfterPadding,
}

/// `second(activation(first(states[0])))`
struct Classifier {
    first: (Part, &'static str),
    activation: Activation,
    second: &'static str,
}

const BERT_KEYS: [&str; 5] =
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"];

const BERT_BLOCKS: BlockNames = BlockNames {
    blocks: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "output.LayerNorm",
    order: NormOrder::Post,
};

const DISTILBERT_BLOCKS: BlockNames = BlockNames {
    blocks: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
    order: NormOrder::Post,
};

const BERT: Variant = Variant {
    model_type: "bert",
    prefix: "bert.",
    keys: BERT_KEYS,
    blocks: &BERT_BLOCKS,
    positions: Positions::FromZero,
    types: true,
    classifier: Classifier { first: (Part::Base, "pooler.dense"), activation: Activation::Tanh, second: "classifier" },
};

const ROBERTA: Variant = Variant {
    model_type: "roberta",
    prefix: "roberta.",
    positions: Positions::AfterPadding,
    classifier: Classifier {
        first: (Part::Head, "classifier.dense"),
        activation: Activation::Tanh,
        second: "classifier.out_proj",
    },
    ..BERT
};

const DISTILBERT: Variant = Variant {
    model_type: "distilbert",
    prefix: "distilbert.",
    keys: ["dim", "n_layers", "n_heads", "hidden_dim", "activation"],
    blocks: &DISTILBERT_BLOCKS,
    positions: Positions::FromZero,
    types: false,
    classifier: Classifier {
        first: (Part::Head, "pre_classifier"),
        activation: Activation::Relu,
        second: "classifier",
    },
};

const VARIANTS: &[Variant] = &[BERT, ROBERTA, Variant { model_type: "xlm-roberta", ..ROBERTA }, DISTILBERT];

impl Variant {
    /// By what `config.json` says it is or, when that is foreign, by what `model.toml` says.
    fn of(spec: &Spec) -> Result<&'static Variant> {
        let named = |name: &str| VARIANTS.iter().find(|variant| variant.model_type == name);
        let variant = named(spec.str_or("model_type", &spec.family)?).or_else(|| named(&spec.family));
        variant.ok_or_else(|| spec.config_error("model_type", format!("family '{}' does not build it", FAMILY.name)))
    }
}

/// The sizes and rules of one version.
struct Config {
    variant: &'static Variant,
    encoder: Encoder,
    vocabulary: usize,
    /// rows of the position table
    positions: usize,
    /// rows of the type table; 0 without one
    types: usize,
    padding: u32,
}

impl Config {
    fn read(spec: &Spec) -> Result<Config> {
        let variant = Variant::of(spec)?;
        if !matches!(spec.task, Task::Embed | Task::Classify | Task::Rerank) {
            let reason = format!("a '{}' model does not answer task '{}'", variant.model_type, spec.task);
            return Err(spec.config_error("model_type", reason));
        }
        let position_type = spec.str_or("position_embedding_type", "absolute")?;
        if position_type != "absolute" {
            let reason = format!("'{position_type}' is not supported; known is absolute");
            return Err(spec.config_error("position_embedding_type", reason));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if spec.bool_or(key, false)? {
                return Err(spec.config_error(key, "only encoders are supported"));
            }
        }
        let padding = match variant.positions {
            Positions::FromZero => 0,
            Positions::AfterPadding => spec.usize_or("pad_token_id", 1)?,
        };
        let config = Config {
            variant,
            encoder: Encoder::read(spec, variant.keys)?,
            vocabulary: size(spec, "vocab_size")?,
            positions: size(spec, "max_position_embeddings")?,
            types: if variant.types { size(spec, "type_vocab_size")? } else { 0 },
            padding: u32::try_from(padding).unwrap_or(u32::MAX),
        };
        if config.longest() == 0 {
            return Err(spec.config_error("max_position_embeddings", "leaves no position for a token"));
        }
        Ok(config)
    }

    /// Tokens that the position table has rows for.
    fn longest(&self) -> usize {
        match self.variant.positions {
            Positions::FromZero => self.positions,
            Positions::AfterPadding => self.positions.saturating_sub(self.padding as usize).saturating_sub(1),
        }
    }
}

fn footprint(spec: &Spec, index: &Index, keeping: Keeping) -> Result<Footprint> {
    let config = Config::read(spec)?;
    // the sum of the tables' rows, and the three indices
    let first = config.encoder.hidden + 3;
    let workspace = config.encoder.workspace(config.variant.blocks.order, (config.longest(), first), keeping);
    let mut checkpoint = Checkpoint::headers(index, config.variant.prefix, keeping);
    Bert::build(spec, config, &mut checkpoint, &Device::Cpu)?;
    let wanted = checkpoint.into_wanted();
    check(index, &wanted, &ignored)?;
    Ok(Footprint { wanted, workspace, cache: None })
}

fn load(spec: &Spec, weights: Weights, device: &Device) -> Result<Model> {
    let config = Config::read(spec)?;
    config.encoder.check_on(spec, config.variant.keys[2], device)?;
    let mut checkpoint = Checkpoint::loaded(weights, config.variant.prefix, (device.keeping(), spec.f32_matmul));
    Ok(Model::Text(Box::new(Bert::build(spec, config, &mut checkpoint, device)?)))
}

/// Buffers, a pooler that the task has no use for (one that it uses is wanted), and heads of pre-training.
fn ignored(name: &str) -> bool {
    const BUFFERS: [&str; 2] = ["embeddings.position_ids", "embeddings.token_type_ids"];
    const HEADS: [&str; 6] =
        ["pooler.", "cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."];
    let bare = VARIANTS.iter().find_map(|variant| name.strip_prefix(variant.prefix)).unwrap_or(name);
    BUFFERS.contains(&bare) || HEADS.iter().any(|head| bare.starts_with(head))
}

struct Bert {
    /// Gone before the weights that they read.
    recordings: Recordings<Tokens>,
    config: Config,
    tables: TokenTables,
    blocks: Vec<Block>,
    head: Head,
    device: Device,
}

#[allow(clippy::large_enum_variant, reason = "a model has one")]
enum Head {
    Embed(EmbeddingHead),
    Classify { first: Linear, activation: Activation, second: Linear },
}

impl Bert {
    fn build(spec: &Spec, config: Config, checkpoint: &mut Checkpoint<'_>, device: &Device) -> Result<Bert> {
        let Config { variant, encoder, vocabulary, positions, types, .. } = &config;
        let hidden = encoder.hidden;
        let mut table = |name: &str, rows| checkpoint.base(&format!("embeddings.{name}.weight"), &[rows, hidden]);
        let tables = TokenTables {
            words: table("word_embeddings", *vocabulary)?,
            positions: table("position_embeddings", *positions)?,
            types: if variant.types { Some(table("token_type_embeddings", *types)?) } else { None },
            norm: checkpoint.norm("embeddings.LayerNorm", hidden, encoder.eps)?,
        };
        let blocks = Block::load_all(checkpoint, variant.blocks, encoder)?;
        let head = match spec.task {
            Task::Embed => Head::Embed(EmbeddingHead::load(spec, checkpoint, hidden)?),
            _ => Head::classify(spec, &variant.classifier, checkpoint, hidden)?,
        };
        let filler = Tokens { ids: vec![0], type_ids: vec![0] };
        let recordings = Recordings::of(Lengths::UpTo(config.longest()), Some(filler));
        Ok(Bert { recordings, tables, blocks, head, device: device.clone(), config })
    }

    fn check(&self, input: &Tokens) -> Result<()> {
        let Config { vocabulary, types, .. } = self.config;
        let (length, longest) = (input.ids.len(), self.config.longest());
        if length == 0 || length > longest {
            return Err(Error::bad_request(format!("an input of {length} tokens, the model takes 1 to {longest}")));
        }
        if input.type_ids.len() != length {
            return Err(Error::bad_request(format!("{length} tokens with {} types", input.type_ids.len())));
        }
        if let Some(id) = input.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::bad_request(format!("token id {id}, the model knows {vocabulary}")));
        }
        match input.type_ids.iter().find(|&&kind| types > 0 && kind as usize >= types) {
            Some(kind) => Err(Error::bad_request(format!("token type {kind}, the model knows {types}"))),
            None => Ok(()),
        }
    }
}

impl Stages<Tokens> for Bert {
    type Number = u32;

    fn shape(&self, _: usize, tokens: usize) -> Vec<usize> {
        vec![3, tokens]
    }

    /// Ids, positions and types.
    fn pack<'a>(&self, batch: &[&'a Tokens]) -> Vec<Cow<'a, [u32]>> {
        let mut index = Vec::with_capacity(3 * batch.iter().map(|input| input.ids.len()).sum::<usize>());
        index.extend(batch.iter().flat_map(|input| &input.ids));
        for input in batch {
            match self.config.variant.positions {
                Positions::FromZero => index.extend(0..input.ids.len() as u32),
                Positions::AfterPadding => index.extend(positions_after(self.config.padding, &input.ids)),
            }
        }
        index.extend(batch.iter().flat_map(|input| &input.type_ids));
        vec![Cow::Owned(index)]
    }

    fn first(&self, index: Tensor, _: &Segments) -> candle_core::Result<Tensor> {
        embed_tokens(&index, &self.tables)
    }

    fn blocks(&self, x: Tensor, share: &Share<'_>) -> candle_core::Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, block| block.forward(x, share))
    }

    fn last(&self, x: &Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
        match &self.head {
            Head::Embed(head) => head.forward(x, segments),
            Head::Classify { first, activation, second } => {
                let states = reduce(x, segments, Reduce::First)?;
                second.forward(&first.forward_activated(&states, *activation)?)
            }
        }
    }

    fn recordings(&self) -> &Recordings<Tokens> {
        &self.recordings
    }
}

/// Positions where padding, should a text contain it, keeps its own and is not counted.
fn positions_after(padding: u32, ids: &[u32]) -> impl Iterator<Item = u32> {
    let mut last = padding;
    ids.iter().map(move |&id| {
        if id == padding {
            return padding;
        }
        last += 1;
        last
    })
}

impl Head {
    fn classify(spec: &Spec, names: &Classifier, checkpoint: &mut Checkpoint<'_>, hidden: usize) -> Result<Head> {
        let labels = spec.labels.len();
        if spec.task == Task::Rerank && labels != 1 {
            return Err(spec.config_error("num_labels", format!("task 'rerank' takes 1, found {labels}")));
        }
        Ok(Head::Classify {
            first: Linear::load(checkpoint, names.first, (hidden, hidden))?,
            activation: names.activation,
            second: Linear::load(checkpoint, (Part::Head, names.second), (hidden, labels))?,
        })
    }
}

impl OneShot<Tokens> for Bert {
    fn forward(&mut self, batch: &[Tokens]) -> Result<Pending> {
        batch.iter().try_for_each(|input| self.check(input))?;
        in_passes(batch, &self.config.encoder.work(&|input: &Tokens| input.ids.len(), &self.device), self)
    }

    fn warm(&mut self, records: bool, progress: &Progress) -> Warmth {
        let (made, warmth) = self.recordings.make(self, &self.device, (records, progress));
        self.recordings.keep(made);
        warmth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roberta_positions_follow_the_padding_id_and_skip_padding() {
        let positions = |ids: &[u32]| positions_after(1, ids).collect::<Vec<_>>();
        assert_eq!(positions(&[0, 220, 209, 2]), [2, 3, 4, 5]);
        assert_eq!(positions(&[0, 1, 209, 1, 2]), [2, 1, 3, 1, 4]);
    }

    #[test]
    fn unused_tensors_are_known_by_name_and_nothing_else_is() {
        for name in [
            "bert.embeddings.position_ids",
            "embeddings.position_ids",
            "roberta.pooler.dense.weight",
            "pooler.dense.bias",
            "cls.predictions.bias",
            "cls.seq_relationship.weight",
            "lm_head.dense.weight",
            "vocab_projector.weight",
        ] {
            assert!(ignored(name), "{name}");
        }
        for name in
            ["classifier.weight", "encoder.layer.9.output.dense.weight", "embeddings.extra", "bert.other", "pooler"]
        {
            assert!(!ignored(name), "{name}");
        }
    }

    #[test]
    fn every_model_type_of_the_family_has_a_variant() {
        let variants: Vec<&str> = VARIANTS.iter().map(|variant| variant.model_type).collect();
        assert_eq!(variants, FAMILY.model_types);
    }
}
