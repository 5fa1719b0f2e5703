//! What the live version did before a candidate shared the engine with it, and what that is good for afterwards. It must not know
//! who shares, nor why.

use std::time::{Duration, Instant};

use crate::generation::{Generation, GenerationId, Observed};

/// How far back the latencies of `Stats::recently` reach, at most.
const RECENT: Duration = Duration::from_secs(120);

/// With fewer answers it says too little of latencies to be preferred.
const ENOUGH: u64 = 100;

/// For so long what the live version did alone says how it would do now.
const FRESH: Duration = Duration::from_secs(900);

/// What the live version did when it had the engine to itself, as of the last share.
pub(super) struct Calm {
    live: GenerationId,
    seen: Observed,
    since: Instant,
    /// When the candidate's last share ended; none yet while it has one.
    ended: Option<Instant>,
}

/// By what the latencies of a version that took over are judged.
pub(super) struct Baseline {
    pub(super) before: Observed,
    /// By this as well, with a wider limit.
    pub(super) earlier: Option<Observed>,
}

impl Calm {
    pub(super) fn of(live: &Generation) -> Calm {
        Calm { live: live.id(), seen: live.stats.recently(), since: Instant::now(), ended: None }
    }

    /// What it did then.
    pub(super) fn seen(&self) -> &Observed {
        &self.seen
    }

    /// The candidate has a share again.
    pub(super) fn go_on(&mut self) {
        self.ended = None;
    }

    /// What a window holds `previous` up as, which the candidate may have slowed: both had one engine.
    pub(super) fn before(&self, previous: &Generation) -> Option<Baseline> {
        if !self.holds_for(previous) || self.seen.timed() < ENOUGH {
            return None;
        }
        Some(match self.since.elapsed() < FRESH {
            true => Baseline { before: self.seen.clone(), earlier: None },
            // Traffic may have changed since: what it did last, beside the candidate, and that.
            false => Baseline { before: previous.stats.recently(), earlier: Some(self.seen.clone()) },
        })
    }

    /// The candidate has no share any more.
    pub(super) fn end(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
    }

    /// Whether what is seen of the last minutes is still that of a share, so that what was seen before it says more.
    pub(super) fn holds_for(&self, live: &Generation) -> bool {
        self.live == live.id() && self.ended.is_none_or(|ended| ended.elapsed() < RECENT)
    }
}
