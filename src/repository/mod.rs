//! Models on disk: what an operator wrote about them, and what their version folders hold.
//!
//! A leaf: files in, descriptions out. It must not know tensors, tokenizers, devices or HTTP, and it
//! changes nothing on disk. Nothing is cached: every call looks at the disk as it is now, so that a
//! folder that appears or goes is noticed without a restart.

pub mod contract;
pub mod difference;
pub mod duration;
mod fields;
mod files;
pub mod fingerprint;
mod gguf;
pub mod golden;
mod guess;
pub mod model_toml;
pub mod name;
mod rate;
pub mod rules;
mod sentence_transformers;
pub mod sharing;
pub mod size;
pub mod spec;
mod toml_keys;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use contract::{Contract, ContractChange};
pub use difference::{Compared, Difference, Distance, Severity, TensorCounts, contracts, descriptions};
pub use files::safe_relative;
pub use fingerprint::{FileStat, Fingerprint};
pub use gguf::{TokenizerFiles, gguf_config};
pub use golden::{Expect, GoldenCase, Verdict, read_golden};
pub use guess::task_of;
pub use model_toml::{
    BatchConfig, F32Matmul, GateConfig, GenerateConfig, GpuConfig, Limits, Mode, ModelConfig, ObserveConfig,
    OnDrainTimeout, Park, RolloutConfig,
};
pub use rate::LoadThrottle;
pub use rules::{Comparison, Limit, Metric, Rule, RuleConfig, Threshold};
pub use sharing::{CanaryConfig, Lasts, ShadowConfig, Sticky};
pub use spec::{DenseSpec, EmbeddingSpec, Pooling, Spec};

use crate::error::{Error, Result};

/// The file that makes a folder a model.
const MODEL_TOML: &str = "model.toml";

/// The folder that holds one folder for each model.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
}

/// One model as it is on disk now.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    pub name: String,
    pub dir: PathBuf,
    /// A broken `model.toml` is this model's error alone.
    pub config: Result<ModelConfig>,
    /// Names of the version folders, in the order of their bytes.
    pub versions: Vec<String>,
}

impl ModelEntry {
    /// Where the behaviour that every version must show is written; the file may be absent.
    pub fn golden_path(&self) -> PathBuf {
        self.dir.join("golden.jsonl")
    }
}

impl Repository {
    /// Errors: [`Error::Config`] when `root` is not a folder that can be read.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let repository = Repository { root: root.into() };
        let entries = repository.root.read_dir().map_err(|e| repository.unreadable(&e))?;
        for entry in entries.flatten().filter(|entry| entry.path().join(MODEL_TOML).exists()) {
            if let Err(name) = entry.file_name().into_string() {
                tracing::warn!("the model folder {name:?} is not served: its name is not UTF-8");
            }
        }
        Ok(repository)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model, in the order of their names: each folder that holds a `model.toml`. A folder that
    /// vanishes while the repository is read is left out.
    pub fn scan(&self) -> Result<Vec<ModelEntry>> {
        let names = folders(&self.root).map_err(|e| self.unreadable(&e))?;
        Ok(names.into_iter().filter_map(|name| self.entry(name)).collect())
    }

    /// One model, read anew.
    ///
    /// Errors: [`Error::Unknown`], with the models that there are.
    pub fn model(&self, name: &str) -> Result<ModelEntry> {
        let entry = name::check(name).ok().and_then(|()| self.entry(name.to_owned()));
        entry.ok_or_else(|| Error::Unknown { reference: name.to_owned(), known: self.model_names() })
    }

