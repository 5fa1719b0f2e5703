//! PNG and JPEG files to bytes of grey or RGB, converted as PIL's `Image.convert` does.
//!
//! The kind is told from the content, never from a name. Dimensions are read from the header and held against the
//! limits before anything is allocated for pixels. Colour profiles and EXIF (orientation too) are ignored, as PIL does.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat};

use crate::error::{Error, Result};

/// The longest side of an image that is read (JPEG can have no longer one).
const MAX_SIDE: u32 = 65_535;
/// What a pixel may take when decoded. PNGs of 16 bits and four channels take twice as much, and may have half as
/// many pixels.
const BYTES_PER_PIXEL: u64 = 4;

/// What a PNG's texts and colour profile may take when decoded, beside its pixels. A larger profile is left out, larger texts
/// are refused.
const ANCILLARY_BYTES: u64 = 8 << 20;
/// Passes over the pixels of a progressive JPEG; encoders write about ten. Each costs as much as the first.
const MAX_SCANS: usize = 32;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG_SIGNATURE: &[u8] = b"\xff\xd8\xff";

/// Bytes of pixels, row by row, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raster {
    pub(super) data: Vec<u8>,
    pub(super) height: usize,
    pub(super) width: usize,
    /// 1 (grey) or 3 (RGB).
    pub(super) channels: usize,
}

/// Decodes a file into `channels` (1 or 3) channels.
pub(super) fn decode(bytes: &[u8], channels: usize, max_pixels: u64) -> Result<Raster> {
    let limits = Limits { pixels: max_pixels, bytes: max_pixels.saturating_mul(BYTES_PER_PIXEL) };
    let image = if bytes.starts_with(PNG_SIGNATURE) {
        decode_png(bytes, &limits)?
    } else if bytes.starts_with(JPEG_SIGNATURE) {
        decode_jpeg(bytes, &limits)?
    } else {
        return Err(Error::bad_request(not_an_image(bytes)));
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Raster { data: convert(image, channels)?, height, width, channels })
}

struct Limits {
    pixels: u64,
    bytes: u64,
}

impl Limits {
    fn check(&self, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(Error::bad_request("the image has no pixels"));
        }
        let side = width.max(height);
        if side > MAX_SIDE {
            let (got, limit) = (u64::from(side), u64::from(MAX_SIDE));
            return Err(Error::TooLarge { what: "the longer side of the image in pixels", got, limit });
        }
        let got = u64::from(width) * u64::from(height);
        if got > self.pixels {
            return Err(Error::TooLarge { what: "the number of pixels of the image", got, limit: self.pixels });
        }
        Ok(())
    }

    fn check_bytes(&self, got: u64) -> Result<()> {
        if got > self.bytes {
            return Err(Error::TooLarge { what: "the decoded size of the image in bytes", got, limit: self.bytes });
        }
        Ok(())
    }
}

fn decode_png(bytes: &[u8], limits: &Limits) -> Result<DynamicImage> {
    // signature, then the header chunk: length, "IHDR", width, height. The decoder allocates a row when it is made.
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let (Some(b"IHDR"), Some(width), Some(height)) = (bytes.get(12..16), number(16), number(20)) else {
        return Err(Error::bad_request("the image cannot be decoded: the PNG has no header"));
    };
    limits.check(width, height)?;
    if chunks(bytes).any(|(kind, length)| kind == b"PLTE" && length % 3 != 0) {
        // The decoder reads past the end of what is left of the last colour (png 0.18.1).
        return Err(Error::bad_request("the image cannot be decoded: its palette ends within a colour"));
    }
    let mut allowed = image::Limits::no_limits();
    // As much as the pixels come to, at 16 bits and four channels: a small image needs no room for a large profile.
    let pixels = u64::from(width) * u64::from(height) * 8;
    allowed.max_alloc = Some(limits.bytes.min(pixels) + ANCILLARY_BYTES);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), allowed).map_err(undecodable)?;
    read_pixels(decoder, limits)
}

/// The kinds of a PNG's chunks and how long each says that it is, in the order of the file.
///
/// Source: PNG specification (third edition), 5.3, "Chunk layout".
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    let mut rest = bytes.get(PNG_SIGNATURE.len()..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let length = u32::from_be_bytes(*length);
        let kind = after.get(..4)?;
        // Its kind, its data and a checksum.
        let next = usize::try_from(length).ok()?.checked_add(8)?;
        rest = after.get(next..).unwrap_or_default();
        Some((kind, length))
    })
}

