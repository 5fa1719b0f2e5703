//! What was told already, so that it is not told again and again.
//!
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::alert::Alert;

/// Entries that are kept before those that are over are looked for.
const MANY: usize = 1024;

/// When what was last told: of a model, a rollout, and what it was.
#[derive(Debug, Default)]
pub(super) struct Seen {
    told: HashMap<(String, Option<String>, String), Instant>,
}

impl Seen {
    /// Whether it is to be told, which is then noted.
    pub(super) fn is_news(&mut self, alert: &Alert, now: Instant, repeat: Duration) -> bool {
        if self.told.len() >= MANY {
            self.told.retain(|_, at| now.duration_since(*at) < repeat);
        }
        let key = (alert.model.clone(), alert.rollout.clone(), alert.what.clone());
        let is_news = self.told.get(&key).is_none_or(|at| now.duration_since(*at) >= repeat);
        // Where nothing is over it still must not grow: the oldest are told once more at worst.
        if is_news && (self.told.len() < 2 * MANY || self.told.contains_key(&key)) {
            self.told.insert(key, now);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(what: &str, rollout: usize) -> Alert {
        Alert { what: what.to_owned(), rollout: Some(format!("r{rollout}")), ..Alert::test(0) }
    }

    #[test]
    fn the_same_of_the_same_rollout_is_told_once_in_a_while() {
        let (mut seen, now, hour) = (Seen::default(), Instant::now(), Duration::from_secs(3600));
        assert!(seen.is_news(&alert("breach", 1), now, hour));
        assert!(!seen.is_news(&alert("breach", 1), now + hour / 2, hour));
        assert!(seen.is_news(&alert("rolled_back", 1), now, hour));
        assert!(seen.is_news(&alert("breach", 2), now, hour));
        assert!(seen.is_news(&alert("breach", 1), now + hour, hour), "an hour later it is news again");
        assert!(seen.is_news(&alert("x", 1), now, Duration::ZERO) && seen.is_news(&alert("x", 1), now, Duration::ZERO));
    }

    #[test]
    fn what_is_remembered_stays_small() {
        let (mut seen, now, hour) = (Seen::default(), Instant::now(), Duration::from_secs(3600));
        for rollout in 0..5 * MANY {
            assert!(seen.is_news(&alert("breach", rollout), now, hour));
        }
        assert!(seen.told.len() <= 2 * MANY, "{}", seen.told.len());
        assert!(seen.is_news(&alert("breach", 9 * MANY), now + hour, hour));
        assert_eq!(seen.told.len(), 1, "what is over is forgotten");
    }
}
