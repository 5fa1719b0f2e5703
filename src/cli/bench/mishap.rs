//! Rollouts of a soak that are meant to change nothing: refused by the gate, aborted on their way, or gone back from.
//!
//! What they held must come back as well as what a switch leaves behind, and clients must not notice them.

use serde_json::json;

use super::super::client::{model_path, segment};
use super::super::output::Failure;
use super::super::rollout::{self, Rollout};
use super::driver::{Cycle, Driver, push_span, spans};
use super::texts::SplitMix64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mishap {
    /// Promote this version, which does not pass the gate.
    Refused(String),
    /// Stage the next version, and abort that once it has come so far.
    Aborted(&'static str),
    /// Promote the next version, and go back within its window.
    RolledBack,
}

/// What happens before which switch: in this share of them something does, each kind in its turn, somewhere in each
/// equal stretch.
pub(super) fn script(switches: u32, share: f64, refused: Option<&str>, random: &mut SplitMix64) -> Vec<Option<Mishap>> {
    let kinds = [Some(Mishap::RolledBack), Some(Mishap::Aborted("loading"))].into_iter();
    let kinds = kinds.chain([refused.map(|version| Mishap::Refused(version.to_owned()))]);
    let kinds = kinds.chain([Some(Mishap::Aborted("validating")), Some(Mishap::Aborted("ready"))]);
    let kinds: Vec<Mishap> = kinds.flatten().collect();
    let mut script = vec![None; switches as usize];
    let count = (f64::from(switches) * share).round() as usize;
    for number in 0..count {
        let at = |stretch: usize| stretch * script.len() / count;
        let (from, to) = (at(number), at(number + 1));
        let place = from + (random.next() % (to - from) as u64) as usize;
        script[place] = Some(kinds[number % kinds.len()].clone());
    }
    script
}

impl Driver {
    /// One rollout that changes nothing in the end, and its record. One that does otherwise is told, and is a failure.
    pub(super) async fn mishap(&mut self, mishap: &Mishap) -> &Cycle {
        let to = match mishap {
            Mishap::Refused(version) => version.clone(),
            Mishap::Aborted(_) | Mishap::RolledBack => self.after(&self.live),
        };
        let mut cycle = self.begin(&to);
        let ended = match mishap {
            Mishap::Refused(_) => self.be_refused(&mut cycle).await,
            Mishap::Aborted(phase) => self.abort(&mut cycle, phase).await,
            Mishap::RolledBack => self.roll_back(&mut cycle).await,
        };
        cycle.settled = self.clock.now();
        let ended = match ended {
            Ok(how) => {
                cycle.mishap = Some(how);
                self.is_as_before(&cycle).await
            }
            Err(failure) => {
                cycle.mishap = Some("failed".to_owned());
                Err(failure)
            }
        };
        self.record(cycle, ended, "a rollout that was to change nothing")
    }

    async fn is_as_before(&self, cycle: &Cycle) -> Result<(), Failure> {
        match self.roles().await?.live {
            Some((version, _)) if version == cycle.from => Ok(()),
            live => {
                let live = live.map_or_else(|| "nothing".to_owned(), |(version, _)| version);
                Err(Failure::Failed(format!("{} should be live as before, and {live} is", cycle.from)))
            }
        }
    }

    async fn be_refused(&self, cycle: &mut Cycle) -> Result<String, Failure> {
        match self.promote(cycle).await {
            Err(Failure::Refused(refusal)) if refusal.kind == "refused" => Ok("refused".to_owned()),
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Failed(format!("the gate let {} through", cycle.to))),
        }
    }

    async fn abort(&self, cycle: &mut Cycle, phase: &str) -> Result<String, Failure> {
        let reference = format!("{}@{}", self.model, cycle.to);
        let (clock, mut marks) = (self.clock, Vec::new());
        let reply = self.api.post_following(&model_path(&reference, "/stage"), &self.order(json!({}))).await?;
        let mut reached = |rollout: &Rollout| {
            marks.push((rollout.phase.clone(), clock.now()));
            rollout.phase == phase
        };
        let staged = Rollout::read(&rollout::follow_until(reply, &mut reached).await?)?;
        let path = format!("/admin/rollouts/{}/abort", segment(&staged.id));
        let ended = self.api.post(&path, &self.order(json!({}))).await?;
        cycle.spans = spans(&marks, cycle.asked, clock.now());
        let ended = Rollout::read(&ended)?;
        if ended.phase != "aborted" {
            return Err(Failure::Failed(ended.headline()));
        }
        // It may have come further before the order did.
        let mut back = ended.phases.iter().rev().map(|at| at.phase.as_str());
        let cut = back.find(|phase| !["reclaiming", "aborted"].contains(phase));
        Ok(format!("aborted while {}", cut.unwrap_or(phase)))
    }

    async fn roll_back(&mut self, cycle: &mut Cycle) -> Result<String, Failure> {
        self.promote(cycle).await?;
        self.went_live(&cycle.to, cycle.asked, cycle.answered).await?;
        tokio::time::sleep(self.plan.hold).await;
        let (clock, asked) = (self.clock, self.clock.now());
        push_span(&mut cycle.spans, "observing", cycle.answered, asked);
        let order = self.order(json!({ "model": self.model, "wait": "settled" }));
        let reply = self.api.post_following("/admin/rollback", &order).await?;
        // The store comes before the first word; then memory is given back.
        let mut answered = None;
        let mut heard = |_: &Rollout| {
            answered.get_or_insert_with(|| clock.now());
        };
        let ended = Rollout::read(&rollout::follow(reply, &mut heard).await?)?;
        let over = clock.now();
        self.went_live(&cycle.from, asked, answered.unwrap_or(over)).await?;
        push_span(&mut cycle.spans, "reclaiming", asked, over);
        match (ended.phase.as_str(), ended.kind.as_deref()) {
            ("rolled_back", Some("instant")) => Ok("gone back from".to_owned()),
            _ => Err(Failure::Failed(ended.headline())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(script: &[Option<Mishap>]) -> [usize; 3] {
        let count = |wanted: fn(&Mishap) -> bool| script.iter().flatten().filter(|mishap| wanted(mishap)).count();
        [
            count(|mishap| matches!(mishap, Mishap::Refused(version) if version == "v3")),
            count(|mishap| matches!(mishap, Mishap::Aborted(_))),
            count(|mishap| matches!(mishap, Mishap::RolledBack)),
        ]
    }

    #[test]
    fn mishaps_come_in_their_proportion_and_anew_the_same_for_the_same_seed() {
        let of = |seed: u64, share, refused| script(1000, share, refused, &mut SplitMix64(seed));
        assert_eq!(kinds(&of(1, 0.1, Some("v3"))), [20, 60, 20]);
        assert_eq!(kinds(&of(1, 0.1, None)), [0, 75, 25]);
        assert_eq!(kinds(&of(1, 1.0, None)), [0, 750, 250]);
        assert_eq!(kinds(&of(1, 0.0, Some("v3"))), [0, 0, 0]);
        assert_eq!(of(7, 0.1, None), of(7, 0.1, None));
        assert_ne!(of(7, 0.1, None), of(8, 0.1, None));
        // One in every ten.
        assert!(of(3, 0.1, None).chunks(10).all(|ten| ten.iter().flatten().count() == 1));
    }

    #[test]
    fn few_switches_have_few_mishaps() {
        assert_eq!(script(4, 0.1, None, &mut SplitMix64(1)), vec![None; 4]);
        assert_eq!(script(5, 0.1, None, &mut SplitMix64(1)).iter().flatten().count(), 1);
    }
}