    /// Whether there certainly is no such model: one that cannot be looked at may be there.
    pub fn is_gone(&self, name: &str) -> bool {
        let looked = self.root.join(name).join(MODEL_TOML).symlink_metadata();
        let absent = looked.is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory));
        absent && self.root.read_dir().is_ok()
    }

    /// The folder of a version. It need not hold anything yet: [`Spec::read`] says what is missing in it.
    ///
    /// Errors: [`Error::Unknown`] when the model or the folder is not there, or the name is not one
    /// (see [`name::check`]), with what there is instead.
    pub fn version_dir(&self, model: &str, version: &str) -> Result<PathBuf> {
        let entry = self.model(model)?;
        let dir = entry.dir.join(version);
        if name::check(version).is_ok() && dir.is_dir() {
            return Ok(dir);
        }
        if entry.versions.is_empty() {
            return Err(Error::NoVersions { model: model.to_owned() });
        }
        let known = entry.versions.iter().map(|version| format!("{model}@{version}")).collect();
        Err(Error::Unknown { reference: format!("{model}@{version}"), known })
    }

    fn entry(&self, name: String) -> Option<ModelEntry> {
        let dir = self.root.join(&name);
        let path = dir.join(MODEL_TOML);
        // by link or not, and broken or not: whatever is called model.toml makes a model
        path.symlink_metadata().ok()?;
        let mut versions = folders(&dir).ok()?;
        versions.retain(|version| is_version(&dir.join(version)));
        let config = ModelConfig::read(&path, &format!("{name}/{MODEL_TOML}"));
        Some(ModelEntry { name, dir, config, versions })
    }

    fn model_names(&self) -> Vec<String> {
        let names = folders(&self.root).unwrap_or_default();
        names.into_iter().filter(|name| self.root.join(name).join(MODEL_TOML).symlink_metadata().is_ok()).collect()
    }

    fn unreadable(&self, error: &std::io::Error) -> Error {
        let reason = match error.kind() {
            ErrorKind::NotFound => "the models folder is missing".to_owned(),
            _ => format!("the models folder cannot be read: {error}"),
        };
        Error::Config { file: self.root.display().to_string(), key: String::new(), reason }
    }
}

