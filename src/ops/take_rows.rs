//! Those rows of a step that go on.

use candle_core::{Result, bail};

use super::cpu::{Reading, require_f32};
use super::tensor::{Device, Tensor};

/// These rows of `x`, `[rows, width]`, in this order: on a CPU, the reference of `take_rows_T`.
pub(super) fn take_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    require_f32(x, "rows to take from")?;
    let reading = Reading::of(x, "rows to take from")?;
    let from = reading.rows()?;
    if let Some(beyond) = rows.iter().find(|&&row| row >= from.count) {
        bail!("row {beyond} of {}", from.count);
    }
    let mut out = Vec::with_capacity(rows.len() * from.width);
    rows.iter().for_each(|&row| out.extend_from_slice(from.row(row)));
    Tensor::from_vec(out, (rows.len(), from.width), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{matrix, values};

    #[test]
    fn rows_are_taken_in_the_order_that_was_asked_for() {
        let x = matrix(5, 3, 2);
        let want = [values(&x)[12..].to_vec(), values(&x)[3..6].to_vec()].concat();
        assert_eq!(values(&take_rows(&x, &[4, 1]).unwrap()), want);
        assert!(take_rows(&x, &[5]).is_err());
    }
}
