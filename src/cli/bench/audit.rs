//! Whether every answer came from a version that was live while its request was open. Pure.
//!
//! Promise 3 (DESIGN §1): after `promote` has answered, no request begun later is served by the version
//! before it. All instants are of the client's own clock: a request has begun when its first byte was about to
//! be written, and `promote` has answered when its answer was received whole. Both err on the side of the
//! server by less than a request takes, never against it. Answers that failover gave count too: the server
//! declares them, but a run that is to show a clean switch should have none.

use serde::Serialize;

use super::load::{Sample, Stamp};
use super::report::round;

/// A version that was made live, and when. It may answer from `asked` on, and must from `answered` on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Epoch {
    pub version: String,
    /// Tells apart two loads of the same version, where the server says which one answers.
    pub generation: Option<String>,
    /// When the promote was sent, in nanoseconds of the run.
    pub asked: u64,
    /// When its answer was complete.
    pub answered: u64,
}

impl Epoch {
    fn gave(&self, stamp: &Stamp) -> bool {
        let same_version = stamp.version.as_deref() == Some(self.version.as_str());
        let same_generation = match (&stamp.generation, &self.generation) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        same_version && same_generation
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Audit {
    /// Successful answers that were looked at.
    pub answers: u64,
    /// Begun after a promote had answered, and served by a version from before it.
    pub stale: u64,
    /// The latest of these began so long after the answer.
    pub worst_stale_ms: f64,
    /// Answered by a version before anyone had asked to promote it.
    pub early: u64,
    /// Answered by a version or a generation that was never live.
    pub foreign: u64,
    /// Answered without saying by which version.
    pub unstamped: u64,
}

impl Audit {
    pub(super) fn clean(&self) -> bool {
        self.stale + self.early + self.foreign + self.unstamped == 0
    }

    /// `epochs` in the order of time; the first one was live when the run began.
    pub(super) fn of(samples: &[Sample], stamps: &[Stamp], epochs: &[Epoch]) -> Audit {
        let mut audit = Audit::default();
        for sample in samples.iter().filter(|sample| sample.outcome.ok()) {
            audit.answers += 1;
            match stamps.get(usize::from(sample.stamp)) {
                Some(stamp) if stamp.version.is_some() => audit.judge(sample, stamp, epochs),
                _ => audit.unstamped += 1,
            }
        }
        audit
    }

    fn judge(&mut self, sample: &Sample, stamp: &Stamp, epochs: &[Epoch]) {
        // An epoch is over when the next one's promote has answered.
        let over = |at: usize| epochs.get(at + 1).map_or(u64::MAX, |next| next.answered);
        let later = epochs.get(1..).unwrap_or_default();
        let first = later.partition_point(|next| next.answered < sample.started);
        let open = epochs[first..].iter().take_while(|epoch| epoch.asked <= sample.ended);
        if open.clone().any(|epoch| epoch.gave(stamp)) {
            return;
        }
        if let Some(at) = epochs[..first].iter().rposition(|epoch| epoch.gave(stamp)) {
            self.stale += 1;
            let late = round(sample.started.saturating_sub(over(at)) as f64 / 1e6);
            self.worst_stale_ms = self.worst_stale_ms.max(late);
        } else if epochs[first..].iter().any(|epoch| epoch.gave(stamp)) {
            self.early += 1;
        } else {
            self.foreign += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Outcome;
    use super::*;

    const MS: u64 = 1_000_000;

    fn epochs() -> Vec<Epoch> {
        let epoch = |version: &str, generation: &str, asked: u64, answered: u64| Epoch {
            version: version.into(),
            generation: Some(generation.into()),
            asked: asked * MS,
            answered: answered * MS,
        };
        vec![epoch("v1", "1", 0, 0), epoch("v2", "2", 100, 110), epoch("v1", "3", 200, 210)]
    }

    fn audit(started: u64, ended: u64, version: Option<&str>, generation: Option<&str>) -> Audit {
        let stamps = [Stamp { version: version.map(str::to_owned), generation: generation.map(str::to_owned) }];
        let (started, ended) = (started * MS, ended * MS);
        let sample = Sample { intended: started, started, ended, stamp: 0, outcome: Outcome::Status(200) };
        Audit::of(&[sample], &stamps, &epochs())
    }

    #[test]
    fn an_answer_of_a_version_that_was_live_while_the_request_was_open_is_clean() {
        for (started, ended, version, generation) in [
            (50, 60, "v1", "1"),
            (90, 105, "v1", "1"),
            (90, 105, "v2", "2"),
            // Begun before the promote answered, so the old version may still take it, however long it lasts.
            (109, 190, "v1", "1"),
            (111, 112, "v2", "2"),
            (150, 205, "v1", "3"),
            (211, 212, "v1", "3"),
        ] {
            assert!(audit(started, ended, Some(version), Some(generation)).clean(), "{started} {ended} {version}");
            assert!(
                audit(started, ended, Some(version), None).clean(),
                "{started} {ended} {version} without generation"
            );
        }
    }

    #[test]
    fn a_request_begun_after_the_promote_answered_must_not_see_the_old_version() {
        let found = audit(115, 120, Some("v1"), Some("1"));
        assert_eq!((found.stale, found.worst_stale_ms, found.early), (1, 5.0, 0));
        // The generation tells an old load of the same version from the one that is live.
        assert_eq!(audit(240, 250, Some("v1"), Some("1")).stale, 1);
        assert!(audit(240, 250, Some("v1"), Some("3")).clean());
    }

    #[test]
    fn versions_that_were_not_or_never_live_are_told_apart() {
        assert_eq!(audit(50, 60, Some("v2"), Some("2")).early, 1);
        assert_eq!(audit(50, 60, Some("v9"), None).foreign, 1);
        assert_eq!(audit(115, 116, Some("v2"), Some("77")).foreign, 1);
        assert_eq!(audit(50, 60, None, None).unstamped, 1);
    }
}
