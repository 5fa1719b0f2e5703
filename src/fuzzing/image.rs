//! Images: decoding within limits, resizing, cropping, normalising.
//!
//! The first bytes of an input choose the steps, the rest is the file. The checksums of a PNG are mended first, so that
//! what is behind them is reached, and a case is one whether or not the decoder checks them.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::{Input, Pixels};
use crate::process::{PrepareOptions, Processor};
use crate::repository::{F32Matmul, Limits, Spec};
use crate::value::{RawInput, Task};

/// What an operator may allow of an image, in pixels.
const MOST_PIXELS: [u64; 4] = [1, 1_000, 1 << 16, 1 << 20];
const LARGEST_SIDE: u8 = 48;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

pub(super) fn check(data: &[u8]) -> Result<()> {
    let steps_and_file = data.split_first_chunk().ok_or_else(|| Error::bad_request("an input without steps"))?;
    let (&[how, height, width, edge], file) = steps_and_file;
    let [height, width, edge] = [height, width, edge].map(|side| side % LARGEST_SIDE + 1);
    let steps = Steps { how, height, width, edge };
    let file = with_checksums(file);
    let max_image_pixels = MOST_PIXELS[usize::from(how >> 6)];
    let limits = Limits { max_image_pixels, ..Limits::default() };
    let processor = Processor::load(&steps.spec(), &limits).unwrap();
    let prepared = processor.prepare(&RawInput::Image(file.clone()), &PrepareOptions::default())?;
    let Input::Pixels(pixels) = prepared else { unreachable!("an image became text") };
    if let Some((width, height)) = png_size(&file) {
        assert!(u64::from(width) * u64::from(height) <= max_image_pixels);
    }
    steps.hold(&pixels);
    Ok(())
}

/// How images are prepared: bits of `how` are channels, normalising, cropping, how is resized, and by which filter.
struct Steps {
    how: u8,
    height: u8,
    width: u8,
    edge: u8,
}

impl Steps {
    fn bit(&self, at: u8) -> bool {
        self.how >> at & 1 == 1
    }

    fn channels(&self) -> usize {
        if self.bit(0) { 3 } else { 1 }
    }

    /// Of numbers that are what the bytes were, where it is off.
    fn normalises(&self) -> bool {
        self.bit(1)
    }

    fn preprocessor(&self) -> Value {
        let Steps { height, width, edge, .. } = self;
        let (crops, by_edge) = (self.bit(2), self.bit(3));
        let size = match (crops, by_edge) {
            (_, true) => json!({ "shortest_edge": edge }),
            (true, false) => json!({ "height": edge, "width": width }),
            (false, false) => json!({ "height": height, "width": width }),
        };
        json!({
            "do_resize": true, "size": size, "resample": self.how >> 4 & 3,
            "do_center_crop": crops, "crop_size": { "height": height, "width": width },
            "do_rescale": self.normalises(), "do_normalize": self.normalises(),
        })
    }

    fn spec(&self) -> Spec {
        Spec {
            model: "model".into(),
            version: "v1".into(),
            dir: "model/v1".into(),
            task: Task::ImageClassify,
            family: "vit".into(),
            config: json!({ "image_size": [self.height, self.width], "num_channels": self.channels() }),
            embedding: None,
            preprocessor: Some(self.preprocessor()),
            weight_files: Vec::new(),
            labels: vec!["a".into(), "b".into()],
            f32_matmul: F32Matmul::F32,
            cache_tokens: None,
            sequences: None,
        }
    }

    fn hold(&self, pixels: &Pixels) {
        let Pixels { data, channels, height, width } = pixels;
        let taken = (self.channels(), usize::from(self.height), usize::from(self.width));
        assert_eq!((*channels, *height, *width), taken);
        assert_eq!(data.len(), channels * height * width);
        match self.normalises() {
            true => assert!(data.iter().all(|value| (-1.0..=1.0).contains(value)), "{data:?}"),
            false => {
                assert!(data.iter().all(|value| value.fract() == 0.0 && (0.0..=255.0).contains(value)), "{data:?}")
            }
        }
    }
}

fn png_size(file: &[u8]) -> Option<(u32, u32)> {
    let rest = file.strip_prefix(PNG_SIGNATURE)?.get(8..)?;
    let (width, rest) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

/// The same PNG with right checksums; other files as they are.
fn with_checksums(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    if !file.starts_with(PNG_SIGNATURE) {
        return file;
    }
    let mut at = PNG_SIGNATURE.len();
    while let Some(length) = file.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = at + 8 + u32::from_be_bytes(*length) as usize;
        let Some(body) = file.get(at + 4..end) else { break };
        let crc = crc32(body).to_be_bytes();
        let Some(place) = file.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&crc);
        at = end + 4;
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
