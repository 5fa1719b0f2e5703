//! Fixtures of `tests/fixtures/decoders`, which `tests/fixtures/make_decoders.py` writes and explains, and a model that runs them.

use std::fs;
use std::path::PathBuf;

use candle_core::DType;
use cutover::model::{Decoder, KvCache, KvSpec, Logits, Model, StepInput, StepSequence, Wants};
use cutover::ops::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use super::models::{Version, fixtures, floats, ids, json_file};

pub(crate) fn folder() -> PathBuf {
    fixtures().join("decoders")
}

pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 16, "fixtures are missing: only {names:?}");
    names
}

pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) greedy: Vec<u32>,
}

/// A fixture's folder, whole, with what it must answer.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) prompts: Vec<Prompt>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Fixture {
        Fixture::changed(name, |_| ())
    }

    /// With another `config.json`.
    pub(crate) fn changed(name: &str, change: impl Fn(&mut Value)) -> Fixture {
        let expected = json_file(&folder().join(name).join("expected.json"));
        let mut config = json_file(&folder().join(name).join("config.json"));
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let weights = folder().join(expected["weights"].as_str().unwrap()).join("model.safetensors");
        fs::copy(weights, dir.path().join("model.safetensors")).unwrap();
        let prompts = expected["prompts"].as_array().unwrap().iter().map(|prompt| Prompt {
            tokens: ids(&prompt["tokens"]),
            positions: ids(&prompt["positions"]),
            logits: prompt["logits"].as_array().unwrap().iter().map(floats).collect(),
            greedy: ids(&prompt["greedy"]),
        });
        Fixture { prompts: prompts.collect(), dir }
    }

    pub(crate) fn version(&self) -> Version {
        Version::open(self.dir.path(), "generate")
    }

    pub(crate) fn load(&self) -> Running {
        Running::of(self.version().load())
    }

    /// Other weights, f32, of other shapes.
    pub(crate) fn reshape(&self, mut change: impl FnMut(&str, &[usize]) -> (Vec<usize>, Vec<f32>)) {
        let path = self.dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut shapes: Vec<_> =
            tensors.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        shapes.sort();
        let all: Vec<_> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let (shape, values) = change(&name, &shape);
                (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
            })
            .collect();
        let views =
            all.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    /// The weights again, with some in another format.
    pub(crate) fn rewrite(&self, change: impl Fn(&str, &TensorView<'_>) -> Option<(Dtype, Vec<u8>)>) {
        let path = self.dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let all = tensors.tensors().into_iter().map(|(name, view)| {
            let (dtype, data) = change(&name, &view).unwrap_or((view.dtype(), view.data().to_vec()));
            (name, dtype, view.shape().to_vec(), data)
        });
        let all: Vec<_> = all.collect();
        let views =
            all.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
}

/// A model with a cache, whose blocks are given out as they are needed, every second one, from the last down.
pub(crate) struct Running {
    pub(crate) model: Box<dyn Decoder>,
    pub(crate) kv: KvCache,
    pub(crate) next: u32,
}

/// A sequence's tokens so far, how many of them were run, and its blocks.
#[derive(Default)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) done: usize,
    pub(crate) blocks: Vec<u32>,
}

impl Running {
    pub(crate) fn of(model: Model) -> Running {
        let Model::Decoder(model, _) = model else { panic!("it is not a decoder") };
        let kv = KvCache::new(&model.kv(), 256, &Device::Cpu).unwrap();
        Running { model, kv, next: 256 }.keep_as(DType::F32)
    }

    /// With the cache that was made for it, wherever that is.
    pub(crate) fn with_its_own(model: Model) -> Running {
        let Model::Decoder(model, cache) = model else { panic!("it is not a decoder") };
        assert!(cache.blocks() >= 256);
        Running { model, kv: *cache, next: 256 }
    }

    pub(crate) fn keep_as(mut self, dtype: DType) -> Running {
        self.kv = KvCache::new(&KvSpec { dtype, ..self.model.kv() }, 256, &Device::Cpu).unwrap();
        self
    }

