//! Reading a version into host memory, off everybody's way: what a rollback, or a rollout that was prepared, then need not read.
//!
//! It is no rollout: nothing is served from there, nothing is judged, and what goes wrong changes nothing for anybody. A load
//! takes from it what it finds, and passes every check all the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Context;
use super::easing::{self, ease};
use super::home::Home;
use super::load::{self, guarded_load};
use super::quiet::{Late, Urgency, quietly, within};
use super::survey::{Inspected, Survey};
use crate::device::HostMemory;
use crate::error::{Error, Result};
use crate::repository::{LoadThrottle, ModelConfig};
use crate::weights::{self, Manifest, Pace, Parked, Progress};

/// What shall be in host memory, and what no more.
pub(super) struct Parking {
    pub(super) model: String,
    /// Let go of first: there is never more than one of a model.
    pub(super) instead_of: Option<Arc<Parked>>,
    pub(super) version: Option<(String, ModelConfig)>,
    pub(super) progress: Arc<Progress>,
    pub(super) pace: Arc<Pace>,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) result: Result<Option<Arc<Parked>>>,
    /// What was there before, where it did not come to letting go of it.
    pub(super) left: Option<Arc<Parked>>,
}

/// Looks at the version, when there is one, frees what was there, and reads it.
///
/// # Errors
/// As for a load; `NoRoom` with the sum where host memory does not hold it; `Conflict` when it was given up.
pub(super) async fn park(ctx: Arc<Context>, mut parking: Parking) -> Outcome {
    let result = replace(&ctx, &mut parking).await;
    Outcome { result, left: parking.instead_of }
}

async fn replace(ctx: &Arc<Context>, parking: &mut Parking) -> Result<Option<Arc<Parked>>> {
    let version = match parking.version.take() {
        Some(version) => Some(look_at(ctx, parking, version).await?),
        None => None,
    };
    if let Some(old) = parking.instead_of.take() {
        let pace = Arc::clone(&parking.pace);
        let let_go = move || {
            old.let_go(&pace);
            Ok(())
        };
        quietly((Urgency::Quiet, ctx.engine.processors()), "unpark", let_go).await?;
    }
    match version {
        Some(version) => fill(ctx, parking, version).await.map(Some),
        None => Ok(None),
    }
}

/// A version that was looked at, and how long it may take to read nothing of it.
struct Version {
    inspected: Inspected,
    manifest: Manifest,
    patience: Duration,
    throttle: LoadThrottle,
}

async fn look_at(ctx: &Arc<Context>, parking: &Parking, (version, config): (String, ModelConfig)) -> Result<Version> {
    let (repository, device) = (Arc::clone(&ctx.repository), (ctx.opened.kind(), ctx.budget.capacity()));
    let (patience, throttle) = (config.rollout.load_timeout, config.rollout.throttle);
    let model = parking.model.clone();
    let inspect = move || {
        let dir = repository.version_dir(&model, &version)?;
        let home = Home::of(device, &repository, &config)?;
        Survey::of(&dir, (&model, &version), &config, home).into_inspected()
    };
    let inspected = quietly((Urgency::Quiet, ctx.engine.processors()), "inspect", inspect).await?;
    let manifest = load::manifest(ctx, &inspected, (Urgency::Quiet, &parking.progress)).await?;
    Ok(Version { inspected, manifest, patience, throttle })
}

