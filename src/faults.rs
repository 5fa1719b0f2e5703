//! Faults on purpose, for rehearsals and tests: a version that errs, panics, hangs, slows down or returns NaN.
//!
//! A leaf. `[[faults]]` in `cutover.toml` lists them, and the server refuses that section unless it was started
//! with `--allow-faults`. They strike at the same places where real faults would, so whatever follows (gate,
//! failover, rollback) is the real thing.

use std::sync::Mutex;
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::repository::duration;

/// One fault, as configured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// `model@version`.
    pub version: String,
    pub kind: Kind,
    #[serde(default = "serving")]
    pub at: At,
    /// The share of forward passes that it strikes; all of them when it is not said.
    #[serde(default = "always")]
    pub rate: f64,
    /// For `delay`, and for it only.
    #[serde(default, deserialize_with = "some_duration")]
    pub delay: Option<Duration>,
}

impl Fault {
    /// Whether it could strike as it is meant to: else the key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let named = self.version.split_once('@').is_some_and(|(model, version)| {
            [model, version].into_iter().all(|part| crate::repository::name::check(part).is_ok())
        });
        if !named {
            return Err(("version", format!("expected model@version, found {:?}", self.version)));
        }
        if !(self.rate > 0.0 && self.rate <= 1.0) {
            return Err(("rate", format!("expected a number above 0 and at most 1, found {}", self.rate)));
        }
        match (self.kind == Kind::Delay, self.delay.is_some()) {
            (true, false) => Err(("delay", "is missing beside kind = \"delay\"".into())),
            (false, true) => Err(("delay", "is for kind = \"delay\" only".into())),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Error,
    Panic,
    NonFinite,
    Delay,
    Hang,
}

/// Where it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// While weights are loaded.
    Load,
    /// In the gate's forward passes on probation.
    Gate,
    /// In clients' forward passes.
    Serving,
    /// In the golden cases that are run again during the window.
    Window,
}

fn serving() -> At {
    At::Serving
}

fn always() -> f64 {
    1.0
}

fn some_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::deserialize(deserializer).map(Some)
}

/// The faults of one version; usually none.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    dice: Mutex<Option<StdRng>>,
}

/// What is left to do after a strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    Nothing,
    /// The rows of this pass are to be made NaN.
    Poison,
}

impl Faults {
    /// Those of `all` that are meant for `version` (`model@version`).
    pub fn of(all: &[Fault], version: &str) -> Self {
        let list: Vec<Fault> = all.iter().filter(|fault| fault.version == version).cloned().collect();
        // Seeded: a rehearsal can be repeated.
        let dice = (!list.is_empty()).then(|| StdRng::seed_from_u64(0x5eed));
        Faults { list, dice: Mutex::new(dice) }
    }

    /// Strikes with whatever is due at this place. Hangs and panics really do.
    #[inline]
    pub fn strike(&self, at: At) -> Result<Strike> {
        if self.list.is_empty() { Ok(Strike::Nothing) } else { self.strike_some(at) }
    }

    #[cold]
    #[allow(clippy::panic, reason = "a panic on purpose, where it is caught like a real one")]
    fn strike_some(&self, at: At) -> Result<Strike> {
        let mut strike = Strike::Nothing;
        for fault in self.list.iter().filter(|fault| fault.at == at) {
            if !self.roll(fault.rate) {
                continue;
            }
            match fault.kind {
                Kind::Error => {
                    let message = "a fault on purpose".to_owned();
                    return Err(Error::ForwardFailed { version: fault.version.clone(), message });
                }
                Kind::Panic => panic!("a fault on purpose"),
                Kind::NonFinite => strike = Strike::Poison,
                Kind::Delay => std::thread::sleep(fault.delay.unwrap_or_default()),
                Kind::Hang => loop {
                    std::thread::park();
                },
            }
        }
        Ok(strike)
    }

    fn roll(&self, rate: f64) -> bool {
        let mut dice = self.dice.lock().unwrap_or_else(|e| e.into_inner());
        dice.as_mut().is_some_and(|dice| dice.random::<f64>() < rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: Kind, at: At, rate: f64) -> Fault {
        Fault { version: "m@v".into(), kind, at, rate, delay: None }
    }

    #[test]
    fn only_the_version_and_place_that_are_meant_are_struck() {
        let all = [fault(Kind::Error, At::Serving, 1.0)];
        assert_eq!(Faults::of(&all, "m@w").strike(At::Serving).unwrap(), Strike::Nothing);
        assert_eq!(Faults::of(&all, "m@v").strike(At::Gate).unwrap(), Strike::Nothing);
        assert!(Faults::of(&all, "m@v").strike(At::Serving).is_err());
    }

    #[test]
    fn a_rate_strikes_about_that_often() {
        let faults = Faults::of(&[fault(Kind::NonFinite, At::Serving, 0.1)], "m@v");
        let struck = (0..10_000).filter(|_| faults.strike(At::Serving).unwrap() == Strike::Poison).count();
        assert!((800..1200).contains(&struck), "{struck}");
    }

    #[test]
    #[should_panic(expected = "on purpose")]
    fn a_panic_is_a_real_one() {
        let _ = Faults::of(&[fault(Kind::Panic, At::Serving, 1.0)], "m@v").strike(At::Serving);
    }
}
