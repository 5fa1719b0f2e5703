//! Which generation serves a model, and the one decision by which a request gets it.
//!
//! A `Slot` is a model's place in the process. It holds the `Route`: an immutable value behind one atomic
//! pointer. `admit` loads it once, and everything about that request follows from what it loaded; `swap` stores
//! the next one, and is the rollout controller's alone. This room must not know HTTP, files or rollouts.

mod lasting;
mod registry;
mod route;
mod serve;
mod shadow;
mod split;
mod tally;
mod write;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

pub use registry::{Registry, Target};
pub use route::Route;
pub use serve::{Answer, Ask, heavy};
pub use shadow::{Mirrored, Shadow};
pub use split::{Asker, Share, Split};
pub use tally::{Arm, Heard, Tally, Told};
pub use write::{Answers, EndReason, Ended, Event, Most, WriteAsk};

use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::value::Task;

#[derive(Debug)]
pub struct Slot {
    name: String,
    /// Known once a `model.toml` that can be read was seen.
    task: OnceLock<Task>,
    route: ArcSwapOption<Route>,
    /// Only read when there is no route.
    absence: ArcSwap<Absence>,
    /// Version folders that are on disk, for resolving references.
    versions: ArcSwap<Vec<String>>,
}

/// Why there is no route.
#[derive(Debug)]
struct Absence {
    reason: String,
    /// No version was ever here, so that none is missing.
    vacant: bool,
}

