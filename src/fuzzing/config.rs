//! What operators and exporters write: `model.toml`, `cutover.toml`, and the small files of a version.
//!
//! The tokenizer is always the same, and weights are mostly headers with zeros behind them (see `safetensors`): a version
//! that is accepted is built and asked, if it is small.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::files::{File, Version, split};
use super::safetensors;
use crate::cli::ServeArgs;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Family, Pending, family};
use crate::ops::{Device, Keeping};
use crate::process::{FinishOptions, Processor};
use crate::repository::{Contract, ModelConfig, Spec, safe_relative, task_of};
use crate::weights::{Footprint, Index, Manifest, Progress, load};

pub(super) const TOKENIZER: &str = include_str!("tokenizer.json");

/// What a version that is built may take, weights and workspace, bytes.
const SMALL: u64 = 32 << 20;
/// No larger side is asked of an image here, lest most of the time goes into resizing.
const LARGEST_SIDE: u64 = 512;

pub(super) fn check(data: &[u8]) -> Result<()> {
    let mut files: Vec<File> = split(data).into_iter().map(safetensors::completed).collect();
    files.push(File { name: "tokenizer.json".into(), body: TOKENIZER.into() });
    let version = Version::with(&files);
    if let Some(text) = version.text("cutover.toml")
        && names_nothing_else(&text)
    {
        served(version.dir.join("cutover.toml"))?;
    }
    let Some(text) = version.text("model.toml") else { return Ok(()) };
    let config = ModelConfig::parse(&text, "model/model.toml")?;
    let written = toml::to_string(&config).unwrap();
    assert_eq!(ModelConfig::parse(&written, "written").unwrap(), config, "{written}");
    described(&version, &config)
}

impl Version {
    fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.read(name)?).ok()
    }
}

/// Whether a `cutover.toml` can be read without asking a name server, or for other files.
fn names_nothing_else(text: &str) -> bool {
    let Ok(table) = text.parse::<toml::Table>() else { return true };
    let Some(server) = table.get("server").and_then(toml::Value::as_table) else { return true };
    let names_a_host = |key| match server.get(key).and_then(toml::Value::as_str) {
        Some(address) => address.parse::<SocketAddr>().is_err(),
        None => false,
    };
    !server.contains_key("admin_token_file") && !["listen", "admin_listen", "grpc_listen"].into_iter().any(names_a_host)
}

fn served(file: PathBuf) -> Result<()> {
    let args = ServeArgs {
        models: None,
        model: Vec::new(),
        device: None,
        threads: None,
        listen: None,
        admin_listen: None,
        grpc_listen: None,
        admin_token_file: None,
        tls_cert: None,
        tls_key: None,
        api_key_files: Vec::new(),
        state: None,
        config: Some(file),
        log: None,
        allow_faults: true,
    };
    let config = Config::load(args)?;
    assert!(config.threads > 0 && config.listen_limits.max_connections > 0);
    assert!(config.max_body_bytes <= config.max_buffered_bytes);
    let shared = [Some(config.listen), config.grpc_listen];
    let mut changing = config.admin_listen.map_or(shared, |own| [Some(own), None]).into_iter().flatten();
    assert!(config.admin_token.is_some() || changing.all(|address| address.ip().is_loopback()), "{config:?}");
    Ok(())
}

/// What is said of a version agrees with itself.
fn described(version: &Version, config: &ModelConfig) -> Result<()> {
    let spec = Spec::read(&version.dir, "model", "v1", config)?;
    let _ = task_of(&spec.config, spec.embedding.is_some());
    for file in spec.all_weight_files() {
        assert!(safe_relative(file.to_str().unwrap()).is_ok(), "{}", file.display());
    }
    let contract = Contract::of(&spec, None, None)?;
    let written = serde_json::to_string(&contract).unwrap();
    assert_eq!(serde_json::from_str::<Contract>(&written).unwrap(), contract);
    assert!(contract.changes_from(&contract).is_empty());

    let family = family(&spec)?;
    if let Some(tokens) = family.tokens_per_image {
        assert!(tokens(&spec)? > 0);
    }
    let processor = Processor::load(&spec, &config.limits)?;
    let index = Index::open(&version.dir, &spec.all_weight_files())?;
    let footprint = (family.footprint)(&spec, &index, Keeping::Cpu)?;
    match footprint.total() <= SMALL && resizes_little(&spec) {
        true => answers(&spec, family, &processor, (&index, &footprint)),
        false => Ok(()),
    }
}

fn resizes_little(spec: &Spec) -> bool {
    fn little(value: &Value) -> bool {
        match value {
            Value::Number(number) => number.as_u64().is_none_or(|side| side <= LARGEST_SIDE),
            Value::Object(sides) => sides.values().all(little),
            _ => true,
        }
    }
    let sizes = spec.preprocessor.iter().flat_map(|settings| [settings.get("size"), settings.get("crop_size")]);
    sizes.flatten().all(little)
}

/// A version whose headers were accepted is built, and asked it answers in the shape of its contract.
fn answers(
    spec: &Spec,
    family: &Family,
    processor: &Processor,
    (index, footprint): (&Index, &Footprint),
) -> Result<()> {
    let manifest = Manifest::compute(&spec.dir, index)?;
    let weights = load(index, &manifest, &footprint.wanted, HashMap::new(), &Device::Cpu, &Progress::new())?;
    let mut model = (family.load)(spec, weights, &Device::Cpu).unwrap();
    let example = processor.example().unwrap();
    let rows = model.forward_all(vec![example]).and_then(Pending::wait).unwrap();
    let [row] = <[Vec<f32>; 1]>::try_from(rows).unwrap();
    let finite = row.iter().all(|value| value.is_finite());
    if let Some(dimension) = spec.dimension() {
        assert_eq!(row.len(), dimension);
    }
    let answer = processor.finish(row, &FinishOptions::default());
    // Whatever a stranger's weights make of an input, it is told as theirs.
    assert_eq!(answer.as_ref().is_err_and(Error::is_model_fault), !finite, "{answer:?}");
    assert_eq!(answer.is_ok(), finite, "{answer:?}");
    Ok(())
}
