//! Who serves a model, at one moment. Immutable: a change is a new route.

use std::sync::Arc;

use super::{Resident, Shadow, Split};
use crate::generation::Generation;

#[derive(Debug, Clone)]
pub struct Route {
    /// Answers every request that does not name a version.
    pub live: Arc<Generation>,
    /// What was live before, while the observation window lasts.
    pub previous: Option<Arc<Generation>>,
    /// A candidate that has passed its gate and waits to be promoted. It is reached only by name.
    pub standby: Option<Arc<Generation>>,
    /// Whether a request that `live` fails is run again on `previous`. Off when the contract changed.
    pub failover: bool,
    /// Who answers a share of the requests that name no version.
    pub split: Option<Split>,
    /// What `live` answered is run again elsewhere, a sample of it.
    pub shadow: Option<Arc<Shadow>>,
}

impl Route {
    pub fn new(live: Arc<Generation>) -> Self {
        Route { live, previous: None, standby: None, failover: false, split: None, shadow: None }
    }

    pub(super) fn find(&self, version: &str) -> Option<Resident> {
        let is = |generation: &Option<Arc<Generation>>| generation.as_ref().is_some_and(|g| g.version() == version);
        if self.live.version() == version {
            Some(Resident::Live)
        } else if is(&self.previous) {
            Some(Resident::Previous)
        } else if is(&self.standby) {
            Some(Resident::Standby)
        } else {
            None
        }
    }

    /// Versions that can be asked for by name.
    pub fn versions(&self) -> Vec<&str> {
        let others = self.previous.iter().chain(self.standby.iter());
        std::iter::once(&self.live).chain(others).map(|generation| generation.version()).collect()
    }
}
