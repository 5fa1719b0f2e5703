//! Everything at one moment, told each second and after each event; and the last ten minutes of each model, sampled
//! once a second.
//!
//! Sampling costs live traffic a copy of one histogram a generation and second. An overview is put together only while
//! somebody listens, once for all of them. It must not know HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::super::journal::now_ms;
use super::super::record::View;
use super::Supervisor;
use super::reports::{MemoryReport, ModelReport, report};
use crate::generation::{Generation, Seen};

const BEAT: Duration = Duration::from_secs(1);
/// Samples that are older are let go of, and so is what is known of a generation that has not been seen for so long.
const KEPT_MS: i64 = 600_000;
/// Events that come together are told together.
const TOGETHER: Duration = Duration::from_millis(30);
/// Throughput is the mean over so many samples.
const SMOOTH: i64 = 5;
/// An engine that is busy for longer is not waited for.
const PATIENCE: Duration = Duration::from_millis(400);

pub(super) struct Pulse {
    rings: Mutex<BTreeMap<String, Ring>>,
    /// The newest overview, as JSON.
    told: watch::Sender<Arc<str>>,
}

#[derive(Default)]
struct Ring {
    samples: VecDeque<Sample>,
    /// By generation.
    counted: BTreeMap<u64, Counted>,
}

#[derive(Default)]
struct Counted {
    seen: Seen,
    blamed: u64,
    at_ms: i64,
}

/// One second of one generation that clients may get answers of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// When the second ended: Unix time in milliseconds.
    pub at_ms: i64,
    pub role: &'static str,
    pub version: String,
    pub generation: u64,
    /// Answered or timed out.
    pub requests: u64,
    pub blamed: u64,
    /// `None` without requests.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// All models, and the memory that they share.
#[derive(Debug, Serialize)]
pub struct Overview {
    pub at_ms: i64,
    pub ready: bool,
    pub models: Vec<ModelNow>,
    /// None while the engine is too busy to tell.
    pub memory: Option<MemoryReport>,
}

#[derive(Debug, Serialize)]
pub struct ModelNow {
    #[serde(flatten)]
    pub report: ModelReport,
    pub generations: Vec<GenerationNow>,
    /// The one that goes on, or the last of this process.
    pub rollout: Option<View>,
}

/// A generation that a route holds, with its counters.
#[derive(Debug, Serialize)]
pub struct GenerationNow {
    pub role: &'static str,
    pub version: String,
    pub generation: u64,
    pub waiting: usize,
    pub per_second: f64,
    pub answered: u64,
    pub named: u64,
    pub blamed: u64,
    pub nonfinite: u64,
    pub unexplained: u64,
    pub failovers: u64,
    /// Of the last one to two minutes.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { rings: Mutex::default(), told: watch::Sender::new(Arc::from("")) }
    }
}

impl Pulse {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn sample(&mut self, at_ms: i64, role: &'static str, generation: &Generation) {
        let counted = self.counted.entry(generation.id().0).or_default();
        let beat = generation.stats.beat(&mut counted.seen);
        let blamed = generation.stats.snapshot().blamed;
        let sample = Sample {
            at_ms,
            role,
            version: generation.version().to_owned(),
            generation: generation.id().0,
            requests: beat.samples,
            blamed: blamed.saturating_sub(counted.blamed),
            p50_ms: ms(beat.p50),
            p99_ms: ms(beat.p99),
        };
        (counted.blamed, counted.at_ms) = (blamed, at_ms);
        // Only who answers is told of; the live one is, whether it was asked or not.
        if role == "live" || sample.requests > 0 || sample.blamed > 0 {
            self.samples.push_back(sample);
        }
    }

    fn forget(&mut self, now: i64) {
        while self.samples.front().is_some_and(|sample| sample.at_ms < now - KEPT_MS) {
            self.samples.pop_front();
        }
        self.counted.retain(|_, counted| counted.at_ms >= now - KEPT_MS);
    }

    /// Requests in a second, over the last few.
    fn per_second(&self, generation: u64, now: i64) -> f64 {
        let recent = self.samples.iter().rev().take_while(|sample| sample.at_ms > now - SMOOTH * 1000);
        let of = recent.filter(|sample| sample.generation == generation);
        of.map(|sample| sample.requests).sum::<u64>() as f64 / SMOOTH as f64
    }
}

