//! `preprocessor_config.json`: which steps a version's images go through.
//!
//! Strict on purpose: a step that is not implemented would give wrong answers in silence, so it is refused by name.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::process::image::resample::{Filter, Kernel};
use crate::process::settings::{Settings, label};
use crate::repository::Spec;

const FILE: &str = "preprocessor_config.json";
/// No side of a prepared image is longer.
const MAX_SIDE: usize = 4096;

#[derive(Debug)]
pub(super) struct Preprocessing {
    /// 1 (grey) or 3 (RGB).
    pub(super) channels: usize,
    /// The (height, width) that the model takes.
    pub(super) takes: (usize, usize),
    pub(super) resize: Option<Resize>,
    /// (height, width)
    pub(super) crop: Option<(usize, usize)>,
    pub(super) rescale: Option<f64>,
    pub(super) normalize: Option<Stats>,
}

#[derive(Debug)]
pub(super) struct Resize {
    pub(super) size: Size,
    pub(super) filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Exact { height: usize, width: usize },
    ShortestEdge(usize),
}

/// One number for each channel.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) mean: Vec<f32>,
    pub(super) std: Vec<f32>,
}

/// What is read here, and what changes no number. Any other key must be off (null or false).
const KNOWN: &[&str] = &[
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "default_to_square",
    "data_format",
    "_valid_processor_keys",
];

impl Preprocessing {
    pub(super) fn load(spec: &Spec) -> Result<Preprocessing> {
        let Some(json) = &spec.preprocessor else {
            return Err(Error::unloadable(label(spec, FILE), "missing; a model of images needs its preprocessor"));
        };
        let settings = Settings::new(spec, FILE, json);
        check_features(&settings, json)?;
        let config = Settings::config(spec);
        let channels = match config.usize("num_channels")?.unwrap_or(3) {
            channels @ (1 | 3) => channels,
            _ => return Err(config.wrong("num_channels", "1 or 3")),
        };
        let steps = Preprocessing {
            channels,
            takes: image_size(&config)?,
            resize: on(&settings, "do_resize", true)?.then(|| resize(&settings)).transpose()?,
            crop: on(&settings, "do_center_crop", false)?.then(|| crop_size(&settings)).transpose()?,
            rescale: match on(&settings, "do_rescale", true)? {
                true => Some(settings.f64("rescale_factor")?.unwrap_or(1.0 / 255.0)),
                false => None,
            },
            normalize: on(&settings, "do_normalize", true)?.then(|| stats(&settings, channels)).transpose()?,
        };
        steps.check(&settings)?;
        Ok(steps)
    }

    /// Where the prepared size does not depend on the image, it must be the model's.
    fn check(&self, settings: &Settings) -> Result<()> {
        let prepared = match (self.crop, &self.resize) {
            (Some(size), _) => size,
            (None, Some(Resize { size: Size::Exact { height, width }, .. })) => (*height, *width),
            _ => return Ok(()),
        };
        if prepared == self.takes {
            return Ok(());
        }
        let ((height, width), (takes_height, takes_width)) = (prepared, self.takes);
        Err(Error::unloadable(
            &settings.file,
            format!(
                "it makes images of {width} x {height} pixels (width x height), config.json says {takes_width} x {takes_height}"
            ),
        ))
    }
}

fn check_features(settings: &Settings, json: &Value) -> Result<()> {
    let Value::Object(object) = json else {
        return Err(Error::unloadable(&settings.file, "not a JSON object"));
    };
    for (key, value) in object {
        if !KNOWN.contains(&key.as_str()) && !matches!(value, Value::Null | Value::Bool(false)) {
            return Err(Error::unloadable(&settings.file, format!("the feature '{key}' is not supported")));
        }
    }
    for key in ["image_processor_type", "feature_extractor_type"] {
        match settings.str(key)? {
            None | Some("ViTImageProcessor" | "ViTImageProcessorFast" | "ViTFeatureExtractor") => {}
            Some(_) => return Err(settings.wrong(key, "ViTImageProcessor")),
        }
    }
    match settings.str("data_format")? {
        None | Some("channels_first") => Ok(()),
        Some(_) => Err(settings.wrong("data_format", "channels_first")),
    }
}

