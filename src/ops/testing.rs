//! What the ops' tests share: seeded tensors, and comparison with a reference in f64.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Device, Tensor};

pub(super) fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    let mut random = StdRng::seed_from_u64(seed);
    let values: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1.5f32..1.5)).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

pub(super) fn vector(width: usize, seed: u64) -> Tensor {
    let row = matrix(1, width, seed);
    Tensor::Host(row.host().unwrap().reshape(width).unwrap())
}

/// Some columns of a matrix, without a copy.
pub(super) fn columns(matrix: &Tensor, first: usize, count: usize) -> Tensor {
    Tensor::Host(matrix.host().unwrap().narrow(1, first, count).unwrap())
}

/// The same values one after the other.
pub(super) fn contiguous(tensor: &Tensor) -> Tensor {
    Tensor::Host(tensor.host().unwrap().contiguous().unwrap())
}

/// Every value, widened.
pub(super) fn values(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.host().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

/// Largest difference at most `tolerance` times the largest expected magnitude (at least 1).
#[track_caller]
pub(super) fn assert_close(got: &Tensor, want: &[f64], tolerance: f64) {
    let got = values(got);
    assert_eq!(got.len(), want.len(), "another number of values");
    let scale = want.iter().fold(1f64, |scale, w| scale.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "value {i} is {g}, expected {w} (scale {scale})");
    }
}
