//! First sight: a version's digests are recorded when its folder is first found, so that a folder that changes
//! before anybody stages it is known to have changed.
//!
//! Reading whole versions is work that nobody waits for: one at a time, on one thread of the lowest priority.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};

use super::journal::{Journal, event};
use super::quiet::Urgency;
use crate::device::Processors;
use crate::error::{Error, Result};
use crate::repository::{ModelConfig, Repository, Spec};
use crate::weights::{Index, Manifest};

/// Takes the names of versions that were found.
pub(super) struct Sight {
    found: mpsc::Sender<Found>,
    known: BTreeSet<(String, String)>,
}

struct Found {
    model: String,
    version: String,
    config: ModelConfig,
}

impl Sight {
    pub(super) fn start(repository: Arc<Repository>, journal: Journal, processors: Arc<Processors>) -> Result<Sight> {
        let (found, queue) = mpsc::channel::<Found>();
        let work = move || {
            Urgency::Quiet.take(&processors);
            for version in queue {
                if let Err(error) = see(&repository, &journal, &version) {
                    // Whoever stages it is told the same.
                    let Found { model, version, .. } = version;
                    tracing::warn!(model, version, %error, "a version that was found could not be read and its digests recorded");
                }
            }
        };
        std::thread::Builder::new()
            .name("first-sight".into())
            .spawn(work)
            .map_err(|e| Error::internal(format!("could not start the first-sight thread: {e}")))?;
        Ok(Sight { found, known: BTreeSet::new() })
    }

    /// Looks at versions that were not here before.
    pub(super) fn found(&mut self, model: &str, versions: &[String], config: &ModelConfig) {
        for version in versions {
            if self.known.insert((model.to_owned(), version.clone())) {
                let found = Found { model: model.to_owned(), version: version.clone(), config: config.clone() };
                // The thread ends only with the process.
                let _ = self.found.send(found);
            }
        }
    }
}

fn see(repository: &Repository, journal: &Journal, found: &Found) -> Result<()> {
    let Found { model, version, config } = found;
    let dir = repository.version_dir(model, version)?;
    if journal.ledger().manifest(model, version)?.is_some() {
        return Ok(());
    }
    let spec = Spec::read(&dir, model, version, config)?;
    let index = Index::open(&dir, &spec.all_weight_files())?;
    let manifest = Manifest::compute(&dir, &index)?;
    let value = serde_json::to_value(&manifest).map_err(Error::internal)?;
    journal.ledger().record_manifest(model, version, &value)?;
    let body = serde_json::json!({ "version": version, "digest": manifest.digest });
    journal.append_blocking(&event(model, None, "manifest", body))
}
