//! `cutover inspect`: what a version folder is, what it will cost in memory, and why it could not be loaded.
//!
//! It sees what the server's loading room sees, and loads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::InspectArgs;
use super::output::{human_bytes, printable};
use super::table::Table;
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::repository::{F32Matmul, FileStat, ModelConfig, Repository, task_of};
use crate::rollout::{Golden, Home, Survey};
use crate::value::Task;
use crate::weights::{Footprint, Index, Manifest, Wanted};

const MODEL_TOML: &str = "model.toml";
/// Labels that the table names; JSON has all of them.
const SHOWN_LABELS: usize = 10;

/// True when the version can be loaded.
pub(super) fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<bool> {
    let report = Report::of(&args.dir, args.task)?;
    let written = match args.json {
        true => serde_json::to_string_pretty(&report).map_err(io::Error::from).and_then(|text| writeln!(out, "{text}")),
        false => report.write(out),
    };
    written.map_err(|e| Error::internal(format!("cannot write: {e}")))?;
    Ok(report.loadable)
}

/// Everything that is known of a version without loading it. What could not be found out is null.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    version: String,
    loadable: bool,
    problems: Vec<Problem>,
    task: Option<Task>,
    family: Option<String>,
    digest: Option<String>,
    /// Bytes.
    size: u64,
    files: Vec<File>,
    weights: Option<WeightsReport>,
    memory: Option<Memory>,
    /// `[gpu] f32_matmul` of `model.toml`.
    f32_matmul: Option<F32Matmul>,
    /// What a GPU keeps and computes with: what most of the files' numbers are.
    gpu_dtype: Option<&'static str>,
    labels: Vec<String>,
    dimension: Option<usize>,
    pooling: Option<String>,
    normalize: Option<bool>,
    tokenizer: Option<Tokenizer>,
    max_tokens: Option<usize>,
    tokens_per_image: Option<usize>,
    golden: Option<GoldenCounts>,
}

#[derive(Debug, Serialize)]
struct Problem {
    kind: &'static str,
    message: String,
    details: Value,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    size: u64,
}

#[derive(Debug, Serialize)]
struct WeightsReport {
    /// Numbers that the architecture uses.
    parameters: u64,
    /// Tensors that it uses, and that the files hold.
    used: usize,
    tensors: usize,
    /// How the files hold them: tensors by number format.
    dtypes: BTreeMap<String, usize>,
}

/// Bytes that will be reserved, an upper bound.
#[derive(Debug, Serialize)]
struct Memory {
    dtype: String,
    weights: u64,
    workspace: u64,
    total: u64,
}

#[derive(Debug, Serialize)]
struct Tokenizer {
    kind: &'static str,
    vocabulary: usize,
    digest: Option<String>,
}

/// Golden cases of the model and of the version.
#[derive(Debug, Serialize)]
struct GoldenCounts {
    model: usize,
    version: usize,
}

impl Report {
    fn of(dir: &Path, task: Option<Task>) -> Result<Report> {
        let place = Place::of(dir)?;
        let (config, no_config) = match place.config(task) {
            Ok(config) => (config, None),
            // The files can be listed and digested all the same; what they should be cannot be told.
            Err(error) => (ModelConfig::new(Task::Embed), Some(error)),
        };
        let mut survey = Survey::of(&place.dir, (&place.model, &place.version), &config, Home::alone(Kind::Cpu));
        if let Some(error) = &no_config {
            survey.problems = vec![error.clone()];
            (survey.footprint, survey.processor, survey.contract) = (None, None, None);
        }
        let mut report = Report::new(&place, &survey);
        report.task = no_config.is_none().then_some(config.task);
        report.problems.extend(survey.problems.iter().map(Problem::of));
        match Golden::read(&place.dir) {
            Ok(golden) => {
                report.golden = Some(GoldenCounts { model: golden.model.len(), version: golden.version.len() });
                if report.problems.is_empty()
                    && let Err(error) = survey.fits(&golden)
                {
                    report.problems.push(Problem::of(&error));
                }
            }
            Err(error) => report.problems.push(Problem::of(&error)),
        }
        report.loadable = report.problems.is_empty();
        Ok(report)
    }

