//! Many numbers as what means and variances follow from.

/// Sums of scores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    pub count: u64,
    pub sum: f64,
    pub squares: f64,
}

impl Scores {
    pub(crate) fn add(&mut self, score: f64) {
        self.count += 1;
        self.sum += score;
        self.squares += score * score;
    }

    /// One of them is another now.
    pub(crate) fn replace(&mut self, old: f64, new: f64) {
        self.sum += new - old;
        self.squares += new * new - old * old;
    }

    /// `None` where there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_counts_as_what_it_is_now() {
        let mut scores = Scores::default();
        assert_eq!(scores.mean(), None);
        scores.add(0.5);
        scores.add(0.25);
        scores.replace(0.25, 0.75);
        assert_eq!((scores, scores.mean()), (Scores { count: 2, sum: 1.25, squares: 0.8125 }, Some(0.625)));
    }
}
