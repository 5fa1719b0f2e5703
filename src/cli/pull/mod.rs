//! `cutover pull`: takes a supported model from the Hugging Face hub into the repository of models.
//!
//! `hub` speaks the hub's interface, `choose` decides which files make a version, `fetch` brings them, `again` asks again for what may
//! come yet. Everything is written under a name that the server does not look at, held against the hub's digests and looked at as the
//! server will, and only then renamed. A pull that was broken off, or that something here was wrong for, goes on where it was.

mod again;
mod choose;
mod fetch;
mod hub;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::again::{Again, Pause};
use self::fetch::{Fetch, Progress};
use self::hub::{Hub, Listing};
use super::args::{PullArgs, Reference};
use super::golden;
use super::output::{human_bytes, note};
use crate::device::{self, Kind};
use crate::error::{Error, Result};
use crate::repository::{ModelConfig, name, task_of};
use crate::rollout::{Home, Survey};
use crate::value::Task;

const MODEL_TOML: &str = "model.toml";
/// Digits of a commit that name a version.
const SHORT: usize = 8;

pub(super) fn run(args: &PullArgs, out: &mut dyn Write) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::internal(format!("cannot start the runtime: {e}")))?;
    let pause = |attempt, asked| crate::telling::pause(attempt, rand::random(), asked);
    runtime.block_on(pull(args, &pause, out)).map(|()| true)
}

async fn pull(args: &PullArgs, pause: Pause<'_>, out: &mut dyn Write) -> Result<()> {
    // What is wrong here is told before anything is asked for.
    let inputs = args.golden.as_deref().map(golden::read_inputs).transpose()?;
    let hub = Hub::new(&args.endpoint, &args.name, args.token.as_ref())?;
    let progress = Progress::new(args.json);
    let again = Again { pause, progress: &progress };
    let listing = again.until_it_comes(async || hub.listing(&args.revision).await).await?;
    // Refused before anything is written.
    choose::descriptions(&listing)?;
    let target = target(args, &listing)?;
    let draft = Draft::begin(&args.models, &target, &listing.commit)?;
    let filled = fill(args, &Fetch { hub: &hub, listing: &listing, dir: &draft.path, again }, &draft).await;
    progress.finish();
    let recorded = match (filled, inputs) {
        (Ok(filled), Some(inputs)) => record(args, &draft, &filled.0, inputs).await.map(|cases| (filled, Some(cases))),
        (filled, _) => filled.map(|filled| (filled, None)),
    };
    let ((config, files), cases) = match recorded {
        Ok(recorded) => recorded,
        Err(Stop::Refused(error)) => {
            draft.discard()?;
            return Err(error);
        }
        Err(Stop::Mendable(error)) => {
            draft.keep()?;
            return Err(error);
        }
    };
    draft.finish(&config, &format!("{} of the Hugging Face hub at {}", args.name, listing.commit))?;
    let bytes = files.iter().filter_map(|file| listing.files.get(file)).map(|file| file.size).sum();
    tell(args, &Pulled { target, config, commit: listing.commit, files, bytes, cases }, out)
        .map_err(|e| Error::internal(format!("cannot write: {e}")))
}

/// Why a pull ended without a version.
enum Stop {
    /// What has come is good: pulling again, perhaps after something here was mended, goes on from there.
    Mendable(Error),
    /// The hub's files are no version that can be served, however often they are pulled.
    Refused(Error),
}

