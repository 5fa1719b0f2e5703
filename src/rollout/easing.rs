//! Holding a load back while clients notice it (promise 5): looks at the answers of every live generation, ten times a second.
//!
//! The decision is `schedule::LoadRate`'s. Must not know what is loaded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::generation::{Mark, Stats};
use crate::repository::LoadThrottle;
use crate::schedule::{LoadRate, Looked};
use crate::slot::Registry;
use crate::weights::Progress;

const LOOK: Duration = Duration::from_millis(100);
/// Answers that a p99 takes to mean anything.
const ENOUGH: u64 = 100;
/// Slower than before is what takes longer than so much of the p99 before, and so much longer at least: a clock has company.
const RATIO: f64 = 1.1;
const LEAST: Duration = Duration::from_micros(20);

/// A generation whose clients are not to notice. (The generation itself is not held: it may be retired meanwhile.)
struct Watched {
    stats: Arc<Stats>,
    mark: Mark,
    /// The mark's limit says what is usual. Else nothing is known of it, and it has answered since the load began, or not.
    known: bool,
    heard: bool,
}

/// Turns the load's valve until it is dropped, for the clients of whatever is `live`; `eased` says how often it gave way.
pub(super) async fn ease(
    live: impl Fn() -> Vec<Arc<Stats>>,
    setting: LoadThrottle,
    progress: &Progress,
    eased: &mut u64,
) -> Infallible {
    let throttle = progress.throttle();
    match setting {
        LoadThrottle::None => {
            throttle.set(None);
            return std::future::pending().await;
        }
        LoadThrottle::Rate(rate) => {
            throttle.set(Some(rate));
            return std::future::pending().await;
        }
        LoadThrottle::Auto => {}
    }
    let mut watched: Vec<Watched> = live().into_iter().map(Watched::of).collect();
    let mut rate = LoadRate::begin(watched.iter().any(|watched| watched.known));
    throttle.set(rate.rate());
    let mut ticks = tokio::time::interval_at((Instant::now() + LOOK).into(), LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut looked, mut done) = (Instant::now(), progress.done());
    loop {
        ticks.tick().await;
        let (now, moved) = (Instant::now(), progress.done());
        let mut seen = Looked {
            moved: moved.saturating_sub(done),
            took: now.duration_since(looked).as_nanos() as u64,
            ..Looked::default()
        };
        (looked, done) = (now, moved);
        follow(&mut watched, live());
        watched.iter_mut().for_each(|watched| watched.look(&mut seen));
        rate.look(seen);
        throttle.set(rate.rate());
        *eased = rate.eased();
    }
}

/// Whatever is live by now, with what is known of those that were before.
pub(super) fn live(registry: &Registry) -> Vec<Arc<Stats>> {
    registry.slots().values().filter_map(|slot| Some(Arc::clone(&slot.route()?.live.stats))).collect()
}

fn follow(watched: &mut Vec<Watched>, live: Vec<Arc<Stats>>) {
    watched.retain(|watched| live.iter().any(|stats| Arc::ptr_eq(stats, &watched.stats)));
    for stats in live {
        if !watched.iter().any(|watched| Arc::ptr_eq(&stats, &watched.stats)) {
            watched.push(Watched::of(stats));
        }
    }
}

impl Watched {
    fn of(stats: Arc<Stats>) -> Watched {
        let limit = usual(&stats);
        let mark = stats.mark(limit.unwrap_or_default());
        Watched { stats, mark, known: limit.is_some(), heard: false }
    }

    fn look(&mut self, seen: &mut Looked) {
        let passed = self.stats.since(&mut self.mark);
        if self.known {
            seen.answered += passed.answered;
            seen.slow += passed.slow;
            return;
        }
        self.heard |= passed.answered > 0;
        seen.unjudged += passed.answered;
        match usual(&self.stats).filter(|_| self.heard) {
            Some(limit) => (self.mark, self.known) = (self.stats.mark(limit), true),
            None => seen.strangers |= self.heard,
        }
    }
}

