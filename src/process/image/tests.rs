//! Against PIL and transformers (resample.json, the vit fixtures), and against files that are wrong.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::resample::{Filter, Kernel};
use super::*;
use crate::process::tests::{expected, fixture, spec};

const MAX_PIXELS: u64 = 50_000_000;

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn reference(group: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("resample.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all[group].as_array().unwrap().clone()
}

fn pair(value: &Value) -> (usize, usize) {
    (value[0].as_u64().unwrap() as usize, value[1].as_u64().unwrap() as usize)
}

/// The image that make_resample.py made.
fn noise(width: usize, height: usize, channels: usize) -> Raster {
    let mut x = (width * 65_536 + height) as u32;
    let data = (0..width * height * channels).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    });
    Raster { data: data.collect(), height, width, channels }
}

#[test]
fn resizing_gives_pils_bytes() {
    let cases = reference("resize");
    assert_eq!(cases.len(), 80);
    for case in cases {
        let filter = match case["filter"].as_u64().unwrap() {
            0 => Filter::Nearest,
            1 => Filter::Convolution(Kernel::Lanczos),
            2 => Filter::Convolution(Kernel::Bilinear),
            _ => Filter::Convolution(Kernel::Bicubic),
        };
        let ((width, height), (new_width, new_height)) = (pair(&case["from"]), pair(&case["to"]));
        let channels = case["channels"].as_u64().unwrap() as usize;
        let out = resample::resize(&noise(width, height, channels), new_width, new_height, filter);
        assert_eq!((out.width, out.height, out.channels), (new_width, new_height, channels));
        assert_eq!(
            out.data,
            bytes(&case["out"]),
            "{filter:?}, {channels} channels, {width} x {height} to {new_width} x {new_height}"
        );
    }
}

#[test]
fn every_mode_of_png_converts_as_pil_converts_it() {
    let cases = reference("convert");
    assert_eq!(cases.len(), 16);
    for case in cases {
        for (channels, mode) in [(3, "rgb"), (1, "grey")] {
            let raster = decode::decode(&bytes(&case["png"]), channels, MAX_PIXELS).unwrap();
            assert_eq!((raster.width, raster.height), pair(&case["size"]));
            assert_eq!(raster.data, bytes(&case[mode]), "{} to {mode}", case["name"]);
        }
    }
}

#[test]
fn the_middle_is_cut_as_transformers_cuts_it() {
    let cases = reference("crop");
    assert_eq!(cases.len(), 20);
    for case in cases {
        let ((width, height), (new_width, new_height)) = (pair(&case["from"]), pair(&case["to"]));
        let out = crop(&noise(width, height, 3), new_height, new_width);
        assert_eq!(out.data, bytes(&case["out"]), "{width} x {height} to {new_width} x {new_height}");
    }
}

#[test]
fn the_shortest_edge_gives_transformers_sizes() {
    let cases = reference("shortest_edge");
    assert_eq!(cases.len(), 21);
    for case in cases {
        let numbers: Vec<usize> = case.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let [width, height, edge, new_width, new_height] = numbers[..] else { panic!("{case}") };
        let image = Raster { data: Vec::new(), height, width, channels: 3 };
        assert_eq!(target(Size::ShortestEdge(edge), &image).unwrap(), (new_height, new_width), "{case}");
    }
}

#[test]
fn an_image_whose_other_edge_would_be_enormous_is_refused() {
    let image = Raster { data: Vec::new(), height: 65_535, width: 1, channels: 3 };
    let error = target(Size::ShortestEdge(4096), &image).unwrap_err();
    assert!(error.to_string().contains("would be resized to 1099494850560 pixels"), "{error}");
}