impl Supervisor {
    /// Samples each second, and tells whoever listens.
    pub(super) fn keep_time(supervisor: &Arc<Self>) {
        let mut events = supervisor.journal().subscribe();
        let supervisor = Arc::downgrade(supervisor);
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(BEAT);
            beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let is_beat = tokio::select! {
                    _ = beats.tick() => true,
                    event = events.recv() => match event {
                        Ok(_) | Err(RecvError::Lagged(_)) => false,
                        Err(RecvError::Closed) => return,
                    },
                };
                if !is_beat {
                    tokio::time::sleep(TOGETHER).await;
                    events = events.resubscribe();
                }
                let Some(supervisor) = supervisor.upgrade() else { return };
                if is_beat {
                    supervisor.sample().await;
                }
                if supervisor.pulse.told.receiver_count() > 0 {
                    let overview = serde_json::to_string(&supervisor.overview().await).unwrap_or_default();
                    supervisor.pulse.told.send_replace(Arc::from(overview));
                }
            }
        });
    }

    /// Overviews as JSON, as they come.
    pub fn overviews(&self) -> watch::Receiver<Arc<str>> {
        self.pulse.told.subscribe()
    }

    /// The last ten minutes of a model, the oldest first.
    pub fn samples(&self, model: &str) -> Vec<Sample> {
        self.pulse.lock().get(model).map(|ring| ring.samples.iter().cloned().collect()).unwrap_or_default()
    }

    async fn sample(&self) {
        let controllers = self.controllers.lock().await;
        let now = now_ms();
        let mut rings = self.pulse.lock();
        rings.retain(|model, _| controllers.contains_key(model));
        for (model, route) in controllers.iter().filter_map(|(model, reins)| Some((model, reins.slot.route()?))) {
            let ring = rings.entry(model.clone()).or_default();
            roles(&route).for_each(|(role, generation)| ring.sample(now, role, generation));
            ring.forget(now);
        }
    }

    /// Everything as it is now, folders as they were last looked at.
    pub async fn overview(&self) -> Overview {
        let memory = match tokio::time::timeout(PATIENCE, self.memory()).await {
            Ok(Ok(memory)) => Some(memory),
            Ok(Err(error)) => {
                tracing::debug!(%error, "memory could not be told of");
                None
            }
            Err(_) => None,
        };
        let controllers = self.controllers.lock().await;
        let now = now_ms();
        let rings = self.pulse.lock();
        let models = controllers.iter().map(|(name, reins)| {
            let route = reins.slot.route();
            let ring = rings.get(name);
            let told = |(role, generation): (_, &Arc<Generation>)| {
                let id = generation.id().0;
                now_of(role, generation, ring.map_or(0.0, |ring| ring.per_second(id, now)))
            };
            ModelNow {
                report: report(reins),
                generations: route.iter().flat_map(|route| roles(route).map(told)).collect(),
                rollout: reins.status.handle.load_full().map(|handle| handle.now().as_ref().clone()),
            }
        });
        Overview { at_ms: now, ready: self.is_ready(), models: models.collect(), memory }
    }
}

fn roles(route: &crate::slot::Route) -> impl Iterator<Item = (&'static str, &Arc<Generation>)> {
    let others = [("previous", &route.previous), ("candidate", &route.standby)];
    let others = others.into_iter().filter_map(|(role, generation)| Some((role, generation.as_ref()?)));
    std::iter::once(("live", &route.live)).chain(others)
}

fn now_of(role: &'static str, generation: &Generation, per_second: f64) -> GenerationNow {
    let seen = generation.stats.snapshot();
    GenerationNow {
        role,
        version: generation.version().to_owned(),
        generation: generation.id().0,
        waiting: generation.lane.waiting(),
        per_second,
        answered: seen.answered,
        named: seen.named,
        blamed: seen.blamed,
        nonfinite: seen.nonfinite,
        unexplained: seen.unexplained,
        failovers: seen.failovers,
        p50_ms: ms(seen.p50),
        p99_ms: ms(seen.p99),
    }
}

fn ms(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64() * 1e3)
}