/// Brings everything into the draft, and looks at it as the server will.
async fn fill(args: &PullArgs, fetch: &Fetch<'_>, draft: &Draft) -> Result<(ModelConfig, Vec<String>), Stop> {
    let listing = fetch.listing;
    let first = choose::descriptions(listing).map_err(Stop::Refused)?;
    fetch.files(&first).await.map_err(Stop::Mendable)?;
    let read = |file: &str| match first.iter().any(|name| name == file) {
        true => read_json(&draft.path, file).map(Some),
        false => Ok(None),
    };
    let config = read("config.json")?.unwrap_or_default();
    choose::supported(&config).map_err(Stop::Refused)?;
    let (modules, shards) = (read(choose::MODULES)?, read(choose::SHARDS)?);
    let model = draft.config(args, &config, modules.is_some()).map_err(Stop::Mendable)?;
    let files = choose::everything(listing, modules.as_ref(), shards.as_ref()).map_err(Stop::Refused)?;
    fetch.files(&files).await.map_err(Stop::Mendable)?;
    match draft.problems(&model).as_slice() {
        [] => Ok((model, files)),
        problems => {
            let reasons: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let error = Error::unloadable(&args.name, format!("cannot be served: {}", reasons.join("; ")));
            // What is said here of its task and its limits may be all that is wrong.
            let served = |task: &Task| draft.problems(&ModelConfig::new(*task)).is_empty();
            Err(if Task::ALL.iter().any(served) { Stop::Mendable(error) } else { Stop::Refused(error) })
        }
    }
}

fn read_json(dir: &Path, file: &str) -> Result<Value, Stop> {
    let unread = |e: io::Error| Stop::Mendable(Error::unloadable(file, format!("cannot be read: {e}")));
    let bytes = fs::read(dir.join(file)).map_err(unread)?;
    serde_json::from_slice(&bytes).map_err(|e| Stop::Refused(Error::unloadable(file, format!("not valid JSON: {e}"))))
}

/// Before the version has its name: a server that sees it writes down what it is, and golden cases are a part of that.
async fn record(
    args: &PullArgs,
    draft: &Draft,
    config: &ModelConfig,
    inputs: Vec<golden::Asked>,
) -> Result<usize, Stop> {
    let recorded = async {
        let (opened, config) = (device::open(args.device)?, config.clone());
        let subject = golden::Subject { reference: draft.target.clone(), dir: draft.path.clone(), config, opened };
        golden::record_all(&subject, inputs, golden::Tolerances::default()).await
    };
    recorded.await.map_err(Stop::Mendable)
}

/// What to call it here.
fn target(args: &PullArgs, listing: &Listing) -> Result<Reference> {
    if let Some(target) = &args.target {
        return Ok(target.clone());
    }
    let model = args.name.rsplit('/').next().unwrap_or(&args.name).to_owned();
    name::check(&model).map_err(|why| Error::bad_param("name", format!("{why}; name it with --as")))?;
    // A branch goes on, and a version never changes.
    let commit = || listing.commit.chars().take(SHORT).collect();
    let named = args.revision != "main" && name::check(&args.revision).is_ok();
    let version = if named { args.revision.clone() } else { commit() };
    Ok(Reference { model, version })
}

/// A version that is being written, under a name that the server does not look at.
struct Draft {
    target: Reference,
    model_dir: PathBuf,
    path: PathBuf,
    /// Held for as long as this pull goes on.
    _lock: File,
}

