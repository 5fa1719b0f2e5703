//! How a weight matrix lies in memory.
//!
//! Checkpoints store a linear layer's weight row by row, `[out, in]`. The product reads sixteen outputs at once, so on
//! a CPU it is kept in *panels*: `[⌈out / 16⌉, in, 16]`, where a panel holds sixteen rows side by side and rows that
//! do not fill the last one are zero. The loader writes panels as it reads, so that no second copy ever exists. Weights
//! that stay quantised have panels of their own ([`QuantFormat`]).

use candle_core::{DType, Result, bail};
use half::{bf16, f16};

use super::Element;
use crate::ops::cpu::{Reading, all_values};
use crate::ops::quantized::{Blocks, QuantFormat, spelled_bytes};
use crate::ops::tensor::{Device, Keeping, Tensor};

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
    /// Blocks of a quantised format in panels, U8: [`QuantFormat::stored`].
    Quantized(QuantFormat),
    /// The same on a GPU, U8: [`QuantFormat::stored_packed`].
    Packed(QuantFormat),
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
            WeightLayout::Quantized(format) => {
                let (rows, columns) = rows_and_columns(shape);
                format.stored(rows, columns).to_vec()
            }
            WeightLayout::Packed(format) => {
                let (rows, columns) = rows_and_columns(shape);
                format.stored_packed(rows, columns).to_vec()
            }
        }
    }

    /// Bytes that products with a weight of this shape take beside what they take with others: what of it is spelled out at once.
    pub fn spelled_bytes(self, shape: &[usize], keeping: Keeping) -> u64 {
        match (self, keeping) {
            (WeightLayout::Packed(_), Keeping::Cuda(dtype)) => spelled_bytes(rows_and_columns(shape), dtype),
            _ => 0,
        }
    }

    /// Writes the elements `at..at + piece.len()` of a weight of this shape to where they stay in `stored`.
    ///
    /// Both slices must lie within their weight: `stored` has the elements of [`WeightLayout::stored`]. An error for
    /// quantised weights, which have no elements: [`QuantFormat::place`] is for their blocks.
    pub fn place<T: Copy>(self, stored: &mut [T], shape: &[usize], at: usize, piece: &[T]) -> Result<()> {
        match self {
            WeightLayout::Rows => stored[at..at + piece.len()].copy_from_slice(piece),
            WeightLayout::Quantized(format) | WeightLayout::Packed(format) => {
                bail!("single elements cannot be put among {format} blocks")
            }
            WeightLayout::Panels => place_in_panels(stored, rows_and_columns(shape).1, at, piece),
        }
        Ok(())
    }
}

