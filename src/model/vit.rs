//! ViT image classifiers.
//!
//! An image is cut into patches, each a token beside one class token; the blocks are pre-norm.
//! Source: `modeling_vit.py` (`ViTForImageClassification`) of transformers 4.57.

use std::borrow::Cow;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::frames::Lengths;
use super::input::Pixels;
use super::layers::{Block, BlockNames, Encoder, Linear, NormOrder, Part, size};
use super::pass::{Stages, in_passes};
use super::recordings::{Recordings, Warmth};
use super::together::Share;
use super::{Family, Model, OneShot, Pending};
use crate::error::{Error, Result};
use crate::ops::{
    Device, Epilogue, Grid, Keeping, LayerNorm, Matrix, Reduce, Segments, Tensor, embed_patches, layer_norm, linear,
    patches, reduce,
};
use crate::repository::Spec;
use crate::value::Task;
use crate::weights::{Footprint, Index, Progress, Weights, check};

pub(super) const FAMILY: Family = Family {
    name: "vit",
    model_types: &["vit"],
    footprint,
    load,
    ignored,
    tokens_per_image: Some(|spec| Ok(Config::read(spec)?.tokens())),
    longest: None,
};

const PREFIX: &str = "vit.";

/// Of `config.json`: hidden, layers, heads, intermediate, activation.
const KEYS: [&str; 5] = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"];

const BLOCKS: BlockNames = BlockNames {
    blocks: "encoder.layer",
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    attention_output: "attention.output.dense",
    attention_norm: "layernorm_before",
    up: "intermediate.dense",
    down: "output.dense",
    feed_forward_norm: "layernorm_after",
    order: NormOrder::Pre,
};

struct Config {
    encoder: Encoder,
    grid: Grid,
}

impl Config {
    fn read(spec: &Spec) -> Result<Config> {
        if spec.task != Task::ImageClassify {
            return Err(spec.config_error("model_type", format!("a 'vit' model does not answer task '{}'", spec.task)));
        }
        let config = Config {
            encoder: Encoder::read(spec, KEYS)?,
            grid: Grid {
                image: height_and_width(spec, "image_size")?,
                patch: height_and_width(spec, "patch_size")?,
                channels: size(spec, "num_channels")?,
            },
        };
        let Grid { image: [height, width], patch: [down, across], channels } = config.grid;
        // beyond any model, and keeps every product below in range
        if channels > 1 << 10 {
            return Err(spec.config_error("num_channels", format!("expected at most 1024, found {channels}")));
        }
        if down > height || across > width {
            let reason = format!("{width}x{height} pixels do not hold a patch of {across}x{down}");
            return Err(spec.config_error("image_size", reason));
        }
        Ok(config)
    }

    /// The class token and every patch.
    fn tokens(&self) -> usize {
        self.grid.count() + 1
    }
}

/// One number for a square, or `[height, width]`, in pixels.
fn height_and_width(spec: &Spec, key: &str) -> Result<[usize; 2]> {
    const LARGEST: usize = 1 << 16;
    let sides = match spec.value(key).and_then(Value::as_array).map(Vec::as_slice) {
        None => [size(spec, key)?; 2],
        Some([height, width]) => [height, width].map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok()).unwrap_or(0)),
        Some(other) => {
            return Err(spec.config_error(key, format!("expected [height, width], found {} numbers", other.len())));
        }
    };
    match sides.iter().all(|side| (1..=LARGEST).contains(side)) {
        true => Ok(sides),
        false => Err(spec.config_error(key, format!("expected 1 to {LARGEST} pixels, found {}", spec.config[key]))),
    }
}

fn footprint(spec: &Spec, index: &Index, keeping: Keeping) -> Result<Footprint> {
    let config = Config::read(spec)?;
    // pixels and the patches that they are cut into, then what those are projected to
    let pixels = config.grid.image_values().div_ceil(config.tokens());
    let first = config.grid.patch_values() + pixels.max(config.encoder.hidden);
    let workspace = config.encoder.workspace(BLOCKS.order, (config.tokens(), first), keeping);
    let mut checkpoint = Checkpoint::headers(index, PREFIX, keeping);
    Vit::build(spec, config, &mut checkpoint, &Device::Cpu)?;
    let wanted = checkpoint.into_wanted();
    check(index, &wanted, &ignored)?;
    Ok(Footprint { wanted, workspace, cache: None })
}

fn load(spec: &Spec, weights: Weights, device: &Device) -> Result<Model> {
    let config = Config::read(spec)?;
    config.encoder.check_on(spec, KEYS[2], device)?;
    let mut checkpoint = Checkpoint::loaded(weights, PREFIX, (device.keeping(), spec.f32_matmul));
    Ok(Model::Image(Box::new(Vit::build(spec, config, &mut checkpoint, device)?)))
}

