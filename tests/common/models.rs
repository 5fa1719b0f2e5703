//! Fixtures of `tests/fixtures`: their versions, their inputs as a processor would prepare them, and the rows that they must give.
//!
//! Token ids and resized pixels are taken from `expected.json`, so a failure is the model's, not the tokenizer's or the decoder's.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use cutover::error::Error;
use cutover::model::{Input, Model, Pixels, Tokens, family};
use cutover::ops::{Device, Keeping};
use cutover::repository::{ModelConfig, Spec};
use cutover::weights::{Footprint, Index, Manifest, Progress, load};
use serde_json::{Value, json};

pub(crate) fn fixtures() -> PathBuf {
    super::root().join("tests/fixtures")
}

/// Every folder with expected outputs, by name.
pub(crate) fn all_fixtures() -> Vec<String> {
    let folders = fs::read_dir(fixtures()).expect("tests/fixtures is there").map(|entry| entry.unwrap());
    let mut names: Vec<String> = folders
        .filter(|entry| entry.path().join("expected.json").is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 17, "fixtures are missing: only {names:?}");
    names
}

pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// A version folder, opened as the server does.
pub(crate) struct Version {
    pub(crate) spec: Spec,
    pub(crate) index: Index,
}

impl Version {
    pub(crate) fn open(dir: &Path, task: &str) -> Version {
        let config = ModelConfig::new(serde_json::from_value(json!(task)).unwrap());
        let spec = Spec::read(dir, "fixtures", &dir.file_name().unwrap().to_string_lossy(), &config).unwrap();
        let dense = spec.embedding.iter().flat_map(|embedding| &embedding.dense);
        let files: Vec<PathBuf> =
            spec.weight_files.iter().cloned().chain(dense.map(|dense| dense.weights_file())).collect();
        Version { index: Index::open(dir, &files).unwrap(), spec }
    }

    pub(crate) fn footprint(&self) -> Result<Footprint, Error> {
        self.footprint_for(Keeping::Cpu)
    }

    pub(crate) fn footprint_for(&self, keeping: Keeping) -> Result<Footprint, Error> {
        (family(&self.spec)?.footprint)(&self.spec, &self.index, keeping)
    }

    pub(crate) fn load(&self) -> Model {
        self.load_on(&Device::Cpu)
    }

    pub(crate) fn load_on(&self, device: &Device) -> Model {
        let footprint = self.footprint_for(device.keeping()).unwrap();
        let manifest = Manifest::compute(&self.spec.dir, &self.index).unwrap();
        let weights =
            load(&self.index, &manifest, &footprint.wanted, HashMap::new(), device, &Progress::new()).unwrap();
        (family(&self.spec).unwrap().load)(&self.spec, weights, device).unwrap()
    }
}

/// A fixture with its inputs, prepared, and the rows that they must give.
pub(crate) struct Fixture {
    pub(crate) version: Version,
    pub(crate) inputs: Vec<Input>,
    pub(crate) expected: Vec<Vec<f32>>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Fixture {
        let dir = fixtures().join(name);
        let expected = json_file(&dir.join("expected.json"));
        let version = Version::open(&dir, expected["task"].as_str().unwrap());
        let cases = expected["cases"].as_array().unwrap();
        assert!(cases.len() >= 4, "{name} has too few cases");
        // raw logits where the task has them: what the probabilities were made from
        let row = |case: &Value| floats(case.get("logits").unwrap_or(&case["output"]));
        let inputs = cases.iter().map(|case| prepare(&version.spec, case)).collect();
        Fixture { inputs, expected: cases.iter().map(row).collect(), version }
    }
}

pub(crate) fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

pub(crate) fn ids(values: &Value) -> Vec<u32> {
    values.as_array().unwrap().iter().map(|v| u32::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

pub(crate) fn prepare(spec: &Spec, case: &Value) -> Input {
    let Some(resized) = case["resized"].as_str() else { return prepare_tokens(case) };
    // [height, width, channel] bytes -> [channel, height, width], rescaled and normalised
    let bytes = base64::engine::general_purpose::STANDARD.decode(resized).unwrap();
    let size = &spec.config["image_size"];
    let pixels = |i: usize| size.get(i).unwrap_or(size).as_u64().unwrap() as usize;
    let (height, width) = (pixels(0), pixels(1));
    let channels = bytes.len() / (height * width);
    let preprocessor = spec.preprocessor.as_ref().unwrap();
    let (mean, std) = (floats(&preprocessor["image_mean"]), floats(&preprocessor["image_std"]));
    let factor = preprocessor["rescale_factor"].as_f64().unwrap() as f32;
    let value = |c: usize, i: usize| (f32::from(bytes[i * channels + c]) * factor - mean[c]) / std[c];
    let data = (0..channels).flat_map(|c| (0..height * width).map(move |i| (c, i))).map(|(c, i)| value(c, i)).collect();
    Input::Pixels(Pixels { data, channels, height, width })
}

pub(crate) fn prepare_tokens(case: &Value) -> Input {
    let tokens = ids(&case["tokens"]);
    let type_ids = if case["types"].is_null() { vec![0; tokens.len()] } else { ids(&case["types"]) };
    Input::Tokens(Tokens { ids: tokens, type_ids })
}

pub(crate) fn run(model: &mut Model, inputs: &[Input]) -> Vec<Vec<f32>> {
    model.forward_all(inputs.to_vec()).unwrap().wait().unwrap()
}

/// Cosine at least 0.99999, and no value further off than `tolerance` of the largest.
#[track_caller]
pub(crate) fn assert_same(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_alike(got, want, (0.99999, tolerance), what);
}

/// The least cosine, and how far off a value may be as a part of the largest.
#[track_caller]
pub(crate) fn assert_alike(got: &[f32], want: &[f32], (least, tolerance): (f64, f32), what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: another width");
    assert!(got.iter().all(|v| v.is_finite()), "{what}: not finite");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(got, want) / (dot(got, got) * dot(want, want)).sqrt();
    assert!(cosine >= least, "{what}: cosine {cosine}");
    let scale = want.iter().fold(0f32, |scale, v| scale.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}: value {i} is {g}, expected {w} (scale {scale})");
    }
}