/// The same for panels of rows of so many columns.
pub(in crate::ops) fn place_in_panels<T: Copy>(stored: &mut [T], columns: usize, at: usize, piece: &[T]) {
    let (mut row, mut column, mut piece) = (at / columns.max(1), at % columns.max(1), piece);
    while !piece.is_empty() {
        let (now, later) = piece.split_at(piece.len().min(columns - column));
        let start = (row / PANEL * columns + column) * PANEL + row % PANEL;
        stored[start..].iter_mut().step_by(PANEL).zip(now).for_each(|(slot, value)| *slot = *value);
        (row, column, piece) = (row + 1, 0, later);
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
    /// Panels, `[⌈out / 16⌉, in, 16]`, f32, f16 or bf16; or rows, `[out, …]`; or quantised, `[⌈out / 16⌉, in / block, unit]`, U8.
    stored: Tensor,
    layout: WeightLayout,
    out: usize,
    in_tf32: bool,
    of_steps: bool,
}

impl Matrix {
    /// Takes a weight of `out` outputs that was arranged for its device.
    pub fn new(stored: Tensor, layout: WeightLayout, out: usize) -> Result<Matrix> {
        match (layout, stored.dims()) {
            (WeightLayout::Panels, &[count, _, PANEL]) if count == out.div_ceil(PANEL) => {
                Ok(Matrix { stored, layout, out, in_tf32: false, of_steps: false })
            }
            (WeightLayout::Rows, &[count, _, ..]) if count == out => {
                Ok(Matrix { stored, layout, out, in_tf32: false, of_steps: false })
            }
            (WeightLayout::Quantized(format), &[_, blocks, _])
                if format.stored(out, blocks * format.block()) == stored.dims() =>
            {
                Ok(Matrix { stored, layout, out, in_tf32: false, of_steps: false })
            }
            (WeightLayout::Packed(format), &[_, blocks, _])
                if format.stored_packed(out, blocks * format.block()) == stored.dims() =>
            {
                Ok(Matrix { stored, layout, out, in_tf32: false, of_steps: false })
            }
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

    /// The same weight of a model whose steps have few rows, which are to be the same whatever rows are beside them: on a GPU
    /// their products are not left to what sums by the number of rows.
    pub fn of_steps(self) -> Matrix {
        Matrix { of_steps: true, ..self }
    }

    pub fn is_of_steps(&self) -> bool {
        self.of_steps
    }

    /// Arranges rows, `[out, in]` f32, as panels: for weights that no loader arranged.
    pub fn from_rows(rows: &Tensor) -> Result<Matrix> {
        let (out, columns) = rows.dims2()?;
        let values = rows.host()?.flatten_all()?.to_vec1::<f32>()?;
        let layout = WeightLayout::Panels;
        let shape = layout.stored(&[out, columns]);
        let mut stored = vec![0f32; shape.iter().product()];
        layout.place(&mut stored, &[out, columns], 0, &values)?;
        Matrix::new(Tensor::from_vec(stored, shape, &Device::Cpu)?, layout, out)
    }

    /// Arranges the blocks of a whole weight of `[out, in]`, row by row: for weights that no loader arranged.
    pub fn from_blocks(format: QuantFormat, blocks: &[u8], (out, columns): (usize, usize)) -> Result<Matrix> {
        let shape = format.stored(out, columns);
        let mut stored = vec![0u8; shape.iter().product()];
        format.place(&mut stored, (out, columns), 0, blocks)?;
        Matrix::new(Tensor::from_vec(stored, shape.to_vec(), &Device::Cpu)?, WeightLayout::Quantized(format), out)
    }

    /// An error where there is no row of one of these numbers.
    pub(in crate::ops) fn check(&self, numbers: &[u32]) -> Result<()> {
        match numbers.iter().find(|&&number| number as usize >= self.out) {
            Some(beyond) => bail!("row {beyond} is beyond a table of {} rows", self.out),
            None => Ok(()),
        }
    }

    /// Its rows of these numbers as f32, `[rows, in]`: of an embedding table that is the last layer's weight too. On a CPU; a row beyond
    /// the last is an error.
    pub fn rows(&self, numbers: &[u32]) -> Result<Tensor> {
        let width = self.in_features();
        self.check(numbers)?;
        let mut rows = vec![0f32; numbers.len() * width];
        let stored = Reading::of(&self.stored, "a table")?;
        match (self.layout, self.stored.dtype()) {
            (WeightLayout::Quantized(format), _) => {
                let blocks = Blocks::new(format, all_values(&stored)?, (self.out, width))?;
                let each = rows.chunks_exact_mut(width.max(1)).zip(numbers);
                each.for_each(|(row, number)| blocks.row(*number as usize, row));
            }
            (WeightLayout::Packed(_), _) => bail!("rows of a weight that is arranged for a GPU"),
            (layout, DType::F16) => pick(all_values::<f16>(&stored)?, layout, numbers, (&mut rows, width)),
            (layout, DType::BF16) => pick(all_values::<bf16>(&stored)?, layout, numbers, (&mut rows, width)),
            (layout, _) => pick(all_values::<f32>(&stored)?, layout, numbers, (&mut rows, width)),
        }
        Tensor::from_vec(rows, (numbers.len(), width), &Device::Cpu)
    }

    pub(in crate::ops) fn stored(&self) -> &Tensor {
        &self.stored
    }

    pub(in crate::ops) fn layout(&self) -> WeightLayout {
        self.layout
    }

    /// What its numbers are kept as; U8 where they are quantised.
    pub fn dtype(&self) -> DType {
        self.stored.dtype()
    }

    pub fn out_features(&self) -> usize {
        self.out
    }

    pub fn in_features(&self) -> usize {
        match self.layout {
            WeightLayout::Panels => self.stored.dims()[1],
            WeightLayout::Rows => self.stored.dims()[1..].iter().product(),
            WeightLayout::Quantized(format) | WeightLayout::Packed(format) => self.stored.dims()[1] * format.block(),
        }
    }
}

/// Rows of a weight of single elements, widened.
fn pick<W: Element>(stored: &[W], layout: WeightLayout, numbers: &[u32], (rows, width): (&mut [f32], usize)) {
    for (row, number) in rows.chunks_exact_mut(width.max(1)).zip(numbers) {
        let number = *number as usize;
        // From where, and how far one is from the next.
        let (start, step) = match layout {
            WeightLayout::Panels => (number / PANEL * width * PANEL + number % PANEL, PANEL),
            _ => (number * width, 1),
        };
        row.iter_mut().zip(stored[start..].iter().step_by(step)).for_each(|(slot, value)| *slot = value.widen());
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
                layout.place(&mut stored, &shape, i * cut, piece).unwrap();
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
    fn rows_are_the_same_from_rows_and_from_panels() {
        let table = crate::ops::testing::matrix(37, 23, 1);
        let numbers = [36u32, 0, 15, 16, 36];
        let values = |tensor: &Tensor| tensor.to_rows().unwrap();
        let want: Vec<Vec<f32>> = numbers.iter().map(|&i| values(&table)[i as usize].clone()).collect();
        for matrix in [Matrix::from_rows(&table).unwrap(), Matrix::new(table.clone(), WeightLayout::Rows, 37).unwrap()]
        {
            assert_eq!(values(&matrix.rows(&numbers).unwrap()), want);
            assert!(matrix.rows(&[37]).unwrap_err().to_string().contains("row 37 is beyond"));
            assert_eq!(matrix.rows(&[]).unwrap().dims(), [0, 23]);
        }
    }

    #[test]
    fn quantised_weights_have_no_single_elements() {
        let layout = WeightLayout::Quantized(QuantFormat::Q4_0);
        assert_eq!(layout.stored(&[20, 64]), [2, 2, 288]);
        assert!(layout.place(&mut [0u8; 1152], &[20, 64], 0, &[1u8; 18]).is_err());
    }

    #[test]
    fn dimensions_after_the_first_are_one() {
        assert_eq!(WeightLayout::Panels.stored(&[20, 3, 4, 4]), [2, 48, 16]);
        assert_eq!(WeightLayout::Rows.stored(&[20, 3, 4, 4]), [20, 3, 4, 4]);
    }
}