    pub(crate) fn start(&mut self, tokens: &[u32]) -> Sequence {
        Sequence { tokens: tokens.to_vec(), ..Sequence::default() }
    }

    /// One step of these sequences, each going on by so many tokens.
    pub(crate) fn step(&mut self, sequences: &mut [(&mut Sequence, usize, Wants)]) -> Vec<Vec<f32>> {
        self.logits(sequences).rows().map(<[f32]>::to_vec).collect()
    }

    pub(crate) fn logits(&mut self, sequences: &mut [(&mut Sequence, usize, Wants)]) -> Logits {
        let step = self.input(sequences);
        let logits = self.model.step(&step, &mut self.kv).unwrap();
        assert_eq!(logits.count(), step.rows());
        logits
    }

    /// The step of these sequences, each going on by so many tokens. A token that it does not have yet is 0.
    pub(crate) fn input(&mut self, sequences: &mut [(&mut Sequence, usize, Wants)]) -> StepInput {
        let step = sequences.iter_mut().map(|(sequence, count, wants)| {
            let from = sequence.done;
            sequence.done += *count;
            while sequence.blocks.len() * 16 < sequence.done {
                self.next -= 2;
                sequence.blocks.push(self.next);
            }
            let tokens = (from..sequence.done).map(|at| sequence.tokens.get(at).copied().unwrap_or(0)).collect();
            StepSequence { tokens, from, blocks: sequence.blocks.clone().into(), wants: *wants }
        });
        StepInput { sequences: step.collect() }
    }

    /// Every row of logits of a whole prompt.
    pub(crate) fn whole(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut sequence = self.start(tokens);
        self.step(&mut [(&mut sequence, tokens.len(), Wants::Every)])
    }

    /// The same, its tokens in pieces of these sizes in turns.
    pub(crate) fn in_pieces(&mut self, tokens: &[u32], sizes: &[usize]) -> Vec<Vec<f32>> {
        let mut sequence = self.start(tokens);
        let mut rows = Vec::new();
        let mut sizes = sizes.iter().cycle();
        while sequence.done < tokens.len() {
            let count = (*sizes.next().unwrap()).min(tokens.len() - sequence.done);
            rows.extend(self.step(&mut [(&mut sequence, count, Wants::Every)]));
        }
        rows
    }

    /// Every row of several prompts that step side by side, each in pieces of another size.
    pub(crate) fn side_by_side(&mut self, prompts: &[Prompt]) -> Vec<Vec<Vec<f32>>> {
        let mut sequences: Vec<Sequence> = prompts.iter().map(|prompt| self.start(&prompt.tokens)).collect();
        let mut rows = vec![Vec::new(); sequences.len()];
        while sequences.iter().any(|sequence| sequence.done < sequence.tokens.len()) {
            let due = sequences.iter_mut().enumerate().filter(|(_, sequence)| sequence.done < sequence.tokens.len());
            let (places, mut step): (Vec<_>, Vec<_>) = due
                .map(|(at, sequence)| {
                    let count = (5 * at + 1).min(sequence.tokens.len() - sequence.done);
                    ((at, count), (sequence, count, Wants::Every))
                })
                .unzip();
            let mut got = self.step(&mut step).into_iter();
            places.into_iter().for_each(|(at, count)| rows[at].extend(got.by_ref().take(count)));
        }
        rows
    }

    pub(crate) fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut sequence = self.start(prompt);
        let mut due = prompt.len();
        for _ in 0..count {
            let rows = self.step(&mut [(&mut sequence, due, Wants::Last)]);
            sequence.tokens.push(best(&rows[0]));
            due = 1;
        }
        sequence.tokens.split_off(prompt.len())
    }
}

pub(crate) fn best(row: &[f32]) -> u32 {
    let most = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    most.unwrap().0 as u32
}

#[track_caller]
pub(crate) fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    let scale = want.iter().fold(0f32, |scale, x| scale.max(x.abs()));
    let error = got.iter().zip(want).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(got.len() == want.len() && error <= tolerance * scale, "{what}: off by {error} of {scale}");
}
