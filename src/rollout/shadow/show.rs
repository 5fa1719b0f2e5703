//! What is kept of a case for people to look at: little of what is large. Pure.

use serde_json::{Value, json};

use crate::process::Processor;
use crate::value::{Output, RawInput};

/// Bytes of one text that are kept.
const TEXT: usize = 1024;
/// Inputs of one request, labels of one output, and numbers of one embedding.
const SEVERAL: usize = 8;

pub(super) fn inputs(inputs: &[RawInput]) -> Value {
    let shown: Vec<Value> = inputs.iter().take(SEVERAL).map(input).collect();
    several(shown, inputs.len())
}

pub(super) fn outputs(outputs: &[Output]) -> Value {
    let shown: Vec<Value> = outputs.iter().take(SEVERAL).map(output).collect();
    several(shown, outputs.len())
}

/// A prompt, and what was written after it.
pub(super) fn text(processor: &Processor, prompt: &[u32], written: &[u32]) -> (Value, Value) {
    let spelled = |ids: &[u32]| match processor.writer().and_then(|writer| writer.decode(ids)) {
        Ok(text) => json!(short(&text)),
        // It was written by this version, so that its tokens have spellings.
        Err(error) => json!({ "error": error.to_string() }),
    };
    (spelled(prompt), json!({ "text": spelled(written) }))
}

fn several(mut shown: Vec<Value>, all: usize) -> Value {
    match (shown.pop(), all) {
        (Some(only), 1) => only,
        (last, _) => {
            shown.extend(last);
            if all > shown.len() {
                shown.push(json!(format!("and {} more", all - shown.len())));
            }
            Value::Array(shown)
        }
    }
}

fn input(input: &RawInput) -> Value {
    match input {
        RawInput::Text(text) => json!(short(text)),
        RawInput::Pair(a, b) => json!([short(a), short(b)]),
        RawInput::Tokens(ids) => json!({ "tokens": ids.iter().take(SEVERAL).collect::<Vec<_>>(), "count": ids.len() }),
        // Small ones can be seen, of others there is a name.
        RawInput::Image(file) if file.len() <= TEXT => json!(input_image(file)),
        RawInput::Image(file) => {
            json!({ "image": { "bytes": file.len(), "blake3": blake3::hash(file).to_hex().as_str() } })
        }
    }
}

fn input_image(file: &[u8]) -> RawInput {
    RawInput::Image(file.to_vec())
}

fn output(output: &Output) -> Value {
    match output {
        Output::Embedding { embedding } => {
            json!({ "embedding": embedding.iter().take(SEVERAL).collect::<Vec<_>>(), "dimensions": embedding.len() })
        }
        Output::Labels { labels } => json!({ "labels": labels.iter().take(SEVERAL).collect::<Vec<_>>() }),
        other => json!(other),
    }
}

fn short(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let end = (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::LabelScore;

    #[test]
    fn little_is_kept_of_what_is_large() {
        let long = "é".repeat(TEXT);
        let shown = inputs(&[RawInput::Text(long.clone())]);
        assert!(shown.as_str().unwrap().ends_with("… (2048 bytes)") && shown.as_str().unwrap().len() < TEXT + 32);
        assert_eq!(inputs(&[RawInput::Pair("a".into(), "b".into())]), json!(["a", "b"]));
        assert_eq!(inputs(&[RawInput::Image(vec![0; 4])])["image"], "AAAAAA==");
        assert_eq!(inputs(&[RawInput::Image(vec![0; 4000])])["image"]["bytes"], 4000);
        let many = inputs(&vec![RawInput::Text("x".into()); 20]);
        assert_eq!((many.as_array().unwrap().len(), &many[8]), (9, &json!("and 12 more")));
        let label = |n: usize| LabelScore { label: n.to_string(), score: 0.1 };
        let labels = outputs(&[Output::Labels { labels: (0..1000).map(label).collect() }]);
        assert_eq!(labels["labels"].as_array().unwrap().len(), SEVERAL);
        let embedding = outputs(&[Output::Embedding { embedding: vec![0.5; 384] }]);
        assert_eq!(embedding["dimensions"], 384);
    }
}
