//! Every slot of the process, and what a reference means.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Arm, Heard, Slot};
use crate::error::{Error, Result};

/// All slots by name. Reading never waits; adding is rare.
#[derive(Debug, Default)]
pub struct Registry {
    slots: ArcSwap<BTreeMap<String, Arc<Slot>>>,
}

/// What a reference named: a model, and the version when it named one.
#[derive(Debug, Clone)]
pub struct Target {
    pub slot: Arc<Slot>,
    pub version: Option<String>,
}

impl Registry {
    pub fn slots(&self) -> Arc<BTreeMap<String, Arc<Slot>>> {
        self.slots.load_full()
    }

    pub fn get(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.load().get(name).cloned()
    }

    pub(crate) fn add(&self, slot: Arc<Slot>) {
        self.slots.rcu(|slots| {
            let mut slots = BTreeMap::clone(slots);
            slots.insert(slot.name().to_owned(), Arc::clone(&slot));
            slots
        });
    }

    pub(crate) fn remove(&self, name: &str) {
        self.slots.rcu(|slots| {
            let mut slots = BTreeMap::clone(slots);
            slots.remove(name);
            slots
        });
    }

    /// Takes what a client says of an answer: to whichever model's experiment gave it.
    pub fn feedback(&self, id: &str, score: f64) -> Option<(String, Arm)> {
        self.slots.load().values().find_map(|slot| {
            let route = slot.route()?;
            match route.split.as_ref()?.tally.as_ref()?.feedback(id, score) {
                Heard::First(arm) | Heard::Again(arm) => Some((slot.name().to_owned(), arm)),
                Heard::Unknown => None,
            }
        })
    }

    /// Every version of every model, as `model@version`.
    pub fn versions(&self) -> Vec<String> {
        self.slots.load().values().flat_map(|slot| full_names(slot)).collect()
    }

    /// `model@version`, a model, or a version alone where only one model has it.
    ///
    /// # Errors
    /// `Unknown`, or `Ambiguous` with the candidates.
    pub fn resolve(&self, reference: &str) -> Result<Target> {
        let slots = self.slots.load();
        if let Some((model, version)) = reference.split_once('@') {
            let slot = slots.get(model).ok_or_else(|| unknown(reference, &slots))?;
            // Without its folder nobody can say which versions it had; that it does not serve is the answer then.
            let gone = slot.versions().is_empty() && !slot.is_ready();
            if !gone && !slot.versions().iter().any(|known| known == version) && !is_resident(slot, version) {
                return Err(match slot.versions().is_empty() {
                    true => Error::NoVersions { model: model.into() },
                    false => Error::Unknown { reference: reference.into(), known: full_names(slot) },
                });
            }
            return Ok(Target { slot: Arc::clone(slot), version: Some(version.into()) });
        }
        let model = slots.get(reference);
        let with: Vec<&Arc<Slot>> =
            slots.values().filter(|slot| slot.versions().iter().any(|known| known == reference)).collect();
        match (model, with.as_slice()) {
            (Some(slot), []) => Ok(Target { slot: Arc::clone(slot), version: None }),
            (None, [slot]) => Ok(Target { slot: Arc::clone(slot), version: Some(reference.into()) }),
            (None, []) => Err(unknown(reference, &slots)),
            (model, with) => {
                let versions = with.iter().map(|slot| format!("{}@{reference}", slot.name()));
                let candidates = model.map(|slot| slot.name().to_owned()).into_iter().chain(versions).collect();
                Err(Error::Ambiguous { reference: reference.into(), candidates })
            }
        }
    }
}

fn is_resident(slot: &Slot, version: &str) -> bool {
    slot.route().is_some_and(|route| route.versions().contains(&version))
}

fn full_names(slot: &Slot) -> Vec<String> {
    slot.versions().iter().map(|version| format!("{}@{version}", slot.name())).collect()
}

fn unknown(reference: &str, slots: &BTreeMap<String, Arc<Slot>>) -> Error {
    Error::Unknown { reference: reference.into(), known: slots.keys().cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(models: &[(&str, &[&str])]) -> Registry {
        let registry = Registry::default();
        for (name, versions) in models {
            let slot = Slot::new(*name);
            slot.set_versions(versions.iter().map(|v| (*v).to_owned()).collect());
            registry.add(Arc::new(slot));
        }
        registry
    }

    fn meaning(registry: &Registry, reference: &str) -> Result<(String, Option<String>), Error> {
        registry.resolve(reference).map(|target| (target.slot.name().to_owned(), target.version))
    }

    #[test]
    fn a_reference_is_a_model_a_full_name_or_a_version_that_only_one_model_has() {
        let registry = registry(&[("digits", &["v1", "v2"]), ("minilm", &["f32", "v1"])]);
        assert_eq!(meaning(&registry, "digits").unwrap(), ("digits".into(), None));
        assert_eq!(meaning(&registry, "v2").unwrap(), ("digits".into(), Some("v2".into())));
        assert_eq!(meaning(&registry, "minilm@v1").unwrap(), ("minilm".into(), Some("v1".into())));
        let Err(Error::Ambiguous { candidates, .. }) = meaning(&registry, "v1") else { panic!("v1 is ambiguous") };
        assert_eq!(candidates, ["digits@v1", "minilm@v1"]);
        let Err(Error::Unknown { known, .. }) = meaning(&registry, "nope") else { panic!("unknown") };
        assert_eq!(known, ["digits", "minilm"]);
        let Err(Error::Unknown { known, .. }) = meaning(&registry, "digits@v9") else { panic!("unknown version") };
        assert_eq!(known, ["digits@v1", "digits@v2"]);
    }

    #[test]
    fn a_name_that_is_both_a_model_and_a_version_is_refused() {
        let registry = registry(&[("v2", &["a"]), ("digits", &["v2"])]);
        let Err(Error::Ambiguous { candidates, .. }) = meaning(&registry, "v2") else { panic!("v2 is ambiguous") };
        assert_eq!(candidates, ["v2", "digits@v2"]);
    }

    #[test]
    fn a_slot_without_a_route_says_why() {
        let registry = registry(&[("digits", &["v1"])]);
        let slot = registry.get("digits").unwrap();
        slot.clear("its version folder is gone");
        let Err(Error::NotServing { reason, .. }) = slot.admit(None, None) else { panic!("nothing is live") };
        assert_eq!(reason, "its version folder is gone");
    }
}
