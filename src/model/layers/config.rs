//! The sizes of an encoder, read from `config.json` and held against sense before anything is multiplied.

use super::block::NormOrder;
use crate::error::Result;
use crate::model::pass::{TOKENS_PER_PASS, Work};
use crate::ops::{Activation, Device, Keeping, attention_scratch_bytes};
use crate::repository::Spec;

/// No dimension of a model comes near; products of two of them stay far from overflow.
const LARGEST: usize = 1 << 24;

/// Beside what grows with tokens: indices, tables of sequences and tiles, rows of results, and borders between blocks. Bytes.
const ON_A_GPU: u64 = 4 << 20;

/// What every block of an encoder has in common.
#[derive(Debug, Clone)]
pub(in crate::model) struct Encoder {
    pub(in crate::model) hidden: usize,
    pub(in crate::model) layers: usize,
    pub(in crate::model) heads: usize,
    pub(in crate::model) intermediate: usize,
    pub(in crate::model) activation: Activation,
    pub(in crate::model) eps: f64,
    pub(in crate::model) qkv_bias: bool,
}

impl Encoder {
    /// `keys`: hidden, layers, heads, intermediate, activation.
    pub(in crate::model) fn read(spec: &Spec, keys: [&str; 5]) -> Result<Self> {
        let [hidden_key, layers_key, heads_key, intermediate_key, activation_key] = keys;
        let hidden = size(spec, hidden_key)?;
        let heads = size(spec, heads_key)?;
        if !hidden.is_multiple_of(heads) {
            return Err(spec.config_error(heads_key, format!("{heads} heads do not divide {hidden_key} {hidden}")));
        }
        let layers = size(spec, layers_key)?;
        if layers > 1024 {
            return Err(spec.config_error(layers_key, format!("expected at most 1024, found {layers}")));
        }
        let eps = spec.f64_or("layer_norm_eps", 1e-12)?;
        if !(0.0..1.0).contains(&eps) {
            return Err(spec.config_error("layer_norm_eps", format!("expected a small positive number, found {eps}")));
        }
        Ok(Encoder {
            hidden,
            layers,
            heads,
            intermediate: size(spec, intermediate_key)?,
            activation: activation(spec, (activation_key, "gelu"))?,
            eps,
            qkv_bias: spec.bool_or("qkv_bias", true)?,
        })
    }

    /// Fails where passes could not run on this device; `heads_key` is what `config.json` calls the heads.
    pub(in crate::model) fn check_on(&self, spec: &Spec, heads_key: &str, device: &Device) -> Result<()> {
        device.check_heads(self.hidden / self.heads).map_err(|reason| spec.config_error(heads_key, reason))
    }

    /// What a batch of inputs costs.
    pub(in crate::model) fn work<'a, I>(
        &self,
        tokens: &'a (dyn Fn(&I) -> usize + Sync),
        device: &'a Device,
    ) -> Work<'a, I> {
        // the linear layers; and scores and mixed values of attention
        let per_token = self.layers * (4 * self.hidden * self.hidden + 2 * self.hidden * self.intermediate);
        Work { tokens, per_token, per_pair: self.layers * 2 * self.hidden, device }
    }

    /// Bytes that a pass takes beside the weights, at most, when no input is longer than `longest` tokens and the
    /// layers before the blocks hold `first` values a token.
    ///
    /// The live tensors at the widest point, f32, and what attention takes on each thread. `tests/model_memory.rs` holds
    /// it against what is really allocated.
    pub(in crate::model) fn workspace(
        &self,
        order: NormOrder,
        (longest, first): (usize, usize),
        keeping: Keeping,
    ) -> u64 {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let live = match order {
            // x, q, k, v, context, or x, context, attended; or attended, up, down
            NormOrder::Post => (5 * hidden).max(2 * hidden + intermediate),
            // x, norm(x), q, k, v, context; or x, norm(x), up, down
            NormOrder::Pre => (6 * hidden).max(3 * hidden + intermediate),
        };
        let tokens = TOKENS_PER_PASS.max(longest) as u64;
        if let Keeping::Cuda(dtype) = keeping {
            // Sums and norms of them are apart there, and what a pass begins with comes as f32.
            let beside = (live + self.hidden) as u64 * dtype.size_in_bytes() as u64;
            return tokens * beside.max(first as u64 * 8) + ON_A_GPU;
        }
        let values = live.max(first) as u64 * tokens;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let scratch = attention_scratch_bytes((longest, hidden / self.heads), threads);
        values * size_of::<f32>() as u64 + scratch
    }
}

/// A size that `config.json` must have.
pub(in crate::model) fn size(spec: &Spec, key: &str) -> Result<usize> {
    match spec.usize(key)? {
        size @ 1..=LARGEST => Ok(size),
        other => Err(spec.config_error(key, format!("expected 1 to {LARGEST}, found {other}"))),
    }
}

/// An activation by its name in `config.json`, or by the default of Hugging Face's class.
pub(in crate::model) fn activation(spec: &Spec, (key, default): (&str, &str)) -> Result<Activation> {
    let name = spec.str_or(key, default)?;
    Activation::named(name).ok_or_else(|| {
        let known: Vec<&str> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
        spec.config_error(key, format!("'{name}' is not supported; known are {}", known.join(", ")))
    })
}