impl Draft {
    fn begin(models: &Path, target: &Reference, commit: &str) -> Result<Draft> {
        let failed = |e: io::Error| Error::unloadable(target, format!("cannot be written: {e}"));
        let model_dir = models.join(&target.model);
        if model_dir.join(&target.version).symlink_metadata().is_ok() {
            let reason = format!("{target} is there already, and versions are immutable; give another name with --as");
            return Err(Error::conflict(reason));
        }
        let short: String = commit.chars().take(SHORT).collect();
        let path = model_dir.join(format!(".pull-{}-{short}", target.version));
        fs::create_dir_all(&path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                // What was recorded for an earlier pull, and not asked for by this one.
                match fs::remove_file(path.join(golden::FILE)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => {}
                }
                Ok(Draft { target: target.clone(), model_dir, path, _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(Error::conflict(format!("{target} is being pulled already"))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The model's own configuration; of a new model what was told, or is to be seen.
    fn config(&self, args: &PullArgs, config: &Value, modules: bool) -> Result<ModelConfig> {
        let path = self.model_dir.join(MODEL_TOML);
        if path.symlink_metadata().is_ok() {
            return ModelConfig::read(&path, &format!("{}/{MODEL_TOML}", self.target.model));
        }
        let guess = || {
            task_of(config, modules)
                .map_err(|why| Error::unloadable("config.json", format!("{why}; say what it is for with --task")))
        };
        Ok(ModelConfig::new(args.task.map_or_else(guess, Ok)?))
    }

    /// Gives the version its name, and a new model its `model.toml`, in this order: a server that looks meanwhile sees
    /// a model only when its version is whole.
    fn finish(self, config: &ModelConfig, origin: &str) -> Result<()> {
        let failed = |e: io::Error| Error::unloadable(&self.target, format!("cannot be written: {e}"));
        let (dir, version) = (&self.model_dir, &self.target.version);
        fs::rename(&self.path, dir.join(version)).map_err(failed)?;
        let path = dir.join(MODEL_TOML);
        if path.symlink_metadata().is_err() {
            let mut table = toml::Table::new();
            table.insert("task".into(), config.task.name().into());
            table.insert("live".into(), version.as_str().into());
            table.insert("description".into(), origin.into());
            let draft = dir.join(format!(".{MODEL_TOML}"));
            let mut file = File::create(&draft).map_err(failed)?;
            file.write_all(table.to_string().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&draft, &path).map_err(failed)?;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Why the server could not serve what it holds.
    fn problems(&self, config: &ModelConfig) -> Vec<Error> {
        let Reference { model, version } = &self.target;
        Survey::of(&self.path, (model, version), config, Home::alone(Kind::Cpu)).problems
    }

    /// Says where it is, for whoever pulls again, or never does.
    fn keep(self) -> Result<()> {
        let failed = |e: io::Error| Error::unloadable(&self.target, format!("cannot be read: {e}"));
        let holds = |entry: fs::DirEntry| entry.metadata().is_ok_and(|meta| meta.is_dir() || meta.len() > 0);
        if !self.path.read_dir().map_err(failed)?.flatten().any(holds) {
            return self.discard();
        }
        note(&format!("what has come is kept in {}: pulling again goes on from there", self.path.display()));
        Ok(())
    }

    fn discard(self) -> Result<()> {
        let failed = |e: io::Error| Error::unloadable(&self.target, format!("cannot be removed: {e}"));
        fs::remove_dir_all(&self.path).map_err(failed)?;
        match fs::remove_dir(&self.model_dir) {
            // A model that has other versions, or files, stays.
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

struct Pulled {
    target: Reference,
    config: ModelConfig,
    commit: String,
    files: Vec<String>,
    bytes: u64,
    /// Golden cases that were recorded.
    cases: Option<usize>,
}

/// A server looks every few seconds, and writes down what it sees.
const NOT_LATER: &str = "                         before a server sees it (DIR is where that keeps its state); where one serves this folder,
                         only `cutover pull --golden FILE` is in time";

fn tell(args: &PullArgs, pulled: &Pulled, out: &mut dyn Write) -> io::Result<()> {
    let Pulled { target, config, commit, files, bytes, cases } = pulled;
    if args.json {
        let body = json!({
            "model": target.model, "version": target.version, "task": config.task, "commit": commit,
            "files": files, "bytes": bytes, "golden_cases": cases.unwrap_or(0),
        });
        return writeln!(out, "{body:#}");
    }
    writeln!(
        out,
        "pulled {} as {target} ({}): {} files, {}",
        args.name,
        config.task,
        files.len(),
        human_bytes(*bytes)
    )?;
    let (models, dir) = (args.models.display(), args.models.join(&target.model).join(&target.version));
    if let Some(cases) = cases {
        writeln!(out, "recorded {cases} golden cases in it")?;
    }
    writeln!(out, "look at it:              cutover inspect {}", dir.display())?;
    if cases.is_none() {
        writeln!(
            out,
            "record golden cases:     cutover golden record {target} --models {models} --inputs FILE --state DIR\n{NOT_LATER}"
        )?;
    }
    writeln!(out, "make it live:            cutover promote {target}    (the first version is, when the server starts)")
}

#[cfg(test)]
mod tests;
