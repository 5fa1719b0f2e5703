//! `cutover pull`: takes a supported model from the Hugging Face hub into the repository of models.
//!
//! `hub` speaks the hub's interface, `choose` decides which files make a version, `fetch` brings them. Everything is
//! written under a name that the server does not look at, held against the hub's digests and looked at as the server
//! will, and only then renamed. A pull that was broken off goes on where it was.

mod choose;
mod fetch;
mod hub;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::fetch::{Fetch, Progress};
use self::hub::{Hub, Listing};
use super::args::{PullArgs, Reference};
use super::output::human_bytes;
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::repository::{ModelConfig, name, task_of};
use crate::rollout::{Home, Survey};

const MODEL_TOML: &str = "model.toml";
/// Digits of a commit that name a version.
const SHORT: usize = 8;

pub(super) fn run(args: &PullArgs, out: &mut dyn Write) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::internal(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(pull(args, out)).map(|()| true)
}

async fn pull(args: &PullArgs, out: &mut dyn Write) -> Result<()> {
    let hub = Hub::new(&args.endpoint, &args.name, args.token.as_ref())?;
    let listing = hub.listing(&args.revision).await?;
    // Refused before anything is written.
    choose::descriptions(&listing)?;
    let target = target(args, &listing)?;
    let draft = Draft::begin(&args.models, &target, &listing.commit)?;
    let progress = Progress::new(args.json);
    let filled = fill(args, &hub, &listing, &draft, &progress).await;
    progress.finish();
    let (config, files) = match filled {
        Ok(filled) => filled,
        Err(Stop::Interrupted(error)) => return Err(error),
        Err(Stop::Refused(error)) => {
            draft.discard()?;
            return Err(error);
        }
    };
    draft.finish(&config, &format!("{} of the Hugging Face hub at {}", args.name, listing.commit))?;
    let bytes = files.iter().filter_map(|file| listing.files.get(file)).map(|file| file.size).sum();
    tell(args, &Pulled { target, config, commit: listing.commit, files, bytes }, out)
        .map_err(|e| Error::internal(format!("cannot write: {e}")))
}

/// Why a pull ended without a version.
enum Stop {
    /// What has come is kept: pulling again goes on from there.
    Interrupted(Error),
    /// It is not a version that can be served, however often it is pulled.
    Refused(Error),
}

/// Brings everything into the draft, and looks at it as the server will.
async fn fill(
    args: &PullArgs,
    hub: &Hub,
    listing: &Listing,
    draft: &Draft,
    progress: &Progress,
) -> Result<(ModelConfig, Vec<String>), Stop> {
    let fetch = Fetch { hub, listing, dir: &draft.path, progress };
    let first = choose::descriptions(listing).map_err(Stop::Refused)?;
    fetch.files(&first).await.map_err(Stop::Interrupted)?;
    let read = |file: &str| match first.iter().any(|name| name == file) {
        true => read_json(&draft.path, file).map(Some),
        false => Ok(None),
    };
    let config = read("config.json").map_err(Stop::Refused)?.unwrap_or_default();
    choose::supported(&config).map_err(Stop::Refused)?;
    let (modules, shards) = (read(choose::MODULES), read(choose::SHARDS));
    let (modules, shards) = (modules.map_err(Stop::Refused)?, shards.map_err(Stop::Refused)?);
    let model = draft.config(args, &config, modules.is_some()).map_err(Stop::Refused)?;
    let files = choose::everything(listing, modules.as_ref(), shards.as_ref()).map_err(Stop::Refused)?;
    fetch.files(&files).await.map_err(Stop::Interrupted)?;
    let survey = Survey::of(&draft.path, (&draft.target.model, &draft.target.version), &model, Home::alone(Kind::Cpu));
    match survey.problems.as_slice() {
        [] => Ok((model, files)),
        problems => {
            let reasons: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Err(Stop::Refused(Error::unloadable(&args.name, format!("cannot be served: {}", reasons.join("; ")))))
        }
    }
}

fn read_json(dir: &Path, file: &str) -> Result<Value> {
    let bytes = fs::read(dir.join(file)).map_err(|e| Error::unloadable(file, format!("cannot be read: {e}")))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::unloadable(file, format!("not valid JSON: {e}")))
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
            Ok(()) => Ok(Draft { target: target.clone(), model_dir, path, _lock: lock }),
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
}

fn tell(args: &PullArgs, pulled: &Pulled, out: &mut dyn Write) -> io::Result<()> {
    let Pulled { target, config, commit, files, bytes } = pulled;
    if args.json {
        let body = json!({
            "model": target.model, "version": target.version, "task": config.task, "commit": commit,
            "files": files, "bytes": bytes,
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
    let dir = args.models.join(&target.model).join(&target.version);
    writeln!(out, "look at it:              cutover inspect {}", dir.display())?;
    writeln!(out, "record golden cases:     cutover golden record {target} --inputs FILE")?;
    writeln!(out, "make it live:            cutover promote {target}    (the first version is, when the server starts)")
}

#[cfg(test)]
mod tests;
