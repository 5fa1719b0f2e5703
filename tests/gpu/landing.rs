//! Rows that come back from a GPU, and whether all of them are numbers.

use candle_core::{DType, WithDType};
use cutover::device::{Memory, Opened, Owner};
use cutover::ops::{Device, Keeping, Landing, Machine, Tensor};
use half::{bf16, f16};

use super::gpu;

/// A place on the GPU for tensors of a test, with its memory.
fn place((opened, machine): &(Opened, Machine), format: DType) -> (Device, Memory) {
    let memory = Memory::acquire(opened, 0, Owner::default()).unwrap();
    (machine.device(&memory, (64 << 20, Keeping::Cuda(format))).unwrap(), memory)
}

/// Lands rows of which the value at `bad.0` is `bad.1`; what came, and whether all of it is said to be numbers.
fn landed<T: WithDType>(
    device: &Device,
    (rows, columns): (usize, usize),
    bad: Option<(usize, f32)>,
) -> (Vec<f32>, bool) {
    let landed = landing::<T>(device, (rows, columns), bad).wait().unwrap();
    assert!(landed.rows.len() == rows && landed.rows.iter().all(|row| row.len() == columns));
    (landed.rows.concat(), landed.finite)
}

fn landing<T: WithDType>(device: &Device, (rows, columns): (usize, usize), bad: Option<(usize, f32)>) -> Landing {
    let mut values = sent::<T>(rows * columns);
    if let Some((at, value)) = bad {
        values[at] = T::from_f64(value.into());
    }
    Tensor::from_vec(values, (rows, columns), device).unwrap().landing().unwrap()
}

/// Numbers of every size that a format has.
fn sent<T: WithDType>(count: usize) -> Vec<T> {
    let most = if T::DTYPE == DType::F16 { 65504.0 } else { 3.3e38 };
    let value = |at: usize| match at % 7 {
        3 => most,
        5 => -most,
        place => (at % 1000) as f64 / 8.0 - place as f64,
    };
    (0..count).map(|at| T::from_f64(value(at))).collect()
}

fn rows_that_land_say_whether_they_are_numbers_as<T: WithDType>(gpu: &(Opened, Machine)) {
    let (device, _memory) = place(gpu, T::DTYPE);
    // Odd sizes and tails; the last does not fit a slot, and comes in turns.
    let many = (4 << 20) / (1001 * T::DTYPE.size_in_bytes()) + 1;
    for (rows, columns) in [(0, 5), (1, 1), (3, 5), (7, 384), (33, 1000), (many, 1001)] {
        let count = rows * columns;
        let whole: Vec<f32> = sent::<T>(count).iter().map(|value| value.to_f64() as f32).collect();
        for at in [0, count / 2, count.saturating_sub(1)].into_iter().filter(|at| *at < count) {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().take(if rows == many { 1 } else { 3 }) {
                let (got, finite) = landed::<T>(&device, (rows, columns), Some((at, bad)));
                assert!(!finite, "{bad} at {at} of {rows} x {columns} {:?}", T::DTYPE);
                let same =
                    |(i, (got, sent)): (usize, (&f32, &f32))| if i == at { !got.is_finite() } else { got == sent };
                assert!(got.iter().zip(&whole).enumerate().all(same), "{rows} x {columns}");
            }
        }
        // What was said of others before is not said of these.
        assert_eq!(landed::<T>(&device, (rows, columns), None), (whole, true), "{rows} x {columns} {:?}", T::DTYPE);
    }
    // More of them on their way than there are slots.
    let bad = |number: usize| number.is_multiple_of(2).then_some((number, f32::NAN));
    let all: Vec<Landing> = (0..7).map(|number| landing::<T>(&device, (3, 5), bad(number))).collect();
    for (number, landing) in all.into_iter().enumerate() {
        assert_eq!(landing.wait().unwrap().finite, bad(number).is_none(), "{number}");
    }
}

#[test]
fn rows_that_land_say_whether_they_are_numbers() {
    let Some(gpu) = gpu() else { return };
    rows_that_land_say_whether_they_are_numbers_as::<f32>(gpu);
    rows_that_land_say_whether_they_are_numbers_as::<f16>(gpu);
    rows_that_land_say_whether_they_are_numbers_as::<bf16>(gpu);
}