fn on(settings: &Settings, key: &str, default: bool) -> Result<bool> {
    Ok(settings.bool(key)?.unwrap_or(default))
}

fn resize(settings: &Settings) -> Result<Resize> {
    const EXPECTED: &str = "a side, {\"height\", \"width\"} or {\"shortest_edge\"} of 1 to 4096 pixels";
    let size = match settings.get("size") {
        None => Size::Exact { height: 224, width: 224 },
        Some(Value::Object(object)) if object.len() == 1 && object.contains_key("shortest_edge") => {
            Size::ShortestEdge(side(object.get("shortest_edge")).ok_or_else(|| settings.wrong("size", EXPECTED))?)
        }
        Some(value) => {
            let (height, width) = rectangle(value).ok_or_else(|| settings.wrong("size", EXPECTED))?;
            match (value, settings.bool("default_to_square")?) {
                (Value::Number(_), Some(false)) => Size::ShortestEdge(height),
                _ => Size::Exact { height, width },
            }
        }
    };
    // the numbers of PIL.Image.Resampling
    let filter = match settings.usize("resample")?.unwrap_or(2) {
        0 => Filter::Nearest,
        1 => Filter::Convolution(Kernel::Lanczos),
        2 => Filter::Convolution(Kernel::Bilinear),
        3 => Filter::Convolution(Kernel::Bicubic),
        _ => return Err(settings.wrong("resample", "0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)")),
    };
    Ok(Resize { size, filter })
}

fn crop_size(settings: &Settings) -> Result<(usize, usize)> {
    settings
        .get("crop_size")
        .and_then(rectangle)
        .ok_or_else(|| settings.wrong("crop_size", "a side or {\"height\", \"width\"} of 1 to 4096 pixels"))
}

fn stats(settings: &Settings, channels: usize) -> Result<Stats> {
    let mean = per_channel(settings, "image_mean", channels)?;
    let std = per_channel(settings, "image_std", channels)?;
    if std.contains(&0.0) {
        return Err(settings.wrong("image_std", "numbers other than 0"));
    }
    Ok(Stats { mean, std })
}

/// One number for all channels or a list with one for each; 0.5 where there is none, as in `ViTImageProcessor`.
fn per_channel(settings: &Settings, key: &str, channels: usize) -> Result<Vec<f32>> {
    let number = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
    let numbers: Option<Vec<f32>> = match settings.get(key) {
        None => Some(vec![0.5; channels]),
        Some(Value::Array(list)) => list.iter().map(number).collect(),
        Some(one) => number(one).map(|x| vec![x; channels]),
    };
    numbers
        .filter(|n| n.len() == channels)
        .ok_or_else(|| settings.wrong(key, format!("a number for each of {channels} channels")))
}

/// `image_size` of config.json: a side or [height, width].
fn image_size(config: &Settings) -> Result<(usize, usize)> {
    let size = match config.get("image_size") {
        None => Some((224, 224)),
        Some(Value::Array(list)) if list.len() == 2 => side(list.first()).zip(side(list.get(1))),
        Some(value) => side(Some(value)).map(|side| (side, side)),
    };
    size.ok_or_else(|| config.wrong("image_size", "a side or [height, width] of 1 to 4096 pixels"))
}

/// (height, width) from a number or `{"height", "width"}`.
fn rectangle(value: &Value) -> Option<(usize, usize)> {
    match value {
        Value::Object(object) if object.len() == 2 => side(object.get("height")).zip(side(object.get("width"))),
        Value::Number(_) => side(Some(value)).map(|side| (side, side)),
        _ => None,
    }
}

fn side(value: Option<&Value>) -> Option<usize> {
    let side = usize::try_from(value?.as_u64()?).ok()?;
    (1..=MAX_SIDE).contains(&side).then_some(side)
}
