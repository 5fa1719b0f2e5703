//! Holding a load back while clients notice it (promise 5): looks at the answers of every live generation, ten times a second.
//!
//! The decision is `schedule::LoadRate`'s. Must not know what is loaded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::generation::{Mark, Stats};
use crate::repository::LoadThrottle;
use crate::schedule::{LoadRate, Looked};
use crate::weights::Progress;

const LOOK: Duration = Duration::from_millis(100);
/// Answers that a p99 takes to mean anything.
const ENOUGH: u64 = 100;
/// Slower than before is what takes longer than so much of the p99 before, and so much longer at least: a clock has company.
const RATIO: f64 = 1.1;
const LEAST: Duration = Duration::from_micros(20);

/// A generation whose clients are not to notice. (The generation itself is not held: it may be retired meanwhile.)
type Watched = (Arc<Stats>, Mark);

/// Turns the load's valve until it is dropped, for the clients of `live`; `eased` says how often it gave way.
pub(super) async fn ease(
    live: Vec<Arc<Stats>>,
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
    let mut watched: Vec<Watched> = live.iter().filter_map(watch).collect();
    let mut rate = LoadRate::begin(!watched.is_empty());
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
        for (stats, mark) in &mut watched {
            let passed = stats.since(mark);
            seen.answered += passed.answered;
            seen.slow += passed.slow;
        }
        rate.look(seen);
        throttle.set(rate.rate());
        *eased = rate.eased();
    }
}

/// Where there was traffic enough to say what is usual.
fn watch(stats: &Arc<Stats>) -> Option<Watched> {
    let before = stats.snapshot();
    let p99 = before.p99.filter(|_| before.samples >= ENOUGH)?;
    let limit = p99.mul_f64(RATIO).max(p99 + LEAST);
    Some((Arc::clone(stats), stats.mark(limit)))
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
            never = ease(vec![Arc::clone(&stats)], LoadThrottle::Auto, &progress, &mut eased) => match never {},
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
            let turned = ease(Vec::new(), setting, &progress, &mut eased);
            assert!(tokio::time::timeout(LOOK * 2, turned).await.is_err());
            assert_eq!(progress.throttle().rate(), rate);
        }
    }
}
