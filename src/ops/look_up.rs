//! Rows of a matrix by their number: tokens in an embedding table, and those rows of a step that go on.

use candle_core::{Result, bail};

use super::cpu::{Reading, require_f32, values_of_reading};
use super::matmul::{Matrix, PANEL, WeightLayout};
use super::tensor::{Device, Tensor};

/// The rows of an embedding table, which may be the weight of the last layer too and then lies as that needs it.
///
/// `[ids, width]` comes back; an id beyond the table is an error. On a CPU.
pub fn look_up(table: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let width = table.in_features();
    if let Some(beyond) = ids.iter().find(|&&id| id as usize >= table.out_features()) {
        bail!("index {beyond} is beyond a table of {} rows", table.out_features());
    }
    let stored = Reading::of(table.stored(), "an embedding table")?;
    let values = values_of_reading(&stored)?;
    let mut out = Vec::with_capacity(ids.len() * width);
    for id in ids {
        let id = *id as usize;
        match table.layout() {
            WeightLayout::Rows => out.extend_from_slice(&values[id * width..][..width]),
            WeightLayout::Panels => {
                let panel = &values[id / PANEL * width * PANEL..][..width * PANEL];
                out.extend(panel.iter().skip(id % PANEL).step_by(PANEL));
            }
        }
    }
    Tensor::from_vec(out, (ids.len(), width), &Device::Cpu)
}

/// These rows of `x`, `[rows, width]`, in this order. On a CPU.
pub fn take_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
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
    fn a_row_is_the_same_from_rows_and_from_panels() {
        let rows = matrix(37, 23, 1);
        let ids = [36u32, 0, 15, 16, 36];
        let want: Vec<f64> = ids.iter().flat_map(|&id| values(&rows)[id as usize * 23..][..23].to_vec()).collect();
        for table in [Matrix::from_rows(&rows).unwrap(), Matrix::new(rows.clone(), WeightLayout::Rows, 37).unwrap()] {
            assert_eq!(values(&look_up(&table, &ids).unwrap()), want);
            assert!(look_up(&table, &[37]).unwrap_err().to_string().contains("index 37 is beyond"));
            assert_eq!(look_up(&table, &[]).unwrap().dims(), [0, 23]);
        }
    }

    #[test]
    fn rows_are_taken_in_the_order_that_was_asked_for() {
        let x = matrix(5, 3, 2);
        let want = [values(&x)[12..].to_vec(), values(&x)[3..6].to_vec()].concat();
        assert_eq!(values(&take_rows(&x, &[4, 1]).unwrap()), want);
        assert!(take_rows(&x, &[5]).is_err());
    }
}
