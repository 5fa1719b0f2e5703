//! From the rows of a sequence to one row.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::cpu::{Rows, output, require_f32};
use super::segments::Segments;
use super::simd::sum_of;
use super::tensor::Tensor;

/// How the rows of a sequence become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    Mean,
    /// The first row: a `[CLS]` or class token's.
    First,
    Max,
}

/// One row for each sequence: `[tokens, width]` becomes `[sequences, width]`.
pub fn reduce(x: &Tensor, segments: &Segments, how: Reduce) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::reduce(x, segments, how).map(Tensor::Cuda);
    }
    require_f32(x, "what is pooled")?;
    x.apply1(&Pool { segments, how })
}

struct Pool<'a> {
    segments: &'a Segments,
    how: Reduce,
}

impl CustomOp1 for Pool<'_> {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(storage, layout, "what is pooled")?;
        if x.count != self.segments.total() {
            bail!("{} rows do not match a batch of {}", x.count, self.segments.total());
        }
        let mut out = vec![0f32; self.segments.count() * x.width];
        for (row, range) in out.chunks_exact_mut(x.width.max(1)).zip(self.segments.ranges()) {
            if range.is_empty() {
                bail!("a sequence without rows cannot be pooled");
            }
            row.copy_from_slice(x.row(range.start));
            let rest = range.start + 1..range.end;
            match self.how {
                Reduce::First => {}
                Reduce::Mean => {
                    rest.for_each(|i| row.iter_mut().zip(x.row(i)).for_each(|(a, b)| *a += b));
                    let count = range.len() as f32;
                    row.iter_mut().for_each(|a| *a /= count);
                }
                // NaN wins, as in the reference frameworks: it must not be pooled away
                Reduce::Max => rest.for_each(|i| {
                    row.iter_mut().zip(x.row(i)).for_each(|(a, b)| *a = if *b > *a || b.is_nan() { *b } else { *a });
                }),
            }
        }
        Ok(output(out, (self.segments.count(), x.width)))
    }
}

/// Divides each row by its Euclidean length, or by 1e-12 when that is shorter.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::l2_normalize(x).map(Tensor::Cuda);
    }
    require_f32(x, "what is normalised")?;
    x.apply1(&L2Normalize)
}

struct L2Normalize;

impl CustomOp1 for L2Normalize {
    fn name(&self) -> &'static str {
        "l2-normalize"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(storage, layout, "what is normalised")?;
        let mut out = Vec::with_capacity(x.count * x.width);
        for i in 0..x.count {
            let row = x.row(i);
            let length = sum_of(row, |v| v * v).sqrt();
            // NaN is neither shorter nor longer: it stays the divisor
            let divisor = if length < 1e-12 { 1e-12 } else { length };
            out.extend(row.iter().map(|v| v / divisor));
        }
        Ok(output(out, layout.dims()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::Device;
    use crate::ops::testing::{assert_close, matrix, values};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn each_sequence_is_reduced_by_itself(
            lengths in prop::collection::vec(1usize..40, 1..8), width in 1usize..90, seed: u64,
        ) {
            let segments = Segments::of(lengths);
            let x = matrix(segments.total(), width, seed);
            let all = values(&x);
            for how in [Reduce::Mean, Reduce::First, Reduce::Max] {
                let want: Vec<f64> = segments.ranges().flat_map(|range| {
                    let (all, range) = (&all, range.clone());
                    (0..width).map(move |c| {
                        let column = range.clone().map(|i| all[i * width + c]);
                        match how {
                            Reduce::Mean => column.sum::<f64>() / range.len() as f64,
                            Reduce::First => all[range.start * width + c],
                            Reduce::Max => column.fold(f64::NEG_INFINITY, f64::max),
                        }
                    })
                }).collect();
                assert_close(&reduce(&x, &segments, how).unwrap(), &want, 1e-6);
            }
        }

        #[test]
        fn normalised_rows_keep_their_direction_and_have_length_one(rows in 1usize..6, width in 1usize..500, seed: u64) {
            let x = matrix(rows, width, seed);
            let want: Vec<f64> = values(&x).chunks(width).flat_map(|row| {
                let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                row.iter().map(|v| v / length).collect::<Vec<_>>()
            }).collect();
            assert_close(&l2_normalize(&x).unwrap(), &want, 1e-6);
        }
    }

    #[test]
    fn zeros_stay_zeros_and_nan_stays_nan() {
        let x = Tensor::from_vec(vec![0f32, 0., f32::NAN, 1.], (2, 2), &Device::Cpu).unwrap();
        let out = values(&l2_normalize(&x).unwrap());
        assert_eq!(&out[..2], [0.0, 0.0]);
        assert!(out[2..].iter().all(|v| v.is_nan()));
        let x = Tensor::from_vec(vec![1f32, f32::NAN, 3.], (3, 1), &Device::Cpu).unwrap();
        for how in [Reduce::Mean, Reduce::Max] {
            assert!(values(&reduce(&x, &Segments::of([3]), how).unwrap())[0].is_nan(), "{how:?}");
        }
    }

    #[test]
    fn an_empty_sequence_and_a_wrong_plan_are_errors() {
        let x = matrix(3, 2, 1);
        assert!(reduce(&x, &Segments::of([3, 0]), Reduce::Mean).is_err());
        assert!(reduce(&x, &Segments::of([4]), Reduce::Mean).is_err());
    }
}
