//! How a weight matrix lies in memory.
//!
//! Checkpoints store a linear layer's weight row by row, `[out, in]`. The product reads sixteen outputs at once, so on
//! a CPU it is kept in *panels*: `[⌈out / 16⌉, in, 16]`, where a panel holds sixteen rows side by side and rows that
//! do not fill the last one are zero. The loader writes panels as it reads, so that no second copy ever exists.

use candle_core::{Result, bail};

use crate::ops::tensor::{Device, Tensor};

/// Outputs in a panel: two AVX2 registers of f32, one of AVX-512, four of NEON.
pub const PANEL: usize = 16;

/// How the elements of a weight are arranged on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightLayout {
    /// As the checkpoint has it.
    #[default]
    Rows,
    /// `[⌈out / 16⌉, in, 16]`, from `[out, …]` whose other dimensions are read as one.
    Panels,
}

impl WeightLayout {
    /// The shape of the tensor that holds a weight of this shape.
    pub fn stored(self, shape: &[usize]) -> Vec<usize> {
        match self {
            WeightLayout::Rows => shape.to_vec(),
            WeightLayout::Panels => {
                let (rows, columns) = rows_and_columns(shape);
                vec![rows.div_ceil(PANEL), columns, PANEL]
            }
        }
    }

    /// Writes the elements `at..at + piece.len()` of a weight of this shape to where they stay in `stored`.
    ///
    /// Both slices must lie within their weight: `stored` has the elements of [`WeightLayout::stored`].
    pub fn place<T: Copy>(self, stored: &mut [T], shape: &[usize], at: usize, piece: &[T]) {
        match self {
            WeightLayout::Rows => stored[at..at + piece.len()].copy_from_slice(piece),
            WeightLayout::Panels => {
                let (_, columns) = rows_and_columns(shape);
                let (mut row, mut column, mut piece) = (at / columns.max(1), at % columns.max(1), piece);
                while !piece.is_empty() {
                    let (now, later) = piece.split_at(piece.len().min(columns - column));
                    let start = (row / PANEL * columns + column) * PANEL + row % PANEL;
                    stored[start..].iter_mut().step_by(PANEL).zip(now).for_each(|(slot, value)| *slot = *value);
                    (row, column, piece) = (row + 1, 0, later);
                }
            }
        }
    }
}

fn rows_and_columns(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    }
}

/// The weight of a linear layer, as its device reads it.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Panels, `[⌈out / 16⌉, in, 16]`, f32; or rows, `[out, …]`.
    stored: Tensor,
    layout: WeightLayout,
    out: usize,
    in_tf32: bool,
}

impl Matrix {
    /// Takes a weight of `out` outputs that was arranged for its device.
    pub fn new(stored: Tensor, layout: WeightLayout, out: usize) -> Result<Matrix> {
        match (layout, stored.dims()) {
            (WeightLayout::Panels, &[count, _, PANEL]) if count == out.div_ceil(PANEL) => {
                Ok(Matrix { stored, layout, out, in_tf32: false })
            }
            (WeightLayout::Rows, &[count, _, ..]) if count == out => Ok(Matrix { stored, layout, out, in_tf32: false }),
            (_, dims) => bail!("{dims:?} is no weight of {out} outputs in {layout:?}"),
        }
    }

    /// The same weight, by which a GPU may multiply in TF32 if it is f32: what is multiplied is rounded, sums are not.
    pub fn in_tf32(self) -> Matrix {
        Matrix { in_tf32: true, ..self }
    }

    pub fn is_in_tf32(&self) -> bool {
        self.in_tf32
    }

    /// Arranges rows, `[out, in]` f32, as panels: for weights that no loader arranged.
    pub fn from_rows(rows: &Tensor) -> Result<Matrix> {
        let (out, columns) = rows.dims2()?;
        let values = rows.host()?.flatten_all()?.to_vec1::<f32>()?;
        let layout = WeightLayout::Panels;
        let shape = layout.stored(&[out, columns]);
        let mut stored = vec![0f32; shape.iter().product()];
        layout.place(&mut stored, &[out, columns], 0, &values);
        Matrix::new(Tensor::from_vec(stored, shape, &Device::Cpu)?, layout, out)
    }

    pub(in crate::ops) fn stored(&self) -> &Tensor {
        &self.stored
    }

    pub(in crate::ops) fn layout(&self) -> WeightLayout {
        self.layout
    }

    pub fn out_features(&self) -> usize {
        self.out
    }

    pub fn in_features(&self) -> usize {
        match self.layout {
            WeightLayout::Panels => self.stored.dims()[1],
            WeightLayout::Rows => self.stored.dims()[1..].iter().product(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_any_size_end_up_where_their_rows_and_columns_say(
            rows in 1usize..40, columns in 1usize..30, cut in 1usize..50,
        ) {
            let shape = [rows, columns];
            let source: Vec<u32> = (1..=(rows * columns) as u32).collect();
            let layout = WeightLayout::Panels;
            let mut stored = vec![0; layout.stored(&shape).iter().product()];
            for (i, piece) in source.chunks(cut).enumerate() {
                layout.place(&mut stored, &shape, i * cut, piece);
            }
            for (i, value) in stored.iter().enumerate() {
                let (panel, column, lane) = (i / (columns * PANEL), i / PANEL % columns, i % PANEL);
                let row = panel * PANEL + lane;
                let want = if row < rows { source[row * columns + column] } else { 0 };
                prop_assert_eq!(*value, want);
            }
        }
    }

    #[test]
    fn dimensions_after_the_first_are_one() {
        assert_eq!(WeightLayout::Panels.stored(&[20, 3, 4, 4]), [2, 48, 16]);
        assert_eq!(WeightLayout::Rows.stored(&[20, 3, 4, 4]), [20, 3, 4, 4]);
    }
}
