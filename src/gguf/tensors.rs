//! Tensor infos: names, shapes and formats, and offsets that must tile the rest of the file, but for padding.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;

use super::cursor::Cursor;
use super::{Metadata, shown};

/// As the format says.
const LONGEST_NAME: u64 = 64;
/// ggml's limit.
const MOST_DIMENSIONS: u32 = 4;
/// The length of a name, the number of dimensions, a format and an offset.
const LEAST_INFO: u64 = 8 + 4 + 4 + 8;
/// The largest models have a few thousand.
const MOST_TENSORS: u64 = 1 << 17;
const ALIGNMENT: &str = "general.alignment";
/// Where the key is absent.
const USUAL_ALIGNMENT: usize = 32;
/// More than a page is nothing that a writer has a use for.
const LARGEST_ALIGNMENT: usize = 1 << 16;

/// The number formats that are read. Values of one block share what they are scaled by.
#[allow(non_camel_case_types, reason = "as ggml writes them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q8_0,
    Q4_K,
    Q6_K,
}

impl Format {
    pub const ALL: [Format; 8] =
        [Format::F32, Format::F16, Format::BF16, Format::Q4_0, Format::Q4_1, Format::Q8_0, Format::Q4_K, Format::Q6_K];

    /// The number that stands for it (`ggml_type` of ggml.h).
    pub fn number(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q8_0 => 8,
            Format::Q4_K => 12,
            Format::Q6_K => 14,
            Format::BF16 => 30,
        }
    }

    /// Values of one block, and bytes of it.
    pub fn block(self) -> (usize, u64) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::BF16 => (1, 2),
            Format::Q4_0 => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q8_0 => (32, 34),
            Format::Q4_K => (256, 144),
            Format::Q6_K => (256, 210),
        }
    }

    fn parse(number: u32) -> Result<Format, String> {
        let found = Self::ALL.into_iter().find(|format| format.number() == number);
        found.ok_or_else(|| match foreign(number) {
            Some(name) => format!("its format {name} is not read; {} are", names()),
            None => format!("its format {number} is unknown"),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn names() -> String {
    Format::ALL.map(|format| format.to_string()).join(", ")
}

/// What ggml calls the formats that are not read.
fn foreign(number: u32) -> Option<&'static str> {
    Some(match number {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return None,
    })
}

/// One tensor as its file holds it, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    /// The length of a row first: the reverse of what everybody else writes.
    pub dims: Vec<usize>,
    pub format: Format,
    /// In bytes, from the start of the file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// Infos as the file has them, each by itself in order; offsets count from where the data will begin.
pub(super) fn read<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<Vec<Tensor>, String> {
    if count > MOST_TENSORS {
        return Err(format!("it claims {count} tensors, the limit is {MOST_TENSORS}"));
    }
    cursor.possible(count, LEAST_INFO, "its tensors")?;
    let (mut tensors, mut names) = (Vec::new(), HashSet::new());
    for number in 1..=count {
        let tensor = info(cursor, number)?;
        if !names.insert(tensor.name.clone()) {
            return Err(format!("tensor {} is there twice", shown(&tensor.name)));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn info<R: Read>(cursor: &mut Cursor<R>, number: u64) -> Result<Tensor, String> {
    let name = cursor.string(LONGEST_NAME, &format!("the name of tensor {number}"))?;
    let what = format!("tensor {}", shown(&name));
    let dimensions = cursor.u32(&what)?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!("{what}: it has {dimensions} dimensions, the limit is {MOST_DIMENSIONS}"));
    }
    let mut dims = Vec::new();
    for _ in 0..dimensions {
        let size = cursor.u64(&what)?;
        dims.push(usize::try_from(size).map_err(|_| format!("{what}: its dimension {size} is too large"))?);
    }
    let format = Format::parse(cursor.u32(&what)?).map_err(|why| format!("{what}: {why}"))?;
    let offset = cursor.u64(&what)?;
    let len = byte_len(&dims, format).map_err(|why| format!("{what}: {why}"))?;
    Ok(Tensor { name, dims, format, offset, len })
}

fn byte_len(dims: &[usize], format: Format) -> Result<u64, String> {
    let (values, bytes) = format.block();
    let row = dims.first().copied().unwrap_or(1);
    if row % values != 0 {
        return Err(format!("its rows of {row} values are no whole blocks of {values}, as {format} has"));
    }
    let elements = dims.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let len = elements.and_then(|elements| ((elements / values) as u64).checked_mul(bytes));
    len.ok_or_else(|| format!("shape {dims:?} overflows"))
}

/// What the data and every tensor begin at a multiple of.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, String> {
    let alignment = metadata.usize(ALIGNMENT)?.unwrap_or(USUAL_ALIGNMENT);
    let fits = alignment.is_power_of_two() && (8..=LARGEST_ALIGNMENT).contains(&alignment);
    match fits {
        true => Ok(alignment as u64),
        false => Err(format!("{ALIGNMENT}: expected a power of two from 8 to {LARGEST_ALIGNMENT}, found {alignment}")),
    }
}

/// Puts tensors where the file has them, in the order of their bytes: each begins where the one before ends, or at the next
/// multiple of the alignment from there. The last one's padding may be missing.
pub(super) fn lay_out(
    mut tensors: Vec<Tensor>,
    (start, file_len): (u64, u64),
    alignment: u64,
) -> Result<Vec<Tensor>, String> {
    // Empty tensors share the offset of the next one; the length puts them before it.
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    let data = file_len.saturating_sub(start);
    let (mut end, mut before) = (0u64, String::new());
    for tensor in &mut tensors {
        let name = shown(&tensor.name);
        let (offset, next) = (tensor.offset, end.next_multiple_of(alignment));
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name}: its offset {offset} is no multiple of the alignment {alignment}"));
        }
        if offset != next {
            // Either of the two may be what lies.
            let how = if offset < next { "overlaps" } else { "leaves a gap after" };
            let before = if before.is_empty() { "the header" } else { &before };
            return Err(format!(
                "tensor {name}: its offset {offset} {how} {before}, which ends at {end}: expected {next}"
            ));
        }
        end = match offset.checked_add(tensor.len).filter(|end| *end <= data) {
            Some(end) => end,
            None => {
                let len = tensor.len;
                return Err(format!("truncated: tensor {name} has {len} bytes from {offset} on, of {data} of data"));
            }
        };
        tensor.offset += start;
        before = name;
    }
    if data > end.next_multiple_of(alignment) {
        return Err(format!("{} bytes follow the last tensor", data - end));
    }
    Ok(tensors)
}
