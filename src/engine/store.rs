//! Weights that are resident, by what they are, so that a version shares unchanged tensors with its neighbours.

use std::collections::{HashMap, HashSet};

use super::Held;
use crate::generation::GenerationId;
use crate::ops::Tensor;
use crate::weights::TensorKey;

#[derive(Debug, Default)]
pub(super) struct Store {
    /// Mostly one of each. Versions that were loaded at the same time have each their own.
    tensors: HashMap<TensorKey, Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    tensor: Tensor,
    /// Those whose model reads it, or may come to.
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
            if let Some(entry) = self.tensors.get_mut(&key).and_then(|entries| entries.first_mut()) {
                entry.holders.insert(generation);
                found.insert(key, entry.tensor.clone());
            }
        }
        found
    }

    pub(super) fn keep(&mut self, generation: GenerationId, tensors: Vec<(TensorKey, Tensor)>) {
        for (key, tensor) in tensors {
            let entries = self.tensors.entry(key).or_default();
            match entries.iter_mut().find(|entry| entry.tensor.is_same(&tensor)) {
                Some(entry) => {
                    entry.holders.insert(generation);
                }
                // An equal one that came first is somebody else's: this generation computes with its own.
                None => entries.push(Entry { tensor, holders: HashSet::from([generation]) }),
            }
        }
    }

    /// Lets go of a generation's part; tensors that nobody else holds are dropped here.
    pub(super) fn release(&mut self, generation: GenerationId) -> Held {
        let held = self.held().remove(&generation).unwrap_or_default();
        self.tensors.retain(|_, entries| {
            entries.retain_mut(|entry| {
                entry.holders.remove(&generation);
                !entry.holders.is_empty()
            });
            !entries.is_empty()
        });
        held
    }

    /// Takes no more room than it needs.
    pub(super) fn shrink(&mut self) {
        self.tensors.shrink_to_fit();
    }

    pub(super) fn held(&self) -> HashMap<GenerationId, Held> {
        let mut by: HashMap<GenerationId, Held> = HashMap::new();
        for entry in self.tensors.values().flatten() {
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

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::ops::{Device, WeightLayout};

    fn key() -> TensorKey {
        TensorKey { digest: "F32:x".into(), dtype: DType::F32, shape: vec![4], layout: WeightLayout::Rows }
    }

    fn tensor() -> Tensor {
        Tensor::from_vec(vec![0f32; 4], 4, &Device::Cpu).unwrap()
    }

    #[test]
    fn equal_tensors_that_were_loaded_at_once_are_each_held_by_who_reads_them() {
        let (mut store, [a, b, c]) = (Store::default(), [1, 2, 3].map(GenerationId));
        let exclusive = |bytes| Some(Held { exclusive: bytes, shared: 0 });
        for generation in [a, b] {
            assert!(store.lookup(generation, vec![key()]).is_empty());
        }
        for generation in [a, b] {
            let tensor = tensor();
            // Under two names.
            store.keep(generation, vec![(key(), tensor.clone()), (key(), tensor)]);
        }
        assert_eq!([a, b].map(|of| store.held().get(&of).copied()), [exclusive(16); 2]);
        // Whoever comes later shares one of them, and keeps what it was given.
        let shared = store.lookup(c, vec![key()]);
        store.keep(c, shared.into_iter().collect());
        assert_eq!(store.held()[&c], Held { exclusive: 0, shared: 16 });
        assert_eq!(store.release(a), Held { exclusive: 0, shared: 16 });
        assert_eq!([b, c].map(|of| store.held().get(&of).copied()), [exclusive(16); 2]);
        assert_eq!(store.release(b), exclusive(16).unwrap());
        assert_eq!(store.release(c), exclusive(16).unwrap());
        assert!(store.tensors.is_empty());
    }
}
