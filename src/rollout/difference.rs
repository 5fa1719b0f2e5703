//! In what two versions differ, put together: what their files say (`repository`), and what their tensors are (`weights`).
//!
//! Headers, small files and digests are cheap; weights are read only to measure distances, which is work that nobody waits for:
//! on a thread that yields to live traffic, and for a bounded time. It decides nothing: what the gate refuses is the
//! contract's to say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Context;
use super::home::Home;
use super::quiet::{Urgency, quietly};
use super::survey::Survey;
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::repository::{
    Compared, Contract, Difference, Fingerprint, ModelConfig, Repository, Severity, Spec, contracts, descriptions,
};
use crate::weights::{Distances, Index, Manifest, Progress, TensorChanges, Tensors, distances};

/// How long distances are measured for a rollout, beside it.
pub(super) const FOR_A_ROLLOUT: Duration = Duration::from_secs(300);
/// And for somebody who asks: shorter than clients wait for an answer.
const FOR_AN_ANSWER: Duration = Duration::from_secs(20);

/// What answers `GET /models/{ref}/diff`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// `model@version`
    pub from: String,
    pub to: String,
    /// Whether the contract gate would let `to` take the place of `from`.
    pub compatible: bool,
    pub differences: Vec<Difference>,
    /// What is the same, where that is worth saying.
    pub same: Vec<String>,
    /// What the two do not both say, or what is not known of them yet, in words.
    pub incomparable: Vec<String>,
}

/// A version as it is compared.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) spec: &'a Spec,
    pub(super) index: &'a Index,
    pub(super) contract: &'a Contract,
    /// Its digests, where they are known.
    pub(super) manifest: Option<&'a Manifest>,
}

impl<'a> Side<'a> {
    fn tensors(self) -> Tensors<'a> {
        Tensors { index: self.index, manifest: self.manifest }
    }

    /// Of a survey that found no problem in what is compared.
    fn of(survey: &'a Survey, manifest: Option<&'a Manifest>) -> Result<Side<'a>> {
        match (&survey.spec, &survey.index, &survey.contract) {
            (Some(spec), Some(index), Some(contract)) => Ok(Side { spec, index, contract, manifest }),
            _ => Err(survey.problems.first().cloned().unwrap_or_else(|| Error::internal("a survey without a problem"))),
        }
    }
}

/// Everything but distances: no weight is read.
pub(super) fn compare(before: Side<'_>, now: Side<'_>) -> (Compared, TensorChanges) {
    let mut compared = contracts(before.contract, now.contract);
    compared.add(descriptions(before.spec, now.spec));
    compared.add(files(before, now));
    (compared, TensorChanges::between(before.tensors(), now.tensors()))
}

/// Files that say something beside what `descriptions` reads, of two versions of one format.
fn files(before: Side<'_>, now: Side<'_>) -> Compared {
    let mut compared = Compared::default();
    let (Some(was), Some(is)) = (before.manifest, now.manifest) else { return compared };
    if before.spec.gguf().is_some() || now.spec.gguf().is_some() {
        // Such a version is one file, and whatever lies beside it is not read.
        return compared;
    }
    let known = |path: &str| {
        matches!(path, "config.json" | "preprocessor_config.json" | "tokenizer.json")
            || path.ends_with(".safetensors")
            || path.ends_with(".safetensors.index.json")
    };
    let paths: std::collections::BTreeSet<&String> = was.files.keys().chain(is.files.keys()).collect();
    let mut remarks = Vec::new();
    for path in paths.into_iter().filter(|path| !known(path)) {
        let what = match (was.files.get(path), is.files.get(path)) {
            (Some(was), Some(is)) if was == is => continue,
            (Some(_), Some(_)) => "has other contents",
            (Some(_), None) => "is gone",
            _ => "is new",
        };
        match is_read(path) {
            true => compared.differences.push(Difference::new(
                format!("files.{path}"),
                Severity::Notable,
                format!("the file {path:?} {what}"),
            )),
            false => remarks.push(format!("{path:?} {what}")),
        }
    }
    if !remarks.is_empty() {
        let message = format!("files that no answer depends on: {}", remarks.join(", "));
        compared.differences.push(Difference::new("files", Severity::Harmless, message));
    }
    compared
}

/// What is read of a version folder to answer requests, beside what is compared key by key.
fn is_read(path: &str) -> bool {
    path.ends_with(".json") || path.ends_with(".jinja") || path.ends_with(".txt") && path.contains("vocab")
}

/// The differences as a rollout's record keeps them.
fn recorded((mut compared, changes): (Compared, &TensorChanges), distances: Option<&Distances>) -> Compared {
    compared.add(changes.told(distances));
    compared.differences.sort_by_key(|difference| std::cmp::Reverse(difference.severity));
    compared
}

impl Comparison {
    fn of(
        before: Side<'_>,
        now: Side<'_>,
        distances: impl FnOnce(&TensorChanges) -> Result<Distances>,
    ) -> Result<Self> {
        let (compared, changes) = compare(before, now);
        let measured = match changes.changed.is_empty() || before.manifest.is_none() || now.manifest.is_none() {
            true => None,
            false => Some(distances(&changes)?),
        };
        let Compared { differences, same, incomparable } = recorded((compared, &changes), measured.as_ref());
        Ok(Comparison {
            from: before.spec.reference(),
            to: now.spec.reference(),
            compatible: differences.iter().all(|difference| difference.severity != Severity::Breaking),
            differences,
            same,
            incomparable,
        })
    }

