//! How long passes of one batch take: inputs go up, the model runs, rows come down.
//!
//! Each batch is run in two ways: one pass after the other, which is how long whoever asks waits; and as the engine runs
//! them, the next one begun as soon as the device has nothing to do and before the last one's rows are read, which is how many
//! there are in a second. It must not know what a batch is made of.

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::model::{Model, Packed};

/// However short the time is.
const FEWEST: usize = 3;

#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    /// Those that were timed one after the other.
    pub(super) passes: usize,
    pub(super) least_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    /// As the engine runs them.
    pub(super) passes_per_s: f64,
}

pub(super) fn measure(model: &mut Model, packed: &Packed, (warmup, duration): (Duration, Duration)) -> Result<Figures> {
    check(model, packed)?;
    let _warm = one_by_one(model, packed, warmup)?;
    let mut took = one_by_one(model, packed, duration)?;
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize];
    Ok(Figures {
        passes: took.len(),
        least_ms: at(0.0),
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        passes_per_s: in_flight(model, packed, duration)?,
    })
}

/// That there is a row of numbers for each input: how fast nothing is computed says nothing.
fn check(model: &mut Model, packed: &Packed) -> Result<()> {
    let rows = model.forward(packed, packed.all())?.wait()?;
    if rows.len() != packed.len() || rows.iter().any(Vec::is_empty) {
        return Err(Error::internal(format!("{} rows for {} inputs", rows.len(), packed.len())));
    }
    match rows.iter().flatten().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::internal("the version answers with what is not finite")),
    }
}

/// Milliseconds of each pass.
fn one_by_one(model: &mut Model, packed: &Packed, duration: Duration) -> Result<Vec<f64>> {
    let (mut took, first) = (Vec::new(), Instant::now());
    while took.len() < FEWEST || first.elapsed() < duration {
        let began = Instant::now();
        black_box(model.forward(packed, packed.all())?.wait()?);
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(took)
}

/// Passes a second.
fn in_flight(model: &mut Model, packed: &Packed, duration: Duration) -> Result<f64> {
    let (mut count, began) = (0, Instant::now());
    let mut flying = model.forward(packed, packed.all())?;
    while count < FEWEST || began.elapsed() < duration {
        while !flying.is_done()? {
            spin_loop();
        }
        let next = model.forward(packed, packed.all())?;
        black_box(flying.wait()?);
        count += 1;
        flying = next;
    }
    black_box(flying.wait()?);
    Ok((count + 1) as f64 / began.elapsed().as_secs_f64())
}