/// Names of the folders in a folder, through links, sorted. Those that cannot be the name of a model
/// or version are left out: half-written folders begin with `.`, and others could not be addressed.
fn folders(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name::check(&name).is_ok() && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A folder counts as a version when it holds a model's configuration or weights, so that samples and
/// scripts may lie beside the versions.
fn is_version(dir: &Path) -> bool {
    const NAMES: [&str; 4] = ["config.json", "modules.json", "model.safetensors", "model.safetensors.index.json"];
    let has_gguf = || {
        dir.read_dir().is_ok_and(|entries| {
            entries.flatten().any(|entry| Path::new(&entry.file_name()).extension().is_some_and(|e| e == "gguf"))
        })
    };
    NAMES.iter().any(|name| dir.join(name).is_file()) || has_gguf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Task;
    use std::fs;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn models_and_versions_are_found_and_what_is_neither_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "digits/model.toml", "task = 'image-classify'");
        write(root, "digits/v2/config.json", "{}");
        write(root, "digits/v1/config.json", "{}");
        write(root, "digits/.v3.tmp/config.json", "{}");
        write(root, "digits/samples/7.png", "");
        write(root, "digits/train.py", "");
        write(root, "smollm2/model.toml", "task = 'generate'");
        write(root, "smollm2/q4_1/weights.gguf", "");
        write(root, "scripts/readme", "");
        write(root, ".hidden/model.toml", "task = 'embed'");
        write(root, "stray", "");
        let models = Repository::open(root).unwrap().scan().unwrap();
        let found: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.versions.clone())).collect();
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(found, [("digits", strings(&["v1", "v2"])), ("smollm2", strings(&["q4_1"]))]);
        assert_eq!(models[0].config.as_ref().unwrap().task, Task::ImageClassify);
    }

    #[test]
    fn a_broken_model_toml_is_that_models_error_alone() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "bad/model.toml", "task = 'embed'\n[gate");
        write(dir.path(), "good/model.toml", "task = 'embed'");
        write(dir.path(), "pipe/model.toml/file", "");
        let models = Repository::open(dir.path()).unwrap().scan().unwrap();
        let reasons: Vec<_> = models.iter().map(|m| m.config.clone().err().map(|e| e.to_string())).collect();
        assert!(reasons[0].as_ref().unwrap().starts_with("configuration: bad/model.toml: (line 2): not valid TOML"));
        assert_eq!(reasons[1], None);
        assert!(reasons[2].as_ref().unwrap().contains("pipe/model.toml: (file): is not a regular file"));
    }

    #[test]
    fn versions_that_appear_or_go_are_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m/model.toml", "task = 'embed'");
        let repository = Repository::open(dir.path()).unwrap();
        assert!(repository.model("m").unwrap().versions.is_empty());
        write(dir.path(), "m/v1/config.json", "{}");
        assert_eq!(repository.model("m").unwrap().versions, ["v1"]);
        assert_eq!(repository.version_dir("m", "v1").unwrap(), dir.path().join("m/v1"));
        fs::remove_dir_all(dir.path().join("m/v1")).unwrap();
        let gone = repository.version_dir("m", "v1").unwrap_err();
        assert!(matches!(gone, Error::NoVersions { .. }), "{gone}");
        write(dir.path(), "m/v2/config.json", "{}");
        let gone = repository.version_dir("m", "v1").unwrap_err();
        assert!(matches!(gone, Error::Unknown { .. }), "{gone}");
        assert!(!repository.is_gone("m") && repository.is_gone("n"));
        fs::remove_dir_all(dir.path().join("m")).unwrap();
        assert!(repository.is_gone("m"));
        // Then nothing is known of any model.
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(!repository.is_gone("m"));
    }

    #[test]
    fn unusual_names_are_taken_literally() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "модель 1/model.toml", "task = 'embed'");
        // the two ways to write é are two versions
        let mut names = ["v 1", "日本語", "🦀", "\u{e9}", "e\u{301}", "a\\b", "%2e%2e", "a..b", "-rf"];
        for name in names {
            write(dir.path(), &format!("модель 1/{name}/config.json"), "{}");
        }
        let repository = Repository::open(dir.path()).unwrap();
        names.sort_unstable();
        assert_eq!(repository.scan().unwrap()[0].versions, names);
        for name in names {
            assert!(repository.version_dir("модель 1", name).unwrap().ends_with(name));
        }
    }

    #[test]
    fn names_that_would_leave_the_repository_are_unknown() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m/model.toml", "task = 'embed'");
        write(dir.path(), "m/v1/config.json", "{}");
        write(dir.path(), "m/v1/inner/config.json", "{}");
        write(dir.path(), "m/.tmp/config.json", "{}");
        write(dir.path(), "m/a@b/config.json", "{}");
        let repository = Repository::open(dir.path().join("m").parent().unwrap()).unwrap();
        let long = "x".repeat(5000);
        for version in ["", ".", "..", "../m/v1", "v1/inner", "/", ".tmp", "a@b", "v1\0", "model.toml", &long] {
            let error = repository.version_dir("m", version).unwrap_err();
            assert!(matches!(&error, Error::Unknown { known, .. } if *known == ["m@v1"]), "{version:?}: {error}");
        }
        for model in ["", "..", "m/v1", "../m", ".", "m\0", "nothing"] {
            let error = repository.version_dir(model, "v1").unwrap_err();
            assert!(matches!(&error, Error::Unknown { known, .. } if *known == ["m"]), "{model:?}: {error}");
        }
    }

    #[test]
    fn a_root_that_is_not_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "file", "");
        for root in ["file", "missing"] {
            let error = Repository::open(dir.path().join(root)).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_version_folder_may_be_a_link() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "models/m/model.toml", "task = 'embed'");
        write(dir.path(), "cache/snapshot/config.json", "{}");
        std::os::unix::fs::symlink(dir.path().join("cache/snapshot"), dir.path().join("models/m/v1")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("models/m/v2")).unwrap();
        let repository = Repository::open(dir.path().join("models")).unwrap();
        assert_eq!(repository.model("m").unwrap().versions, ["v1"]);
    }
}
