//! GGUF files for tests, right or wrong: what is given is what is written.

use super::Format;

/// A value as it is written: its type's number, and its bytes.
pub(crate) struct Given(u32, Vec<u8>);

impl Given {
    /// Of any type, known or not.
    pub(crate) fn raw(kind: u32, bytes: &[u8]) -> Given {
        Given(kind, bytes.to_vec())
    }

    pub(crate) fn string(text: &str) -> Given {
        Given(8, string(text.as_bytes()))
    }

    pub(crate) fn strings<T: AsRef<str>>(texts: &[T]) -> Given {
        let mut bytes = [8u32.to_le_bytes().as_slice(), &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().for_each(|text| bytes.extend(string(text.as_ref().as_bytes())));
        Given(9, bytes)
    }

    pub(crate) fn i32s(numbers: &[i32]) -> Given {
        let mut bytes = [5u32.to_le_bytes().as_slice(), &(numbers.len() as u64).to_le_bytes()].concat();
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        Given(9, bytes)
    }

    pub(crate) fn f32s(numbers: &[f32]) -> Given {
        let mut bytes = [6u32.to_le_bytes().as_slice(), &(numbers.len() as u64).to_le_bytes()].concat();
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        Given(9, bytes)
    }
}

impl From<u32> for Given {
    fn from(number: u32) -> Given {
        Given(4, number.to_le_bytes().to_vec())
    }
}

impl From<f32> for Given {
    fn from(number: f32) -> Given {
        Given(6, number.to_le_bytes().to_vec())
    }
}

impl From<bool> for Given {
    fn from(flag: bool) -> Given {
        Given(7, vec![u8::from(flag)])
    }
}

impl From<&str> for Given {
    fn from(text: &str) -> Given {
        Given::string(text)
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// One info, with the offset that it claims.
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) format: u32,
    pub(crate) offset: u64,
}

/// A file, part by part.
pub(crate) struct Writer {
    pub(crate) version: u32,
    /// Claimed where that is not how many there are.
    pub(crate) pair_count: Option<u64>,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) pairs: Vec<(String, Given)>,
    pub(crate) infos: Vec<Info>,
    pub(crate) data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

impl Writer {
    pub(crate) fn new() -> Writer {
        let (pairs, infos, data) = (Vec::new(), Vec::new(), Vec::new());
        Writer { version: 3, pair_count: None, tensor_count: None, pairs, infos, data }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<Given>) -> Writer {
        self.pairs.push((key.to_owned(), value.into()));
        self
    }

    /// Instead of the pairs with this key.
    pub(crate) fn instead(mut self, key: &str, value: impl Into<Given>) -> Writer {
        self.pairs.retain(|(known, _)| known != key);
        self.with(key, value)
    }

    pub(crate) fn without(mut self, key: &str) -> Writer {
        self.pairs.retain(|(known, _)| known != key);
        self
    }

    /// A tensor behind those before, padded as it should be. The length of a row comes first.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], format: Format, bytes: &[u8]) -> Writer {
        let offset = self.data.len() as u64;
        self.infos.push(Info { name: name.to_owned(), dims: dims.to_vec(), format: format.number(), offset });
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    pub(crate) fn f32s(self, name: &str, dims: &[u64], values: &[f32]) -> Writer {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dims, Format::F32, &bytes)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.infos.len() as u64).to_le_bytes());
        bytes.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, Given(kind, value)) in &self.pairs {
            bytes.extend(string(key.as_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for Info { name, dims, format, offset } in &self.infos {
            bytes.extend(string(name.as_bytes()));
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(format.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&self.data);
        bytes
    }
}