#[test]
fn the_fixtures_are_resized_to_the_references_bytes() {
    for name in ["vit-classify", "vit-classify-bicubic"] {
        let processor = ImageProcessor::load(&spec(name), &Limits::default()).unwrap();
        let resize = processor.steps.resize.as_ref().unwrap();
        let cases = expected(name);
        assert_eq!(cases.len(), 12);
        for case in cases {
            let file = bytes(&case["input"]["image"]);
            let image = decode::decode(&file, 3, MAX_PIXELS).unwrap();
            let (height, width) = target(resize.size, &image).unwrap();
            let resized = resample::resize(&image, width, height, resize.filter);
            let wanted = bytes(&case["resized"]);
            // decoders of JPEG differ in their rounding
            let allowed = if file.starts_with(b"\xff\xd8") { 2 } else { 0 };
            assert_eq!(resized.data.len(), wanted.len());
            let worst = resized.data.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= allowed, "{name}: {worst} of 255 off in an image of {} x {}", image.width, image.height);
        }
    }
}

#[test]
fn pixels_come_normalised_one_plane_a_channel() {
    let processor = ImageProcessor::load(&spec("vit-classify-bicubic"), &Limits::default()).unwrap();
    let case = &expected("vit-classify-bicubic")[0];
    let pixels = processor.prepare(&bytes(&case["input"]["image"])).unwrap();
    assert_eq!((pixels.channels, pixels.height, pixels.width), (3, 24, 40));
    let resized = bytes(&case["resized"]);
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    for (at, byte) in resized.iter().enumerate() {
        let (pixel, channel) = (at / 3, at % 3);
        let wanted = (f64::from(*byte) / 255.0 - mean[channel]) / std[channel];
        let got = pixels.data[channel * 24 * 40 + pixel];
        assert!((f64::from(got) - wanted).abs() < 1e-6, "{at}: {got} {wanted}");
    }
}

/// A version of one channel whose images are as in `preprocessor`.
fn grey(preprocessor: Value, image_size: usize) -> Result<ImageProcessor> {
    let mut spec = spec("vit-classify");
    spec.config["num_channels"] = json!(1);
    spec.config["image_size"] = json!(image_size);
    spec.preprocessor = Some(preprocessor);
    ImageProcessor::load(&spec, &Limits::default())
}

