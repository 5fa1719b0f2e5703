//! Weights that are resident, by what they are, so that a version shares unchanged tensors with its neighbours.

use std::collections::{HashMap, HashSet};

use super::Held;
use crate::generation::GenerationId;
use crate::ops::Tensor;
use crate::weights::TensorKey;

#[derive(Debug, Default)]
pub(super) struct Store {
    tensors: HashMap<TensorKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    tensor: Tensor,
    holders: HashSet<GenerationId>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        (self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()) as u64
    }
}

impl Store {
    pub(super) fn lookup(&mut self, generation: GenerationId, keys: Vec<TensorKey>) -> HashMap<TensorKey, Tensor> {
        let mut found = HashMap::new();
        for key in keys {
            if let Some(entry) = self.tensors.get_mut(&key) {
                entry.holders.insert(generation);
                found.insert(key, entry.tensor.clone());
            }
        }
        found
    }

    pub(super) fn keep(&mut self, generation: GenerationId, tensors: Vec<(TensorKey, Tensor)>) {
        for (key, tensor) in tensors {
            let entry = self.tensors.entry(key).or_insert_with(|| Entry { tensor, holders: HashSet::new() });
            entry.holders.insert(generation);
        }
    }

    /// Lets go of a generation's part; tensors that nobody else holds are dropped here.
    pub(super) fn release(&mut self, generation: GenerationId) -> Held {
        let held = self.held().remove(&generation).unwrap_or_default();
        self.tensors.retain(|_, entry| {
            entry.holders.remove(&generation);
            !entry.holders.is_empty()
        });
        self.tensors.shrink_to_fit();
        held
    }

    pub(super) fn held(&self) -> HashMap<GenerationId, Held> {
        let mut by: HashMap<GenerationId, Held> = HashMap::new();
        for entry in self.tensors.values() {
            for holder in &entry.holders {
                let held = by.entry(*holder).or_default();
                match entry.holders.len() {
                    1 => held.exclusive += entry.bytes(),
                    _ => held.shared += entry.bytes(),
                }
            }
        }
        by
    }
}
