//! From the states of a sequence to one embedding, as sentence-transformers' modules say.

use candle_core::Result;

use super::linear::{Linear, Part};
use crate::error;
use crate::model::checkpoint::Checkpoint;
use crate::ops::{Activation, Reduce, Segments, Tensor, l2_normalize, reduce};
use crate::repository::Spec;
use crate::repository::spec::{DenseSpec, Pooling};

/// Pooling, dense layers, normalisation.
#[derive(Debug)]
pub(in crate::model) struct EmbeddingHead {
    reduce: Reduce,
    dense: Vec<(Linear, Option<Activation>)>,
    normalize: bool,
}

impl EmbeddingHead {
    pub(in crate::model) fn load(spec: &Spec, checkpoint: &mut Checkpoint<'_>, width: usize) -> error::Result<Self> {
        let Some(embedding) = &spec.embedding else {
            return Err(spec.file_error("modules.json", "there is no description of how an embedding is made"));
        };
        let reduce = match embedding.pooling {
            Pooling::Mean => Reduce::Mean,
            Pooling::Cls => Reduce::First,
            Pooling::Max => Reduce::Max,
        };
        let mut features = width;
        let mut dense = Vec::new();
        for module in &embedding.dense {
            let dir = module.dir.to_string_lossy();
            let file = format!("{dir}/config.json");
            if module.in_features != features {
                let found = module.in_features;
                return Err(spec.file_error(&file, format!("in_features: expected {features}, found {found}")));
            }
            // an index names tensors of other folders by their folder
            let (name, size) = (format!("{dir}/linear"), (features, module.out_features));
            let load = if module.bias { Linear::load } else { Linear::load_without_bias };
            dense.push((load(checkpoint, (Part::Head, &name), size)?, activation(spec, module, &file)?));
            features = module.out_features;
        }
        Ok(EmbeddingHead { reduce, dense, normalize: embedding.normalize })
    }

    /// `states`: `[tokens, width]`; `[sequences, dimension]` comes back.
    pub(in crate::model) fn forward(&self, states: &Tensor, segments: &Segments) -> Result<Tensor> {
        let mut x = reduce(states, segments, self.reduce)?;
        for (layer, activation) in &self.dense {
            x = match activation {
                Some(activation) => layer.forward_activated(&x, *activation)?,
                None => layer.forward(&x)?,
            };
        }
        if self.normalize { l2_normalize(&x) } else { Ok(x) }
    }
}

/// A torch class (`torch.nn.modules.activation.Tanh`) as an activation; none for the identity.
fn activation(spec: &Spec, module: &DenseSpec, file: &str) -> error::Result<Option<Activation>> {
    let class = module.activation.as_str();
    Ok(Some(match class.rsplit('.').next().unwrap_or(class) {
        "Identity" => return Ok(None),
        "Tanh" => Activation::Tanh,
        "ReLU" => Activation::Relu,
        "GELU" => Activation::Gelu,
        "SiLU" => Activation::Silu,
        "Sigmoid" => Activation::Sigmoid,
        _ => {
            let known = "Identity, Tanh, ReLU, GELU, SiLU and Sigmoid of torch";
            return Err(
                spec.file_error(file, format!("activation_function: '{class}' is not supported; known are {known}"))
            );
        }
    }))
}
