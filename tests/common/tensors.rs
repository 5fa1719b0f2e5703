//! Safetensors files taken apart and put together again, so that tests can change what is in them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// A safetensors file in parts.
pub(crate) struct Tensors {
    pub(crate) header: Value,
    pub(crate) data: Vec<u8>,
}

impl Tensors {
    pub(crate) fn read(path: &Path) -> Tensors {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Tensors { header: serde_json::from_slice(&bytes[8..8 + length]).unwrap(), data: bytes[8 + length..].to_vec() }
    }

    pub(crate) fn write(&self, path: &Path) {
        let header = self.header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&self.data);
        fs::write(path, bytes).unwrap();
    }

    /// The bytes of a tensor, to be changed.
    pub(crate) fn bytes(&mut self, name: &str) -> &mut [u8] {
        let ends = &self.header[name]["data_offsets"];
        let end = |at: usize| ends[at].as_u64().unwrap_or_else(|| panic!("no tensor {name}")) as usize;
        let range = end(0)..end(1);
        &mut self.data[range]
    }

    /// Lays every tensor anew, in the order that they lie in: with what `change` makes of its header and bytes, or without it
    /// where that is none.
    pub(crate) fn lay(&mut self, mut change: impl FnMut(&str, &mut Value, Vec<u8>) -> Option<Vec<u8>>) {
        let mut places: Vec<(u64, String)> = Vec::new();
        for (name, tensor) in self.header.as_object().unwrap() {
            places.extend(tensor["data_offsets"][0].as_u64().map(|at| (at, name.clone())));
        }
        places.sort();
        let mut data = Vec::new();
        for (_, name) in places {
            let bytes = self.bytes(&name).to_vec();
            match change(&name, &mut self.header[&name], bytes) {
                Some(bytes) => {
                    self.header[&name]["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
                    data.extend(bytes);
                }
                None => drop(self.header.as_object_mut().unwrap().remove(&name)),
            }
        }
        self.data = data;
    }

    /// The name of some tensor of two dimensions.
    pub(crate) fn matrix(&self) -> String {
        let tensors = self.header.as_object().unwrap().iter();
        let mut matrices = tensors.filter(|(_, t)| t["shape"].as_array().is_some_and(|shape| shape.len() == 2));
        matrices.next().unwrap().0.clone()
    }
}

pub(crate) fn with_tensors(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let mut tensors = Tensors::read(&path);
    change(&mut tensors);
    tensors.write(&path);
}