/// The pooler, which the classifier does not use, and the token of masked pre-training.
fn ignored(name: &str) -> bool {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    bare.starts_with("pooler.") || bare == "embeddings.mask_token"
}

struct Vit {
    /// Gone before the weights that they read.
    recordings: Recordings<Pixels>,
    config: Config,
    /// `[hidden, channels * tall * wide]`: a convolution whose stride is its size
    projection: Matrix,
    /// `[hidden]`
    projection_bias: Tensor,
    /// `[1, 1, hidden]`
    class: Tensor,
    /// `[1, tokens, hidden]`
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    classifier: Linear,
    device: Device,
}

impl Vit {
    fn build(spec: &Spec, config: Config, checkpoint: &mut Checkpoint<'_>, device: &Device) -> Result<Vit> {
        let Encoder { hidden, eps, .. } = config.encoder;
        let Grid { patch, channels, .. } = config.grid;
        const PROJECTION: &str = "embeddings.patch_embeddings.projection";
        Ok(Vit {
            recordings: Recordings::of(Lengths::Of(config.tokens()), None),
            class: checkpoint.base("embeddings.cls_token", &[1, 1, hidden])?,
            positions: checkpoint.base("embeddings.position_embeddings", &[1, config.tokens(), hidden])?,
            projection: checkpoint
                .base_matrix(&format!("{PROJECTION}.weight"), &[hidden, channels, patch[0], patch[1]])?,
            projection_bias: checkpoint.base(&format!("{PROJECTION}.bias"), &[hidden])?,
            blocks: Block::load_all(checkpoint, &BLOCKS, &config.encoder)?,
            norm: checkpoint.norm("layernorm", hidden, eps)?,
            classifier: Linear::load(checkpoint, (Part::Head, "classifier"), (hidden, spec.labels.len()))?,
            device: device.clone(),
            config,
        })
    }

    fn check(&self, input: &Pixels) -> Result<()> {
        let Grid { channels, image: [height, width], .. } = self.config.grid;
        if (input.channels, input.height, input.width) != (channels, height, width) {
            let found = format!("{} of {}x{}", input.channels, input.width, input.height);
            let expected = format!("the model takes {channels} channels of {width}x{height} pixels");
            return Err(Error::bad_request(format!("{expected}, the image has {found}")));
        }
        match input.data.len() {
            found if found == channels * height * width => Ok(()),
            found => Err(Error::bad_request(format!("{found} values for {channels} channels of {width}x{height}"))),
        }
    }
}

impl Stages<Pixels> for Vit {
    type Number = f32;

    /// Every image is a row of its pixels.
    fn shape(&self, images: usize, _: usize) -> Vec<usize> {
        vec![images, self.config.grid.image_values()]
    }

    fn pack<'a>(&self, batch: &[&'a Pixels]) -> Vec<Cow<'a, [f32]>> {
        batch.iter().map(|input| Cow::Borrowed(input.data.as_slice())).collect()
    }

    fn first(&self, pixels: Tensor, _: &Segments) -> candle_core::Result<Tensor> {
        let patches = patches(&pixels, &self.config.grid, &self.device)?;
        drop(pixels);
        let patches = linear(&patches, &self.projection, Some(&self.projection_bias), Epilogue::None)?;
        let hidden = self.config.encoder.hidden;
        let (class, positions) = (self.class.reshape(hidden)?, self.positions.reshape((self.config.tokens(), hidden))?);
        embed_patches(&patches, &class, &positions)
    }

    fn blocks(&self, x: Tensor, share: &Share<'_>) -> candle_core::Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, block| block.forward(x, share))
    }

    fn last(&self, x: &Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
        // rows are normalised one by one, so only the class tokens' need be
        self.classifier.forward(&layer_norm(&reduce(x, segments, Reduce::First)?, &self.norm)?)
    }

    fn recordings(&self) -> &Recordings<Pixels> {
        &self.recordings
    }
}

impl OneShot<Pixels> for Vit {
    fn forward(&mut self, batch: &[Pixels]) -> Result<Pending> {
        batch.iter().try_for_each(|input| self.check(input))?;
        in_passes(batch, &self.config.encoder.work(&|_: &Pixels| self.config.tokens(), &self.device), self)
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
    fn unused_tensors_are_known_by_name_and_nothing_else_is() {
        for name in ["vit.pooler.dense.weight", "pooler.dense.bias", "vit.embeddings.mask_token"] {
            assert!(ignored(name), "{name}");
        }
        for name in ["classifier.bias", "vit.layernorm.weight", "embeddings.cls_token", "decoder.0.weight"] {
            assert!(!ignored(name), "{name}");
        }
    }
}
