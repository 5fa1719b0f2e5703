//! Encoded images to normalised pixels, in the terms of Hugging Face's `ViTImageProcessor` and to its numbers.
//!
//! Every step works on bytes until the last, as there: decode, convert, resize, crop; then one table per channel turns
//! each byte into its scaled and normalised number.

mod config;
mod decode;
mod resample;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::model::Pixels;
use crate::repository::{Limits, Spec};

use config::{Preprocessing, Size};
use decode::Raster;

/// What a resize may produce, in pixels. Only the length of `shortest_edge` is left to the image.
const MAX_RESIZED_PIXELS: u64 = 1 << 24;

#[derive(Debug)]
pub(super) struct ImageProcessor {
    steps: Preprocessing,
    max_pixels: u64,
    /// What a byte becomes, for each channel.
    tables: Vec<[f32; 256]>,
}

impl ImageProcessor {
    pub(super) fn load(spec: &Spec, limits: &Limits) -> Result<ImageProcessor> {
        let steps = Preprocessing::load(spec)?;
        let tables = (0..steps.channels).map(|channel| table(&steps, channel)).collect();
        Ok(ImageProcessor { steps, max_pixels: limits.max_image_pixels, tables })
    }

    pub(super) fn prepare(&self, bytes: &[u8]) -> Result<Pixels> {
        let mut image = decode::decode(bytes, self.steps.channels, self.max_pixels)?;
        if let Some(resize) = &self.steps.resize {
            let (height, width) = target(resize.size, &image)?;
            image = resample::resize(&image, width, height, resize.filter);
        }
        if let Some((height, width)) = self.steps.crop {
            image = crop(&image, height, width);
        }
        let (height, width) = self.steps.takes;
        if (image.height, image.width) != (height, width) {
            return Err(Error::bad_request(format!(
                "the image is {} x {} pixels (width x height) after preprocessing, the model takes {width} x {height}",
                image.width, image.height
            )));
        }
        Ok(self.normalise(&image))
    }

    /// Interleaved bytes to one plane of numbers a channel.
    fn normalise(&self, image: &Raster) -> Pixels {
        let channels = self.tables.len();
        let mut data = Vec::with_capacity(image.data.len());
        for (channel, table) in self.tables.iter().enumerate() {
            data.extend(image.data.iter().skip(channel).step_by(channels).map(|byte| table[usize::from(*byte)]));
        }
        Pixels { data, channels, height: image.height, width: image.width }
    }
}

/// The roundings are numpy's there: scaled in f64, then f32.
fn table(steps: &Preprocessing, channel: usize) -> [f32; 256] {
    std::array::from_fn(|byte| {
        let scaled = steps.rescale.map_or(byte as f32, |factor| (byte as f64 * factor) as f32);
        match &steps.normalize {
            Some(stats) => (scaled - stats.mean[channel]) / stats.std[channel],
            None => scaled,
        }
    })
}

/// The (height, width) to which an image is resized.
fn target(size: Size, image: &Raster) -> Result<(usize, usize)> {
    let edge = match size {
        Size::Exact { height, width } => return Ok((height, width)),
        Size::ShortestEdge(edge) => edge,
    };
    let (short, long) = (image.width.min(image.height), image.width.max(image.height));
    // floor of a quotient of doubles, as Python's int(edge * long / short)
    let longer = ((edge as f64 * long as f64) / short as f64) as usize;
    let pixels = edge as u64 * longer as u64;
    if pixels > MAX_RESIZED_PIXELS {
        return Err(Error::bad_request(format!(
            "the image is too long: {} x {} pixels would be resized to {pixels} pixels, the limit is {MAX_RESIZED_PIXELS}",
            image.width, image.height
        )));
    }
    Ok(if image.width <= image.height { (longer, edge) } else { (edge, longer) })
}

/// The middle of an image; what lies outside is black. Rounds as `transformers.image_transforms.center_crop` does.
fn crop(image: &Raster, height: usize, width: usize) -> Raster {
    let channels = image.channels;
    let mut out = Raster { data: vec![0; height * width * channels], height, width, channels };
    let rows = overlap(image.height, height);
    let columns = overlap(image.width, width);
    for row in 0..rows.len {
        let from = ((rows.from + row) * image.width + columns.from) * channels;
        let to = ((rows.to + row) * width + columns.to) * channels;
        let bytes = columns.len * channels;
        out.data[to..to + bytes].copy_from_slice(&image.data[from..from + bytes]);
    }
    out
}

/// Where the middle of one axis comes from, where it goes, and how much of it there is.
struct Overlap {
    from: usize,
    to: usize,
    len: usize,
}

fn overlap(have: usize, want: usize) -> Overlap {
    if want <= have {
        Overlap { from: (have - want) / 2, to: 0, len: want }
    } else {
        Overlap { from: 0, to: (want - have).div_ceil(2), len: have }
    }
}