    /// Two folders that were looked at, with all their digests computed here. Blocks for as long as reading them takes.
    ///
    /// # Errors
    /// The first problem of a folder that cannot be described.
    pub fn of_folders(before: &Survey, now: &Survey) -> Result<Comparison> {
        let digests =
            |survey: &Survey| survey.index.as_ref().map(|index| Manifest::compute(&survey.dir, index)).transpose();
        let (was, is) = (digests(before)?, digests(now)?);
        let (before, now) = (Side::of(before, was.as_ref())?, Side::of(now, is.as_ref())?);
        Comparison::of(before, now, |changes| {
            distances((before.tensors(), now.tensors()), &changes.changed, None, &Progress::new())
        })
    }
}

/// Two versions of a server's repository; digests as the ledger has them, distances for as long as an answer may take.
pub(super) async fn answer(ctx: &Arc<Context>, before: (String, String), now: (String, String)) -> Result<Comparison> {
    let (shared, device) = (Arc::clone(ctx), (ctx.opened.kind(), ctx.budget.capacity()));
    quietly((Urgency::Quiet, ctx.engine.processors()), "compare", move || {
        let until = Instant::now() + FOR_AN_ANSWER;
        let look = |(model, version): &(String, String)| -> Result<(Survey, Option<Manifest>)> {
            let config = shared.repository.model(model)?.config?;
            let dir = shared.repository.version_dir(model, version)?;
            let home = Home::of(device, &shared.repository, &config)?;
            let survey = Survey::of(&dir, (model, version), &config, home);
            let manifest = known(shared.journal.ledger(), (model, version), survey.fingerprint.as_ref())?;
            Ok((survey, manifest))
        };
        let ((was, was_digests), (is, is_digests)) = (look(&before)?, look(&now)?);
        let (was, is) = (Side::of(&was, was_digests.as_ref())?, Side::of(&is, is_digests.as_ref())?);
        Comparison::of(was, is, |changes| {
            distances((was.tensors(), is.tensors()), &changes.changed, Some(until), &Progress::new())
        })
    })
    .await
}

/// The digests of first sight, if the folder is still what it was then.
fn known(ledger: &Ledger, (model, version): (&str, &str), now: Option<&Fingerprint>) -> Result<Option<Manifest>> {
    let Some(value) = ledger.manifest(model, version)? else { return Ok(None) };
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|e| Error::Ledger { reason: format!("a manifest: {e}") })?;
    Ok(Some(manifest).filter(|manifest| now.is_some_and(|now| *now == manifest.fingerprint)))
}

/// The version that is live when a rollout begins, as much of it as its files need not say.
#[derive(Debug, Clone)]
pub(super) struct Before {
    pub(super) version: String,
    /// What it was loaded with.
    pub(super) contract: Contract,
}

/// What a rollout would change, without distances. Blocks. A live version whose folder is gone leaves the contract.
pub(super) fn of_rollout(
    (repository, ledger): (&Repository, &Ledger),
    before: &Before,
    (spec, index, contract): (&Spec, &Index, &Contract),
    config: &ModelConfig,
) -> Vec<Difference> {
    let looked = look_back((repository, ledger), (&spec.model, &before.version), config);
    let (was, was_index, was_manifest) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            let message = format!("the files of '{}' cannot be compared: {error}", before.version);
            let mut differences = contracts(&before.contract, contract).differences;
            differences.push(Difference::new("folder", Severity::Notable, message));
            return differences;
        }
    };
    let now = Fingerprint::of(&spec.dir).ok();
    // A version that was never read has no digests yet; `measured` comes back to it once it was.
    let manifest = known(ledger, (&spec.model, &spec.version), now.as_ref()).ok().flatten();
    let was = Side { spec: &was, index: &was_index, contract: &before.contract, manifest: was_manifest.as_ref() };
    let is = Side { spec, index, contract, manifest: manifest.as_ref() };
    let (compared, changes) = compare(was, is);
    recorded((compared, &changes), None).differences
}

type Looked = (Spec, Index, Option<Manifest>);

fn look_back(
    (repository, ledger): (&Repository, &Ledger),
    (model, version): (&str, &str),
    config: &ModelConfig,
) -> Result<Looked> {
    let dir = repository.version_dir(model, version)?;
    let spec = Spec::read(&dir, model, version, config)?;
    let index = Index::open(&dir, &spec.all_weight_files())?;
    let manifest = known(ledger, (model, version), Some(&Fingerprint::of(&dir)?))?;
    Ok((spec, index, manifest))
}

/// What a rollout would change, measured: once the candidate's digests are known, beside everything else.
///
/// # Errors
/// `Conflict` when `progress` was cancelled; a folder that cannot be read any more.
pub(super) async fn measured(
    ctx: Arc<Context>,
    before: Before,
    (model, version, contract): (String, String, Contract),
    (config, progress): (ModelConfig, Arc<Progress>),
) -> Result<Vec<Difference>> {
    let shared = Arc::clone(&ctx);
    quietly((Urgency::Quiet, ctx.engine.processors()), "compare", move || {
        let until = Instant::now() + FOR_A_ROLLOUT;
        let places = (shared.repository.as_ref(), shared.journal.ledger());
        let (was, was_index, was_manifest) = look_back(places, (&model, &before.version), &config)?;
        let (is, is_index, is_manifest) = look_back(places, (&model, &version), &config)?;
        let was = Side { spec: &was, index: &was_index, contract: &before.contract, manifest: was_manifest.as_ref() };
        let is = Side { spec: &is, index: &is_index, contract: &contract, manifest: is_manifest.as_ref() };
        Ok(Comparison::of(was, is, |changes| {
            distances((was.tensors(), is.tensors()), &changes.changed, Some(until), &progress)
        })?
        .differences)
    })
    .await
}