    fn new(place: &Place, survey: &Survey) -> Report {
        let files: Vec<File> = survey.fingerprint.iter().flat_map(|print| print.files()).map(File::of).collect();
        let mut problems = Vec::new();
        let manifest = survey.index.as_ref().map(|index| Manifest::compute(&survey.dir, index));
        let digest = manifest.and_then(|manifest| {
            manifest.map_err(|error| problems.push(Problem::of(&error))).ok().map(|manifest| manifest.digest)
        });
        let contract = survey.contract.as_ref();
        Report {
            model: place.model.clone(),
            version: place.version.clone(),
            loadable: false,
            problems,
            task: None,
            family: survey.spec.as_ref().map(|spec| spec.family.clone()),
            digest,
            size: files.iter().map(|file| file.size).sum(),
            files,
            weights: survey.index.as_ref().map(|index| WeightsReport::of(index, survey.footprint.as_ref())),
            memory: survey.footprint.as_ref().map(Memory::of),
            f32_matmul: survey.spec.as_ref().map(|spec| spec.f32_matmul),
            gpu_dtype: survey.index.as_ref().map(|index| index.main_format().as_str()),
            labels: contract.map(|contract| contract.labels.clone()).unwrap_or_default(),
            dimension: contract.and_then(|contract| contract.dimension),
            pooling: contract.and_then(|contract| contract.pooling.clone()),
            normalize: contract.and_then(|contract| contract.normalize),
            tokenizer: survey.processor.as_ref().and_then(|processor| processor.tokenizer()).map(
                |(kind, vocabulary)| Tokenizer {
                    kind,
                    vocabulary,
                    digest: contract.and_then(|contract| contract.tokenizer.clone()),
                },
            ),
            max_tokens: contract.and_then(|contract| contract.max_tokens),
            tokens_per_image: survey
                .tokens_per_image
                .filter(|_| survey.family.is_some_and(|family| family.tokens_per_image.is_some())),
            golden: None,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut facts = Table::new([format!("{}@{}", self.model, self.version), String::new()]);
        for (name, value) in self.facts() {
            facts.row([name, &value]);
        }
        facts.write(out)?;
        if let Some(memory) = &self.memory {
            let mut table = Table::new(["memory", "bytes", ""]);
            for (name, bytes) in [
                (format!("weights as {}", memory.dtype), memory.weights),
                ("workspace".to_owned(), memory.workspace),
                ("to reserve".to_owned(), memory.total),
            ] {
                table.row([name, bytes.to_string(), human_bytes(bytes)]);
            }
            writeln!(out)?;
            table.write(out)?;
        }
        let mut files = Table::new(["file", "size"]);
        self.files.iter().for_each(|file| files.row([&file.path, &human_bytes(file.size)]));
        if !files.is_empty() {
            writeln!(out)?;
            files.write(out)?;
        }
        if !self.loadable {
            writeln!(out, "\nit cannot be loaded:")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(out, "  {}", printable(&problem.message)))
    }

    /// What matrix products on a GPU are made of.
    fn products(&self) -> Option<String> {
        Some(match (self.gpu_dtype?, self.f32_matmul?) {
            ("f32", how) => how.name().to_owned(),
            (dtype, F32Matmul::F32) => dtype.to_owned(),
            (dtype, F32Matmul::Tf32) => format!("{dtype}; f32_matmul = \"tf32\" means nothing for it"),
        })
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let labels = self.labels.iter().take(SHOWN_LABELS).cloned().collect::<Vec<_>>().join(", ");
        let more = if self.labels.len() > SHOWN_LABELS { ", …" } else { "" };
        let weights = self.weights.as_ref();
        let formats = |weights: &WeightsReport| {
            weights.dtypes.iter().map(|(dtype, count)| format!("{dtype} × {count}")).collect::<Vec<_>>().join(", ")
        };
        let facts = [
            ("task", self.task.map(|task| task.to_string())),
            ("family", self.family.clone()),
            ("parameters", weights.map(|weights| weights.parameters.to_string())),
            ("tensors", weights.map(|weights| format!("{} used of {}", weights.used, weights.tensors))),
            ("stored as", weights.map(formats)),
            ("products on a GPU", self.products()),
            ("labels", (!self.labels.is_empty()).then(|| format!("{} ({labels}{more})", self.labels.len()))),
            ("dimension", self.dimension.map(|dimension| dimension.to_string())),
            ("pooling", self.pooling.clone()),
            ("normalised", self.normalize.map(|yes| if yes { "yes" } else { "no" }.to_owned())),
            ("tokenizer", self.tokenizer.as_ref().map(|it| format!("{}, {} tokens", it.kind, it.vocabulary))),
            ("longest input", self.max_tokens.map(|tokens| format!("{tokens} tokens"))),
            ("tokens per image", self.tokens_per_image.map(|tokens| tokens.to_string())),
            (
                "golden cases",
                self.golden.as_ref().map(|g| format!("{} of the model, {} of the version", g.model, g.version)),
            ),
            ("digest", self.digest.clone()),
        ];
        facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl Problem {
    fn of(error: &Error) -> Problem {
        Problem { kind: error.kind().name(), message: error.to_string(), details: error.details() }
    }
}

impl File {
    fn of(file: &FileStat) -> File {
        File { path: file.path.clone(), size: file.size }
    }
}

impl WeightsReport {
    fn of(index: &Index, footprint: Option<&Footprint>) -> WeightsReport {
        let wanted = footprint.map(|footprint| footprint.wanted.as_slice()).unwrap_or_default();
        let mut dtypes = BTreeMap::new();
        for tensor in index.iter() {
            *dtypes.entry(tensor.dtype.name().to_owned()).or_default() += 1;
        }
        let elements = |shape: &[usize]| shape.iter().fold(1u64, |product, size| product.saturating_mul(*size as u64));
        WeightsReport {
            parameters: wanted.iter().map(|wanted| elements(&wanted.whole())).sum(),
            used: wanted.iter().flat_map(Wanted::names).filter(|name| index.get(name).is_some()).count(),
            tensors: index.len(),
            dtypes,
        }
    }
}

impl Memory {
    fn of(footprint: &Footprint) -> Memory {
        let dtypes: BTreeSet<&str> = footprint.wanted.iter().map(|wanted| wanted.dtype.as_str()).collect();
        Memory {
            dtype: dtypes.into_iter().collect::<Vec<_>>().join(", "),
            weights: footprint.weight_bytes(),
            workspace: footprint.workspace,
            total: footprint.total(),
        }
    }
}

/// Where a version folder is, and what it is therefore called.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) model: String,
    pub(super) version: String,
}

impl Place {
    pub(super) fn of(dir: &Path) -> Result<Place> {
        let given = dir.display().to_string();
        let refused = |why: String| Error::unloadable(&given, why);
        if !dir.is_dir() {
            return Err(refused(if dir.exists() { "is not a folder" } else { "is missing" }.to_owned()));
        }
        // The names are those of the path as it was given; links are only followed where it ends in `..`.
        let mut dir = std::path::absolute(dir).map_err(|e| refused(e.to_string()))?;
        if dir.components().any(|part| part == std::path::Component::ParentDir) {
            dir = dir.canonicalize().map_err(|e| Error::unloadable(dir.display(), e))?;
        }
        let name = |path: Option<&Path>| path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        if let Some(why) = above_versions(&dir) {
            return Err(refused(why));
        }
        let version = name(Some(&dir)).unwrap_or_else(|| "version".to_owned());
        let model = name(dir.parent()).unwrap_or_else(|| "model".to_owned());
        Ok(Place { model, version, dir })
    }

    /// What `model.toml` says; without one, what was told or can be guessed.
    pub(super) fn config(&self, told: Option<Task>) -> Result<ModelConfig> {
        let path = self.dir.parent().map(|parent| parent.join(MODEL_TOML)).filter(|path| path.exists());
        if let Some(path) = path {
            let config = ModelConfig::read(&path, &format!("{}/{MODEL_TOML}", self.model))?;
            return Ok(ModelConfig { task: told.unwrap_or(config.task), ..config });
        }
        match told {
            Some(task) => Ok(ModelConfig::new(task)),
            None => self.guess().map(ModelConfig::new),
        }
    }

    fn guess(&self) -> Result<Task> {
        let label = format!("{}/{}/config.json", self.model, self.version);
        let text = std::fs::read(self.dir.join("config.json")).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::unloadable(&label, "is missing"),
            _ => Error::unloadable(&label, format!("cannot be read: {e}")),
        })?;
        let config: Value =
            serde_json::from_slice(&text).map_err(|e| Error::unloadable(&label, format!("not valid JSON: {e}")))?;
        task_of(&config, self.dir.join("modules.json").is_file())
            .map_err(|why| Error::unloadable(label, format!("{why}; say what the model is for with --task")))
    }
}

/// What somebody named who stopped short of a version's folder: a model's, or one of models.
fn above_versions(dir: &Path) -> Option<String> {
    let models = |root: &Path| Repository::open(root).and_then(|repository| repository.scan()).unwrap_or_default();
    if dir.join(MODEL_TOML).is_file() {
        let (root, name) = (dir.parent()?, dir.file_name()?);
        let versions = models(root).into_iter().find(|model| name == model.name.as_str())?.versions;
        return Some(match versions.is_empty() {
            true => "is the folder of a model that has no version yet".to_owned(),
            false => format!("is a model's folder; name one of its versions: {}", versions.join(", ")),
        });
    }
    let versions = models(dir).into_iter().flat_map(|model| {
        let name = model.name;
        model.versions.into_iter().map(move |version| format!("{name}/{version}"))
    });
    let versions: Vec<String> = versions.collect();
    (!versions.is_empty())
        .then(|| format!("is a folder of models; name one of their versions: {}", versions.join(", ")))
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
