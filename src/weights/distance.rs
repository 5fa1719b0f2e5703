//! How far the values of a tensor are from those of another: read side by side, as f32, in pieces.
//!
//! Whatever formats the two are in, quantised ones too, they are compared as the numbers that they stand for. Every byte is held against
//! its digest on the way. Nobody waits for this: it gives way to forward passes, and ends when it is told to.

use std::time::Instant;

use candle_core::DType;

use super::cast::bytes_mut;
use super::difference::Tensors;
use super::load::digest_of;
use super::read::{Part, Reader, Seen};
use super::{CHUNK, Progress};
use crate::error::{Error, Result};
use crate::ops::Device;
use crate::repository::Distance;

/// Values of each side that are held at a time.
const PIECE: usize = CHUNK / size_of::<f32>();

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distances {
    /// By size, the smallest first.
    sorted: Vec<Distance>,
    why_not: Option<String>,
}

impl Distances {
    pub fn measured(&self) -> usize {
        self.sorted.len()
    }

    pub fn largest(&self) -> Option<&Distance> {
        self.sorted.last()
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let upper = self.sorted.get(self.sorted.len() / 2)?.distance;
        let lower = self.sorted.get(self.sorted.len().saturating_sub(1) / 2)?.distance;
        Some((lower + upper) / 2.0)
    }

    /// Why the first that was not measured was not.
    pub fn why_not(&self) -> Option<&str> {
        self.why_not.as_deref()
    }
}

/// Measures tensors of these names, which both sides have in the same shape, for as long as there is time.
///
/// # Errors
/// `Conflict` when `progress` was cancelled.
pub fn distances(
    (before, now): (Tensors<'_>, Tensors<'_>),
    names: &[String],
    until: Option<Instant>,
    progress: &Progress,
) -> Result<Distances> {
    let device = Device::Cpu;
    let mut sides = [before, now].map(|tensors| Reader::new((tensors.index, progress), &device));
    let mut room = [vec![0f32; PIECE], vec![0f32; PIECE]];
    let mut found = Distances::default();
    for name in names {
        progress.check()?;
        match distance(name, (before, now), (&mut sides, &mut room), until) {
            Ok(Some(distance)) => found.sorted.push(Distance { tensor: name.clone(), distance }),
            // Those before it are worth having all the same.
            Ok(None) => {
                found.why_not.get_or_insert_with(|| "there was no time".to_owned());
                break;
            }
            Err(error) => {
                progress.check()?;
                found.why_not.get_or_insert_with(|| error.to_string());
            }
        }
    }
    found.sorted.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    Ok(found)
}

/// `‖a − b‖ / max(‖a‖, ‖b‖)`, summed in f64; none when the time is over.
fn distance(
    name: &str,
    (before, now): (Tensors<'_>, Tensors<'_>),
    (sides, room): (&mut [Reader<'_>; 2], &mut [Vec<f32>; 2]),
    until: Option<Instant>,
) -> Result<Option<f64>> {
    let (was, is) = (part(name, before)?, part(name, now)?);
    let fills = [sides[0].how(&was, DType::F32)?.wanted, sides[1].how(&is, DType::F32)?.wanted];
    let mut seen = [Seen::nothing(), Seen::nothing()];
    let (mut apart, mut sizes, mut at) = (0f64, [0f64; 2], 0);
    while at < was.elements() {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
        let mut filled = [0; 2];
        for (side, part) in [&was, &is].into_iter().enumerate() {
            let to = (bytes_mut(&mut room[side][..]), &mut seen[side]);
            filled[side] = fills[side](&mut sides[side], part, at, to)? / size_of::<f32>();
        }
        if filled[0] != filled[1] || filled[0] == 0 {
            return Err(Error::internal("two tensors of one shape that are not read alike"));
        }
        for (a, b) in room[0][..filled[0]].iter().zip(&room[1]) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            apart += (a - b) * (a - b);
            sizes[0] += a * a;
            sizes[1] += b * b;
        }
        at += filled[0];
    }
    sides[0].accept(&was, DType::F32, &seen[0])?;
    sides[1].accept(&is, DType::F32, &seen[1])?;
    let larger = sizes[0].max(sizes[1]);
    Ok(Some(if larger == 0.0 { 0.0 } else { (apart / larger).sqrt() }))
}

fn part<'a>(name: &str, tensors: Tensors<'a>) -> Result<Part<'a>> {
    let missing = || Error::internal("a tensor to be measured that is not there");
    let info = tensors.index.get(name).ok_or_else(missing)?;
    let manifest = tensors.manifest.ok_or_else(|| Error::unloadable(name, "its digest is not known yet"))?;
    Ok(Part { info, digest: digest_of(info, tensors.index, manifest)?, first: 0 })
}
