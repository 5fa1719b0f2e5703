//! What Hugging Face calls the tensors that llama.cpp's converter renamed (`gguf-py/gguf/tensor_mapping.py`).

use super::Rotary;

/// Where a tensor of a file belongs.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    Tensor {
        name: String,
        rotary: Option<Rotary>,
    },
    /// Not a weight: what rotary frequencies are divided by, which is in Hugging Face's configuration.
    Configuration,
}

/// Within a layer: theirs, ours.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// None for what the architectures here do not have.
pub(super) fn place(name: &str) -> Option<Place> {
    let whole = |name: &str| Some(Place::Tensor { name: name.to_owned(), rotary: None });
    match name {
        "token_embd.weight" => return whole("model.embed_tokens.weight"),
        "output_norm.weight" => return whole("model.norm.weight"),
        "output.weight" => return whole("lm_head.weight"),
        "rope_freqs.weight" => return Some(Place::Configuration),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // As numbers are written, so that no two names become one.
    let number: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    let (part, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, ours) = LAYER.iter().find(|(theirs, _)| *theirs == part)?;
    let rotary = match part {
        "attn_q" => Some(Rotary::Query),
        "attn_k" => Some(Rotary::Key),
        _ => None,
    };
    Some(Place::Tensor { name: format!("model.layers.{number}.{ours}.{kind}"), rotary })
}

/// What llama.cpp calls a tensor of Hugging Face's layout, for whoever reads an error about a GGUF file; the other way round.
pub(super) fn theirs(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (theirs, _) = LAYER.iter().find(|(_, ours)| *ours == part)?;
    Some(format!("blk.{layer}.{theirs}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_hugging_face_and_no_two_become_one() {
        let named = |name: &str| match place(name) {
            Some(Place::Tensor { name, .. }) => name,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(named("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(named("blk.0.attn_q.weight"), "model.layers.0.self_attn.q_proj.weight");
        assert_eq!(named("blk.31.attn_k.bias"), "model.layers.31.self_attn.k_proj.bias");
        assert_eq!(named("blk.7.ffn_norm.weight"), "model.layers.7.post_attention_layernorm.weight");
        assert_eq!(place("rope_freqs.weight"), Some(Place::Configuration));
        let whole = ["token_embd.weight", "output_norm.weight", "output.weight"].map(str::to_owned);
        for name in LAYER.iter().map(|(theirs, _)| format!("blk.12.{theirs}.bias")).chain(whole) {
            assert_eq!(theirs(&named(&name)), Some(name));
        }
        assert_eq!(theirs("bert.pooler.dense.bias"), None);
        let ours: std::collections::BTreeSet<String> =
            LAYER.iter().map(|(theirs, _)| named(&format!("blk.1.{theirs}.weight"))).collect();
        assert_eq!(ours.len(), LAYER.len());
    }

    #[test]
    fn what_no_architecture_has_is_without_a_place() {
        for name in [
            "",
            "blk",
            "blk.0",
            "blk.0.attn_q",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.99999999999.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate_exps.weight",
            "model.norm.weight",
            "token_embd.bias",
        ] {
            assert_eq!(place(name), None, "{name}");
        }
    }

    #[test]
    fn queries_and_keys_alone_are_turned() {
        let rotary = |part: &str| match place(&format!("blk.0.{part}.weight")) {
            Some(Place::Tensor { rotary, .. }) => rotary,
            other => panic!("{part}: {other:?}"),
        };
        assert_eq!((rotary("attn_q"), rotary("attn_k")), (Some(Rotary::Query), Some(Rotary::Key)));
        assert_eq!((rotary("attn_v"), rotary("attn_q_norm"), rotary("attn_output")), (None, None, None));
    }
}