/// A request's hold on the generation that will answer it.
#[derive(Debug)]
pub struct Admission {
    route: Arc<Route>,
    choice: Choice,
    /// What the answer will be remembered by, where somebody counts.
    name: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// What the route says.
    Live,
    /// The route shares requests, and this one is of the other's share.
    Other,
    /// The request named the version itself.
    Named(Resident),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resident {
    Live,
    Previous,
    Standby,
}

impl Slot {
    pub fn new(name: impl Into<String>) -> Self {
        Slot {
            name: name.into(),
            task: OnceLock::new(),
            route: ArcSwapOption::empty(),
            absence: ArcSwap::from_pointee(Absence { reason: "it has not been loaded yet".into(), vacant: false }),
            versions: ArcSwap::from_pointee(Vec::new()),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the model answers; `None` while nothing on disk has said it.
    pub fn task(&self) -> Option<Task> {
        self.task.get().copied()
    }

    /// A model keeps the task that it was first seen with.
    pub(crate) fn learn_task(&self, task: Task) {
        self.task.get_or_init(|| task);
    }

    /// The one decision (promise 2): a single atomic load. Where requests are shared between two generations, `asker` says by
    /// what it stands to whom this one goes; without, it is the live one.
    ///
    /// # Errors
    /// `NotServing` when nothing is live; `Conflict` when the named version is not resident.
    #[inline]
    pub fn admit(&self, version: Option<&str>, asker: Option<&dyn Asker>) -> Result<Admission> {
        match self.route.load_full() {
            Some(route) => match version {
                None => Ok(Admission::of(route, asker)),
                Some(version) => self.admit_named(route, version),
            },
            None => Err(self.not_serving()),
        }
    }

    #[cold]
    fn admit_named(&self, route: Arc<Route>, version: &str) -> Result<Admission> {
        match route.find(version) {
            Some(resident) => Ok(Admission { route, choice: Choice::Named(resident), name: None }),
            None => Err(Error::Conflict {
                message: format!("version '{version}' of '{}' is not resident; stage or promote it first", self.name),
                details: serde_json::json!({ "resident": route.versions() }),
            }),
        }
    }

    #[cold]
    fn not_serving(&self) -> Error {
        Error::NotServing {
            model: self.name.clone(),
            reason: self.absence.load().reason.clone(),
            retry_after: Duration::from_secs(5),
        }
    }

    /// The route as it is now, for reports.
    pub fn route(&self) -> Option<Arc<Route>> {
        self.route.load_full()
    }

    /// Why nothing is served, when nothing is.
    pub fn reason(&self) -> Option<String> {
        self.route.load().is_none().then(|| self.absence.load().reason.clone())
    }

    /// The switch: one pointer store. For the rollout controller only.
    ///
    /// When this returns, the old route is held by nobody but requests that were admitted on it
    /// (arc-swap settles all pending loads before it returns), so dropping it lets its generations drain.
    pub fn swap(&self, route: Arc<Route>) -> Option<Arc<Route>> {
        self.route.swap(Some(route))
    }

    /// Stops serving, with the reason that clients will read.
    pub(crate) fn clear(&self, reason: impl Into<String>) -> Option<Arc<Route>> {
        self.absence.store(Arc::new(Absence { reason: reason.into(), vacant: false }));
        self.route.swap(None)
    }

    /// There is nothing to serve, and nothing is missing.
    pub(crate) fn vacate(&self) {
        self.absence.store(Arc::new(Absence { reason: "no version of it is here yet".into(), vacant: true }));
    }

    /// Whether it serves, or has nothing that it should serve.
    pub fn is_ready(&self) -> bool {
        self.route.load().is_some() || self.is_vacant()
    }

    /// Whether it has served nothing yet because there was nothing to serve.
    pub(crate) fn is_vacant(&self) -> bool {
        self.route.load().is_none() && self.absence.load().vacant
    }

    /// The version that serves, and whether its folder is still there: if not, the next start will not find it.
    pub fn live_on_disk(&self) -> Option<(String, bool)> {
        let (route, versions) = (self.route()?, self.versions());
        let live = route.live.version();
        Some((live.to_owned(), versions.iter().any(|version| version == live)))
    }

    pub fn versions(&self) -> Arc<Vec<String>> {
        self.versions.load_full()
    }

    pub(crate) fn set_versions(&self, versions: Vec<String>) {
        self.versions.store(Arc::new(versions));
    }
}

impl Admission {
    #[inline]
    fn of(route: Arc<Route>, asker: Option<&dyn Asker>) -> Admission {
        let (mut choice, mut name) = (Choice::Live, None);
        if let (Some(split), Some(asker)) = (&route.split, asker) {
            if split.takes(asker) {
                choice = Choice::Other;
            }
            if split.tally.is_some() {
                name = asker.id().map(Tally::name);
            }
        }
        Admission { route, choice, name }
    }

    pub fn generation(&self) -> &Arc<Generation> {
        match self.choice {
            Choice::Live | Choice::Named(Resident::Live) => &self.route.live,
            Choice::Other => self.route.split.as_ref().map_or(&self.route.live, |split| &split.to),
            // `find` only names what the route has.
            Choice::Named(Resident::Previous) => self.route.previous.as_ref().unwrap_or(&self.route.live),
            Choice::Named(Resident::Standby) => self.route.standby.as_ref().unwrap_or(&self.route.live),
        }
    }

    /// Where a request goes that this generation fails (promise 7).
    fn failover(&self) -> Option<&Arc<Generation>> {
        match self.choice {
            Choice::Live if self.route.failover => self.route.previous.as_ref(),
            Choice::Other if self.route.split.as_ref().is_some_and(|split| split.failover) => Some(&self.route.live),
            _ => None,
        }
    }

    fn is_named(&self) -> bool {
        matches!(self.choice, Choice::Named(_))
    }

    /// Who counts what becomes of it, and for which arm.
    fn tally(&self) -> Option<(&Arc<Tally>, Arm)> {
        let arm = match self.choice {
            Choice::Live => Arm::Live,
            Choice::Other => Arm::Other,
            Choice::Named(_) => return None,
        };
        Some((self.route.split.as_ref()?.tally.as_ref()?, arm))
    }

    fn counting(&self) -> Counting<'_> {
        let tally = self.tally().map(|(tally, arm)| (tally.as_ref(), arm));
        Counting { generation: self.generation(), is_named: self.is_named(), tally, name: self.name }
    }

    /// Where the answer is to be handed, if it is one of the sample.
    fn shadow(&self) -> Option<&Arc<Shadow>> {
        self.route.shadow.as_ref().filter(|shadow| self.choice == Choice::Live && shadow.takes())
    }
}

/// Where what became of a request is counted.
struct Counting<'a> {
    generation: &'a Generation,
    is_named: bool,
    tally: Option<(&'a Tally, Arm)>,
    name: Option<u64>,
}

impl Counting<'_> {
    fn answered(self, took: Duration) {
        match self.is_named {
            true => self.generation.stats.answered_by_name(),
            false => self.generation.stats.answered(took),
        }
        if let Some((tally, arm)) = self.tally {
            tally.answered(arm, self.name, took);
        }
    }

    /// A fault of the generation's own.
    fn blame(self, nonfinite: bool) {
        self.generation.stats.blame(nonfinite);
        if let Some((tally, arm)) = self.tally {
            tally.failed(arm, self.name);
        }
    }
}
