//! What a server can do: the highest rate at which requests that come whatever the server does are still answered
//! without long queues.
//!
//! As the server scenario of MLPerf Inference has it (Reddi et al., "MLPerf Inference Benchmark", 2020, section IV): a
//! bound on a high quantile of latency, and the most requests a second that keep it. A closed loop's throughput is only
//! where the search begins: many clients that wait for each other let a batching server work in its most economical way,
//! which an open loop at the same rate does not.

use std::sync::Arc;
use std::time::Duration;

use super::super::output::{Failure, note};
use super::load::Pace;
use super::serve::{Extent, Level, measure};
use super::target::Target;

/// The bound: this many times what the middle request of a single client takes.
const BOUND: f64 = 10.0;
/// Halvings of the range; the last is a thirtieth of what the closed loop reached.
const STEPS: usize = 5;
const STEP: Duration = Duration::from_secs(2);
const WARMUP: Duration = Duration::from_millis(500);

/// Requests a second. `clients` drive the closed loop, at most `connections` are used in the open one.
pub(super) async fn of(target: &Arc<Target>, clients: usize, connections: usize) -> Result<f64, Failure> {
    note(&format!("measuring capacity, from what {clients} clients reach"));
    let extent = Extent { warmup: WARMUP, duration: STEP, requests: None };
    let one = measure(Arc::clone(target), Pace::Closed { clients: 1 }, extent).await?;
    let most = measure(Arc::clone(target), Pace::Closed { clients }, extent).await?;
    let Some(alone) = one.summary.p50_ms.filter(|_| most.throughput > 0.0) else {
        return Err(Failure::Failed("the server answered no request successfully; nothing to measure".to_owned()));
    };
    let mut search = Search { low: 0.0, high: most.throughput };
    for _ in 0..STEPS {
        let rate = search.next();
        let level = measure(Arc::clone(target), Pace::Open { rate, connections }, extent).await?;
        search.tried(rate, keeps_up(&level, alone));
    }
    match search.low {
        // Not even a small part of what a closed loop does: the bound says nothing here.
        0.0 => Ok(most.throughput),
        rate => Ok(rate),
    }
}

fn keeps_up(level: &Level, alone_ms: f64) -> bool {
    level.summary.failed() == 0 && level.summary.p99_ms.is_some_and(|p99| p99 <= BOUND * alone_ms)
}

/// A rate that is kept, and one that is not (or is the most there can be).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Search {
    low: f64,
    high: f64,
}

impl Search {
    /// The middle, or near the top at first: most servers keep most of what they reach.
    fn next(self) -> f64 {
        if self.low == 0.0 { 0.75 * self.high } else { (self.low + self.high) / 2.0 }
    }

    fn tried(&mut self, rate: f64, kept: bool) {
        if kept { self.low = rate } else { self.high = rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_comes_near_the_highest_rate_that_is_kept() {
        for limit in [310.0, 500.0, 760.0, 990.0] {
            let mut search = Search { low: 0.0, high: 1000.0 };
            for _ in 0..STEPS {
                let rate = search.next();
                search.tried(rate, rate <= limit);
            }
            assert!(search.low <= limit && search.low > limit - 80.0, "{limit}: {search:?}");
        }
    }
}
