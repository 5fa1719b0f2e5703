//! GGUF files: a header's offsets, what it says of the model, its tokenizer, and its weights in memory.

use tokenizers::Tokenizer;

use super::accepted;
use super::files::{File, Version};
use super::safetensors::loads;
use crate::error::{Error, Kind, Result};
use crate::gguf::{self, Header};
use crate::repository::{ModelConfig, Spec, TokenizerFiles};
use crate::value::Task;
use crate::weights::Index;

const NAME: &str = "model.gguf";

pub(super) fn check(data: &[u8]) -> Result<()> {
    let version = Version::with(&[File { name: NAME.into(), body: data.to_vec() }]);
    let wrong = |why: String| Error::unloadable(NAME, why);
    let header = gguf::open(&version.dir.join(NAME)).map_err(wrong)?;
    tiles(&header, data);
    accepted(tokenizer(&header), &[Kind::Refused]);
    accepted(spec(&version), &[Kind::Refused]);
    let index = Index::open(&version.dir, &[NAME.into()])?;
    assert!(index.len() <= header.tensors.len());
    loads(&version.dir, &index)
}

/// Tensors lie one behind the other, each as long as its shape says, and none beyond the end.
fn tiles(header: &Header, data: &[u8]) {
    assert_eq!(header.file_len, data.len() as u64);
    assert_eq!(header.digest, blake3::hash(&data[..header.len as usize]));
    let mut end = header.len;
    for tensor in &header.tensors {
        let (values, bytes) = tensor.format.block();
        let elements: u128 = tensor.dims.iter().map(|size| *size as u128).product();
        assert_eq!(elements / values as u128 * u128::from(bytes), u128::from(tensor.len), "{}", tensor.name);
        assert!(tensor.offset >= end && tensor.offset - end < 1 << 16, "{}", tensor.name);
        end = tensor.offset + tensor.len;
    }
    assert!(end <= data.len() as u64);
}

/// What is accepted is built, and its ids are tokens.
fn tokenizer(header: &Header) -> Result<()> {
    let files = TokenizerFiles::of(&header.metadata).map_err(|why| Error::unloadable(NAME, why))?;
    let json = serde_json::to_vec(&files.tokenizer).unwrap();
    let tokenizer = Tokenizer::from_bytes(json).unwrap();
    for text in ["", "a b", "It's 12\u{e9}\n \u{1f980}<s>"] {
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert!(ids.iter().all(|id| tokenizer.id_to_token(*id).is_some()), "{ids:?}");
        tokenizer.decode(&ids, false).unwrap();
    }
    Ok(())
}

fn spec(version: &Version) -> Result<()> {
    let spec = Spec::read(&version.dir, "model", "v1", &ModelConfig::new(Task::Generate))?;
    for key in ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"] {
        spec.usize(key).unwrap();
    }
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads"] {
        assert_ne!(spec.usize(key).unwrap(), 0, "{key}");
    }
    assert!(spec.f64("rope_theta").unwrap().is_finite());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// What a fuzzer does first, for whoever has none.
    #[test]
    fn a_seed_with_any_one_byte_changed_adds_up_or_is_refused() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/gguf");
        let mut outcomes = [0, 0];
        for seed in seeds.read_dir().unwrap() {
            let seed = fs::read(seed.unwrap().path()).unwrap();
            for at in 0..seed.len() {
                let mut changed = seed.clone();
                changed[at] ^= [0x01, 0x80, 0xff][at % 3];
                outcomes[usize::from(crate::fuzzing::gguf(&changed))] += 1;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 1000), "{outcomes:?}");
    }
}