/// What takes longer is slow; none where there was not traffic enough to say what is usual.
fn usual(stats: &Stats) -> Option<Duration> {
    let before = stats.snapshot();
    let p99 = before.p99.filter(|_| before.samples >= ENOUGH)?;
    Some(p99.mul_f64(RATIO).max(p99 + LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(progress: &Progress, what: impl Fn(Option<u64>) -> bool) {
        let began = Instant::now();
        while !what(progress.throttle().rate()) {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", progress.throttle().rate());
            tokio::time::sleep(LOOK / 10).await;
        }
    }

    #[tokio::test]
    async fn a_load_is_held_back_while_clients_are_slower_than_before_and_let_go_when_they_have_left() {
        let (stats, progress) = (Arc::new(Stats::new()), Progress::new());
        (0..1000).for_each(|_| stats.answered(Duration::from_millis(2)));
        let mut eased = 0;
        let slow = async {
            let begin = progress.throttle().rate();
            until(&progress, |rate| rate > begin).await;
            let fast = progress.throttle().rate();
            (0..50).for_each(|_| stats.answered(Duration::from_millis(3)));
            until(&progress, |rate| rate.is_some() && rate < fast).await;
            // No more answers: nobody is there to notice.
            until(&progress, |rate| rate.is_none()).await;
        };
        // They are answered as ever until the load was held back, and then they leave.
        let clients = async {
            let mut ticks = tokio::time::interval(LOOK / 10);
            while progress.throttle().rate().is_none_or(|rate| rate > 1_000_000_000) {
                stats.answered(Duration::from_millis(2));
                ticks.tick().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = slow => {}
            () = clients => {}
            never = ease(|| vec![Arc::clone(&stats)], LoadThrottle::Auto, &progress, &mut eased) => match never {},
        }
        assert_eq!(eased, 1);
    }

    #[tokio::test]
    async fn a_rate_that_is_set_stays_and_nobody_is_waited_for_without_clients() {
        let progress = Progress::new();
        for (setting, rate) in
            [(LoadThrottle::Rate(5), Some(5)), (LoadThrottle::None, None), (LoadThrottle::Auto, None)]
        {
            let mut eased = 0;
            let turned = ease(Vec::new, setting, &progress, &mut eased);
            assert!(tokio::time::timeout(LOOK * 2, turned).await.is_err());
            assert_eq!(progress.throttle().rate(), rate);
        }
    }

    #[tokio::test]
    async fn clients_who_come_while_it_loads_are_waited_for_as_those_are_who_were_there_before() {
        let (stats, progress) = (Arc::new(Stats::new()), Progress::new());
        let mut eased = 0;
        let clients = async {
            // Too few to say what is usual: it goes on as slowly as it would have begun. (What was answered before the first look
            // began is not heard.)
            assert_eq!(progress.throttle().rate(), None);
            until(&progress, |rate| {
                stats.answered(Duration::from_millis(2));
                rate.is_some()
            })
            .await;
            let slowly = progress.throttle().rate();
            (0..1000).for_each(|_| stats.answered(Duration::from_millis(2)));
            until(&progress, |rate| rate.is_none() || rate > slowly).await;
            let fast = progress.throttle().rate();
            // As long as it takes to be seen: a moment without answers is the end of all care.
            until(&progress, |rate| {
                (0..500).for_each(|_| stats.answered(Duration::from_millis(3)));
                rate.is_some_and(|rate| fast.is_none_or(|fast| rate < fast))
            })
            .await;
        };
        tokio::select! {
            () = clients => {}
            never = ease(|| vec![Arc::clone(&stats)], LoadThrottle::Auto, &progress, &mut eased) => match never {},
        }
        assert!(eased >= 1);
    }

    #[test]
    fn what_becomes_live_is_watched_and_what_was_is_not() {
        let [old, stays, new] = [(); 3].map(|()| Arc::new(Stats::new()));
        let mut watched: Vec<Watched> = [&old, &stays].map(|stats| Watched::of(Arc::clone(stats))).into();
        (0..ENOUGH).for_each(|_| new.answered(Duration::from_millis(2)));
        watched[1].heard = true;
        follow(&mut watched, vec![Arc::clone(&new), Arc::clone(&stays)]);
        let [first, second] = watched.try_into().ok().unwrap();
        assert!(Arc::ptr_eq(&first.stats, &stays) && first.heard && !first.known);
        assert!(Arc::ptr_eq(&second.stats, &new) && second.known);
    }
}