async fn fill(ctx: &Arc<Context>, parking: &Parking, version: Version) -> Result<Arc<Parked>> {
    let Version { inspected, manifest, patience, throttle } = version;
    let reference = inspected.spec.reference();
    let (sender, receiver) = oneshot::channel();
    let work = {
        let (ctx, reference) = (Arc::clone(ctx), reference.clone());
        let (progress, pace) = (Arc::clone(&parking.progress), Arc::clone(&parking.pace));
        move || {
            Urgency::Quiet.take(ctx.engine.processors());
            let room = |bytes| ctx.host_room.take(&reference, bytes, HostMemory::read());
            let version = (&inspected.index, &manifest, inspected.footprint.wanted.as_slice());
            let parked = guarded_load(&reference, || weights::park(&ctx.machine, version, room, (&progress, &pace)));
            // The server that stops waits for this answer, and then for nobody who still holds its GPU.
            drop((ctx, inspected, manifest));
            // Nobody listens when it was given up as hanging; then it is let go of here.
            let _ = sender.send(parked.map(Arc::new));
        }
    };
    let parked = async {
        let spawned = std::thread::Builder::new().name("parker".into()).spawn(work);
        spawned.map_err(|e| Error::internal(format!("could not start a thread to park a version: {e}")))?;
        ended(receiver, patience, parking).await.map_err(|reason| Error::unloadable(reference, reason))?
    };
    let live = || easing::live(&ctx.registry);
    let mut eased = 0;
    tokio::select! {
        // The valve is turned before anything is read.
        biased;
        never = ease(live, throttle, &parking.progress, &mut eased) => match never {},
        parked = parked => parked,
    }
}

/// How often a moment may pass in which a thread does nothing that was cancelled: it has the lowest priority of the machine, and
/// only a server that stops waits for it.
const MOMENTS: u32 = 10;

/// Waits for the thread as long as it gets on: reads, or lets go of what it had when it is not to go on.
async fn ended<T>(mut receiver: oneshot::Receiver<T>, patience: Duration, parking: &Parking) -> Result<T, String> {
    let Parking { progress, pace, .. } = parking;
    let (mut seen, mut moments) = ((progress.done(), pace.pieces()), 0);
    loop {
        let late = match within(patience, progress, &mut receiver).await {
            Ok(ended) => return ended.map_err(|_| "the thread that parks ended without an answer".to_owned()),
            Err(late) => late,
        };
        let now = (progress.done(), pace.pieces());
        moments = if now == seen { moments + 1 } else { 0 };
        seen = now;
        match late {
            Late::Out if moments > 0 => {
                // Should it ever go on, it ends before its next piece; its memory is counted until then.
                progress.cancel();
                return Err(format!("parking hung: nothing was read for {} s", patience.as_secs_f64()));
            }
            Late::Cancelled if moments >= MOMENTS => return Err("parking was cancelled and did not end".to_owned()),
            Late::Out | Late::Cancelled => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parking() -> Parking {
        let (progress, pace) = Default::default();
        Parking { model: "m".into(), instead_of: None, version: None, progress, pace }
    }

    #[tokio::test]
    async fn a_thread_is_waited_for_as_long_as_it_gets_on() {
        let (parking, patience) = (parking(), Duration::from_millis(20));
        let (sender, receiver) = oneshot::channel();
        sender.send(7).unwrap();
        assert_eq!(ended(receiver, patience, &parking).await, Ok(7));
        let (sender, receiver) = oneshot::channel::<u8>();
        drop(sender);
        assert!(ended(receiver, patience, &parking).await.unwrap_err().contains("without an answer"));
        let (_sender, receiver) = oneshot::channel::<u8>();
        assert!(ended(receiver, patience, &parking).await.unwrap_err().contains("nothing was read for 0.02 s"));
        assert!(parking.progress.is_cancelled(), "should it go on, it ends");
    }

    #[tokio::test]
    async fn one_that_was_cancelled_is_given_moments_to_let_go() {
        let (parking, patience) = (parking(), Duration::from_millis(10));
        parking.progress.cancel();
        let (sender, receiver) = oneshot::channel();
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            sender.send(7).unwrap();
        });
        assert_eq!(ended(receiver, patience, &parking).await, Ok(7));
        late.await.unwrap();
        let (_sender, receiver) = oneshot::channel::<u8>();
        assert!(ended(receiver, patience, &parking).await.unwrap_err().contains("did not end"));
    }
}
