//! Small models of any sizes with random weights, for what no fixture has: another's CPU path is what they are compared with.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use half::f16;
use serde_json::{Value, json};

use super::{Site, fixture, tensors::with_tensors};

/// Tokens that a text may have.
pub(crate) const LONGEST: usize = 200;

/// Adds a model that embeds texts, with the vocabulary of `bert-embed-mean`: so many heads of so many numbers, weights of f32 or f16.
pub(crate) fn add_encoder(site: &Site, name: &str, (heads, each): (usize, usize), dtype: DType) -> PathBuf {
    site.model(name, "task = \"embed\"\n");
    let dir = site.version(name, "v", &fixture("bert-embed-mean"));
    let (hidden, intermediate) = (heads * each, 2 * heads * each);
    change(&dir.join("config.json"), |config| {
        assert_eq!((&config["hidden_size"], &config["intermediate_size"]), (&json!(32), &json!(64)));
        for (key, value) in
            [("hidden_size", hidden), ("intermediate_size", intermediate), ("num_attention_heads", heads)]
        {
            config[key] = json!(value);
        }
        config["max_position_embeddings"] = json!(LONGEST);
    });
    change(&dir.join("1_Pooling/config.json"), |config| config["word_embedding_dimension"] = json!(hidden));
    change(&dir.join("sentence_bert_config.json"), |config| config["max_seq_length"] = json!(LONGEST));
    change(&dir.join("tokenizer_config.json"), |config| config["model_max_length"] = json!(LONGEST));
    let mut random = Random(each as u64);
    with_tensors(&dir, |tensors| {
        tensors.lay(|name, header, _| {
            let shape: Vec<usize> =
                header["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
            // Tables have rows of their own; of linear layers every size is one of the model's.
            let shape: Vec<usize> = match (name, &shape[..]) {
                (name, _) if name.contains("position_embeddings") => vec![LONGEST, hidden],
                (name, &[rows, _]) if name.contains("embeddings.") => vec![rows, hidden],
                (_, sizes) => sizes.iter().map(|size| if *size == 64 { intermediate } else { hidden }).collect(),
            };
            let count = shape.iter().product();
            // Scores of attention spread by some e-folds, so that what a row sees is not the mean of all.
            let (about, spread) = match (name, &shape[..]) {
                (name, _) if name.ends_with("LayerNorm.weight") => (1.0, 0.2),
                (_, [_]) => (0.0, 0.1),
                (name, _) if name.contains("embeddings.") => (0.0, 1.0),
                (_, sizes) => (0.0, 2.5 / (sizes[1] as f32).sqrt()),
            };
            let values = (0..count).map(|_| about + spread * random.next());
            let bytes = match dtype {
                DType::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            header["dtype"] = json!(if dtype == DType::F16 { "F16" } else { "F32" });
            header["shape"] = json!(shape);
            Some(bytes)
        });
    });
    dir
}

fn change(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

/// Numbers from -1 to 1, the same ones each time (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
