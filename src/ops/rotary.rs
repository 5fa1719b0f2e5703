//! Rotary position embedding: pairs of a head's values turned by an angle that grows with the position.
//!
//! Source: Su et al., "RoFormer", 2021; `rotate_half` and `LlamaRotaryEmbedding` of transformers, where the pairs are value `i` of
//! the first half and value `i` of the second. Which frequencies there are is the model's business.

use std::sync::Arc;

use super::simd::madd;

/// How fast each pair of a head turns.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Radians a position, `[head_dim / 2]`.
    inverse_frequencies: Arc<[f32]>,
    /// What sines and cosines are multiplied by: 1 but for scalings that sharpen attention.
    factor: f32,
}

impl Rotary {
    pub fn new(inverse_frequencies: Vec<f32>, factor: f32) -> Self {
        Rotary { inverse_frequencies: inverse_frequencies.into(), factor }
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// For rows at these positions. Angles are rounded to f32 as the reference rounds them; their sines are exact.
    pub(super) fn at(&self, positions: impl Iterator<Item = usize>) -> Turns {
        let half = self.inverse_frequencies.len();
        let mut values = Vec::new();
        for position in positions {
            let turn = |frequency: &f32| f64::from(*frequency * position as f32).sin_cos();
            let first = values.len();
            values.resize(first + 2 * half, 0.0);
            let (cosines, sines) = values[first..].split_at_mut(half);
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&*self.inverse_frequencies) {
                let (s, c) = turn(frequency);
                (*cosine, *sine) = (c as f32 * self.factor, s as f32 * self.factor);
            }
        }
        Turns { values, half }
    }
}

/// The cosines and sines of a step's rows, which every layer uses.
#[derive(Debug)]
pub(super) struct Turns {
    /// `[rows, 2, head_dim / 2]`: cosines, then sines
    values: Vec<f32>,
    half: usize,
}

impl Turns {
    pub(super) fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Of one row: cosines and sines.
    pub(super) fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.values[row * 2 * self.half..][..2 * self.half].split_at(self.half)
    }
}

/// Turns one head in place, inside a loop that is compiled for wide registers.
#[inline(always)]
pub(super) fn turn<const FMA: bool>(head: &mut [f32], (cosines, sines): (&[f32], &[f32])) {
    let (first, second) = head.split_at_mut(cosines.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (madd::<FMA>(-*b, *s, *a * *c), madd::<FMA>(*a, *s, *b * *c));
    }
}