fn decode_jpeg(bytes: &[u8], limits: &Limits) -> Result<DynamicImage> {
    let scans = scans(bytes);
    if !scans.windows(2).any(|pair| pair == b"\xff\xd9") {
        return Err(Error::bad_request("the image cannot be decoded: the JPEG is cut off"));
    }
    // Within pixels no byte of this value is followed by another than 0 or a restart marker.
    let count = scans.windows(2).filter(|pair| pair == b"\xff\xda").count();
    if count > MAX_SCANS {
        let (got, limit) = (count as u64, MAX_SCANS as u64);
        return Err(Error::TooLarge { what: "the number of scans of the image", got, limit });
    }
    let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    read_pixels(decoder, limits)
}

fn read_pixels(decoder: impl ImageDecoder, limits: &Limits) -> Result<DynamicImage> {
    limits.check_bytes(decoder.total_bytes())?;
    DynamicImage::from_decoder(decoder).map_err(undecodable)
}

fn undecodable(error: ImageError) -> Error {
    Error::bad_request(format!("the image cannot be decoded: {error}"))
}

fn not_an_image(bytes: &[u8]) -> String {
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format!("the image is a damaged {format:?} file"),
        Ok(format) => format!("the image is a {format:?} file, this server reads PNG and JPEG"),
        Err(_) => "the image is neither a PNG nor a JPEG file".to_string(),
    }
}

/// A JPEG from its first scan on, where its pixels begin; nothing where there is none. The decoder makes up what is
/// missing at the end (grey); PIL refuses. Thumbnails in the headers have markers of their own, so headers are stepped over.
fn scans(bytes: &[u8]) -> &[u8] {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some(&[start, marker, high, low]) = bytes.get(at..at + 4) {
        match (start, marker) {
            (0xff, START_OF_SCAN) => return &bytes[at..],
            // markers that stand alone
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0x02..=0xfe) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            // fill bytes
            _ => at += 1,
        }
    }
    &[]
}

fn convert(image: DynamicImage, channels: usize) -> Result<Vec<u8>> {
    Ok(match image {
        DynamicImage::ImageLuma8(image) => from_grey(image.into_raw(), channels),
        DynamicImage::ImageLumaA8(image) => from_grey(every(&image, 2), channels),
        // PIL keeps 16 bits of grey and clips them when it converts
        DynamicImage::ImageLuma16(image) => from_grey(image.iter().map(|v| (*v).min(255) as u8).collect(), channels),
        // but halves all other 16-bit pixels when it reads them
        DynamicImage::ImageLumaA16(image) => from_grey(image.iter().step_by(2).map(high).collect(), channels),
        DynamicImage::ImageRgb8(image) => from_rgb(image.into_raw(), 3, channels),
        DynamicImage::ImageRgba8(image) => from_rgb(image.into_raw(), 4, channels),
        DynamicImage::ImageRgb16(image) => from_rgb(image.iter().map(high).collect(), 3, channels),
        DynamicImage::ImageRgba16(image) => from_rgb(image.iter().map(high).collect(), 4, channels),
        other => return Err(Error::bad_request(format!("images of {:?} pixels are not supported", other.color()))),
    })
}

fn high(value: &u16) -> u8 {
    (value >> 8) as u8
}

fn every(data: &[u8], step: usize) -> Vec<u8> {
    data.iter().copied().step_by(step).collect()
}

fn from_grey(grey: Vec<u8>, channels: usize) -> Vec<u8> {
    if channels == 1 { grey } else { grey.into_iter().flat_map(|v| [v; 3]).collect() }
}

/// Pixels of `stride` bytes, of which the first three are colour: alpha is dropped, not blended.
fn from_rgb(data: Vec<u8>, stride: usize, channels: usize) -> Vec<u8> {
    match (stride, channels) {
        (3, 3) => data,
        (_, 3) => data.chunks_exact(stride).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        _ => data.chunks_exact(stride).map(|p| luma(p[0], p[1], p[2])).collect(),
    }
}

/// ITU-R 601-2, in PIL's integers.
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}