fn png_of(raster: &Raster) -> Vec<u8> {
    let color = if raster.channels == 1 { image::ColorType::L8 } else { image::ColorType::Rgb8 };
    let mut file = std::io::Cursor::new(Vec::new());
    let (width, height) = (raster.width as u32, raster.height as u32);
    image::write_buffer_with_format(&mut file, &raster.data, width, height, color, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn a_model_of_one_channel_gets_grey_from_colour() {
    let config = json!({"size": 4, "image_mean": [0.0], "image_std": 1.0, "rescale_factor": 1.0});
    let processor = grey(config, 4).unwrap();
    let colour = Raster { data: [200u8, 100, 50].repeat(16), height: 4, width: 4, channels: 3 };
    let pixels = processor.prepare(&png_of(&colour)).unwrap();
    assert_eq!((pixels.channels, pixels.data), (1, vec![124.0; 16]));
}

#[test]
fn steps_that_are_off_are_left_out_and_the_size_is_checked() {
    let config = json!({"do_resize": false, "do_rescale": false, "do_normalize": false});
    let processor = grey(config, 4).unwrap();
    let image = noise(4, 4, 1);
    let pixels = processor.prepare(&png_of(&image)).unwrap();
    assert_eq!(pixels.data, image.data.iter().map(|b| f32::from(*b)).collect::<Vec<_>>());
    let error = processor.prepare(&png_of(&noise(5, 4, 1))).unwrap_err();
    assert!(error.to_string().contains("is 5 x 4 pixels"), "{error}");
}

#[test]
fn a_crop_after_the_shortest_edge_makes_any_image_fit() {
    let config = json!({"size": {"shortest_edge": 6}, "do_center_crop": true, "crop_size": {"height": 4, "width": 4}});
    let processor = grey(config, 4).unwrap();
    for (width, height) in [(12, 7), (3, 30), (4, 4)] {
        let pixels = processor.prepare(&png_of(&noise(width, height, 1))).unwrap();
        assert_eq!((pixels.width, pixels.height, pixels.data.len()), (4, 4, 16));
    }
}

#[test]
fn preprocessors_that_ask_for_more_are_refused_by_name() {
    for (config, told) in [
        (json!({"size": 4, "do_pad": true}), "the feature 'do_pad' is not supported"),
        (json!({"size": 4, "do_reduce_labels": 1}), "the feature 'do_reduce_labels' is not supported"),
        (
            json!({"size": 4, "image_processor_type": "BlipImageProcessor"}),
            "'image_processor_type' is \"BlipImageProcessor\"",
        ),
        (json!({"size": 4, "data_format": "channels_last"}), "'data_format' is"),
        (json!({"size": 4, "resample": 5}), "'resample' is 5"),
        (json!({"size": {"longest_edge": 4}}), "'size' is"),
        (json!({"size": 0}), "'size' is 0"),
        (json!({"size": 100_000}), "'size' is 100000"),
        (json!({"size": 4, "do_center_crop": true}), "'crop_size' is null"),
        (json!({"size": 4, "image_mean": [0.5, 0.5, 0.5]}), "'image_mean' is [0.5,0.5,0.5]"),
        (json!({"size": 4, "image_std": [0.0]}), "'image_std' is [0.0]"),
        (json!({"size": 4, "do_rescale": "yes"}), "'do_rescale' is \"yes\""),
        (json!({"size": 8}), "it makes images of 8 x 8 pixels"),
        (json!([]), "not a JSON object"),
    ] {
        let error = grey(config.clone(), 4).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("preprocessor_config.json"), "{config}: {error}");
    }
}

#[test]
fn settings_that_change_nothing_are_accepted() {
    let config = json!({
        "size": {"height": 4, "width": 4}, "do_pad": null, "do_thumbnail": false, "do_convert_rgb": true,
        "image_processor_type": "ViTImageProcessorFast", "data_format": "channels_first", "crop_size": null,
    });
    grey(config, 4).unwrap();
}

#[test]
fn a_version_without_a_preprocessor_or_with_other_channels_cannot_load() {
    let mut without = spec("vit-classify");
    without.preprocessor = None;
    let error = ImageProcessor::load(&without, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json: missing"), "{error}");
    let mut four = spec("vit-classify");
    four.config["num_channels"] = json!(4);
    let error = ImageProcessor::load(&four, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("'num_channels' is 4, expected 1 or 3"), "{error}");
}

/// The file of the last fixture, and where its frame header has height and width.
fn jpeg() -> (Vec<u8>, usize) {
    let file = bytes(&expected("vit-classify")[11]["input"]["image"]);
    let frame = file.windows(2).position(|pair| pair == b"\xff\xc0").unwrap();
    (file, frame + 5)
}

/// The header and no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    file.extend(width.to_be_bytes());
    file.extend(height.to_be_bytes());
    file.extend(b"\x08\x02\0\0\0\0\0\0\0");
    file
}

#[test]
fn an_image_that_claims_to_be_enormous_is_refused_from_its_header() {
    let limit = |file: &[u8]| match decode::decode(file, 3, MAX_PIXELS).unwrap_err() {
        Error::TooLarge { got, limit, .. } => (got, limit),
        other => panic!("{other}"),
    };
    assert_eq!(limit(&png_header(100_000, 100_000)), (100_000, 65_535));
    assert_eq!(limit(&png_header(u32::MAX, 1)), (4_294_967_295, 65_535));
    assert_eq!(limit(&png_header(60_000, 60_000)), (3_600_000_000, MAX_PIXELS));
    let (mut file, size) = jpeg();
    file[size..size + 4].fill(0xff);
    assert_eq!(limit(&file), (65_535 * 65_535, MAX_PIXELS));
}

#[test]
fn sixteen_bit_pixels_count_for_the_memory_that_they_take() {
    let case = reference("convert").into_iter().find(|c| c["name"] == "rgba 16 bits").unwrap();
    let file = bytes(&case["png"]);
    assert!(decode::decode(&file, 3, 30).is_ok());
    let error = decode::decode(&file, 3, 29).unwrap_err();
    assert!(matches!(error, Error::TooLarge { got: 120, limit: 116, .. }), "{error}");
    assert!(matches!(decode::decode(&file, 3, 14).unwrap_err(), Error::TooLarge { got: 15, limit: 14, .. }));
}

#[test]
fn what_is_not_an_image_is_told_as_what_it_is() {
    for (file, told) in [
        (&b""[..], "neither a PNG nor a JPEG"),
        (b"hello", "neither a PNG nor a JPEG"),
        (b"GIF89a\x01\0\x01\0", "is a Gif file"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is a WebP file"),
        (b"\x89PNG\r\n\x1a\n", "the PNG has no header"),
        (b"\xff\xd8\xff", "the JPEG is cut off"),
    ] {
        let error = decode::decode(file, 3, MAX_PIXELS).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    let error = decode::decode(&png_header(0, 5), 3, MAX_PIXELS).unwrap_err().to_string();
    assert_eq!(error, "the image has no pixels");
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let png = bytes(&expected("vit-classify")[1]["input"]["image"]);
    let (jpeg, _) = jpeg();
    // a PNG's last chunk is its end, which holds no pixels
    for (file, whole) in [(&png, png.len() - 12), (&jpeg, jpeg.len())] {
        assert!(decode::decode(file, 3, MAX_PIXELS).is_ok());
        for len in (0..whole - 4).step_by(7) {
            let error = decode::decode(&file[..len], 3, MAX_PIXELS).unwrap_err();
            assert!(matches!(error, Error::BadRequest { .. }), "{len}: {error}");
        }
    }
}

#[test]
fn a_thumbnails_end_is_not_the_images() {
    let (file, _) = jpeg();
    // an application segment that holds an end marker, and no end after the scan
    let mut cut = file[..2].to_vec();
    cut.extend(b"\xff\xe1\0\x04\xff\xd9");
    cut.extend(&file[2..]);
    assert!(decode::decode(&cut, 3, MAX_PIXELS).is_ok());
    cut.truncate(cut.len() - 2);
    assert!(decode::decode(&cut, 3, MAX_PIXELS).unwrap_err().to_string().contains("cut off"));
}

#[test]
fn exif_does_not_turn_an_image() {
    // orientation 6: to be shown turned by a quarter
    let exif = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let (file, _) = jpeg();
    let mut turned = file[..2].to_vec();
    turned.extend(exif);
    turned.extend(&file[2..]);
    let plain = decode::decode(&file, 3, MAX_PIXELS).unwrap();
    assert_eq!((plain.width, plain.height), (48, 40));
    assert_eq!(decode::decode(&turned, 3, MAX_PIXELS).unwrap(), plain);
}

proptest! {
    #[test]
    fn damaged_files_are_refused_or_read_but_never_panic(
        which in 0usize..12,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = bytes(&expected("vit-classify")[which]["input"]["image"]);
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        match decode::decode(&file, 3, 1 << 20) {
            Ok(raster) => prop_assert_eq!(raster.data.len(), raster.width * raster.height * 3),
            Err(error) => {
                let refused = matches!(error, Error::BadRequest { .. } | Error::TooLarge { .. });
                prop_assert!(refused, "{}", error);
            }
        }
    }

    #[test]
    fn resizing_keeps_a_flat_image_flat(
        (w, h, new_w, new_h) in (1usize..90, 1usize..90, 1usize..40, 1usize..40),
        value in any::<u8>(),
        kernel in prop::sample::select(vec![Kernel::Lanczos, Kernel::Bilinear, Kernel::Bicubic]),
    ) {
        let flat = Raster { data: vec![value; w * h], height: h, width: w, channels: 1 };
        let out = resample::resize(&flat, new_w, new_h, Filter::Convolution(kernel));
        prop_assert_eq!(out.data, vec![value; new_w * new_h]);
    }
}
