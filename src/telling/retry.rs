//! How long to wait before something is sent again.
//!
//! Pure: chance is an argument. Exponential backoff with full jitter, so that receivers that come back are not met by everybody
//! at once (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// What a receiver may ask for; longer is taken for this.
const MOST_ASKED: Duration = Duration::from_secs(300);

/// The pause after the `attempt`th attempt, from 1. `chance` is from 0 to 1. A receiver that said how long (`Retry-After`) is given
/// that and no less.
pub(crate) fn pause(attempt: u32, chance: f64, asked: Option<Duration>) -> Duration {
    let doubled = FIRST.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(LONGEST);
    // A tenth at least, so that chance does not make it none.
    let own = doubled.mul_f64(chance.clamp(0.1, 1.0));
    own.max(asked.unwrap_or_default().min(MOST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_a_receiver_may_ask_for_more() {
        let at = |attempt| pause(attempt, 1.0, None);
        assert_eq!([at(1), at(2), at(3)], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!((at(8), at(40), at(u32::MAX)), (LONGEST, LONGEST, LONGEST));
        assert_eq!(pause(1, 1.0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(pause(1, 1.0, Some(Duration::from_secs(86_400))), MOST_ASKED);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_none_and_never_too_long(attempt: u32, chance in 0f64..=1.0, asked in prop::option::of(0u64..1_000_000)) {
            let pause = pause(attempt, chance, asked.map(Duration::from_secs));
            prop_assert!(pause >= FIRST / 10 && pause <= MOST_ASKED);
        }
    }
}
