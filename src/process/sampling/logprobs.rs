//! Log-probabilities of a row as it came.
//!
//! As OpenAI tells them: of the model's own distribution, before anything that a request asks for.

use crate::ops::logits::exp_sum;

/// What is to be remembered of a row before it is changed.
#[derive(Debug)]
pub(super) struct Told {
    /// The logarithm of the sum of `e^logit`.
    total: f32,
    top: Vec<(u32, f32)>,
    /// Logits that will change.
    before: Vec<(u32, f32)>,
}

impl Told {
    pub(super) fn of(logits: &[f32], peak: f32, top: usize, changed: impl Iterator<Item = u32>) -> Told {
        let total = peak + exp_sum(logits, peak, 1.0).ln();
        let before = changed.filter_map(|token| logits.get(token as usize).map(|logit| (token, *logit))).collect();
        let top = likeliest(logits, top).into_iter().map(|(token, logit)| (token, logit - total)).collect();
        Told { total, top, before }
    }

    /// Of a token, whose row may have been changed.
    pub(super) fn logprob(&self, token: u32, logits: &[f32]) -> f32 {
        let before = self.before.iter().find(|(changed, _)| *changed == token).map(|(_, logit)| *logit);
        before.or_else(|| logits.get(token as usize).copied()).unwrap_or(f32::NEG_INFINITY) - self.total
    }

    pub(super) fn into_top(self) -> Vec<(u32, f32)> {
        self.top
    }
}

/// The largest logits, of equals those with the lower ids, the largest first; none of negative infinity.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > least && count > 0 {
            let place = top.partition_point(|(_, other)| *other >= logit);
            top.insert(place, (id as u32, logit));
            top.truncate(count);
            if top.len() == count {
                least = top[count - 1].1;
            }
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_likeliest_are_what_sorting_finds(
            logits in proptest::collection::vec(prop_oneof![(-5i8..5).prop_map(f32::from), Just(f32::NEG_INFINITY)], 0..60),
            count in 0usize..21,
        ) {
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(likeliest(&logits, count), sorted);
        }
    }
}
