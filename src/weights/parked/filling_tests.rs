use candle_core::DType;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;

use super::super::super::cast;
use super::super::super::fixtures::{Folder, Given, f32s, given};
use super::*;
use crate::ops::WeightLayout;
use crate::weights::Below;

/// Memory that is not pinned, and how far each call said that it was written.
struct Pages {
    words: Vec<i64>,
    ends: Vec<usize>,
    /// Refuses from here on.
    full: usize,
}

impl Shelf for Pages {
    fn bytes_mut(&mut self) -> &mut [u8] {
        cast::bytes_mut(&mut self.words)
    }

    fn written(&mut self, end: usize) -> Result<()> {
        self.ends.push(end);
        if end > self.full { Err(Error::conflict("it is full")) } else { Ok(()) }
    }
}

fn want(name: &str, shape: &[usize], dtype: DType) -> Wanted {
    Wanted { name: name.to_owned(), below: Vec::new(), shape: shape.to_vec(), dtype, layout: WeightLayout::Rows }
}

/// Fills as much memory as the layout asks for.
fn filled(folder: &Folder, wanted: &[Wanted], full: usize) -> Result<(Pages, HashMap<TensorKey, Extent>)> {
    let (index, manifest) = folder.indexed();
    fill_with(&index, &manifest, wanted, full)
}

fn fill_with(
    index: &Index,
    manifest: &Manifest,
    wanted: &[Wanted],
    full: usize,
) -> Result<(Pages, HashMap<TensorKey, Extent>)> {
    let layout = Layout::of(wanted, index, manifest)?;
    let mut pages = Pages { words: vec![0; layout.bytes / 8], ends: Vec::new(), full };
    let tensors = fill(layout.reads, &mut pages, (index, &Progress::new()))?;
    Ok((pages, tensors))
}

/// A tensor of several pieces, and a last one that is not full.
fn large() -> (Given, Vec<f32>) {
    let values: Vec<f32> = (0..PIECE * 3 / 8 + 12).map(|value| value as f32 - 1000.25).collect();
    (f32s("large", &[values.len() / 4, 4], &values), values)
}

fn bytes_of<const N: usize, T>(values: &[T], bytes: fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

#[test]
fn what_is_kept_is_what_a_load_would_make_of_the_file() {
    let (tensor, values) = large();
    let folder = Folder::with(&[tensor, f32s("odd", &[3], &[1.0, 2.0, 3.0])]);
    let shape = [values.len() / 4, 4];
    for dtype in [DType::F32, DType::BF16] {
        let wanted = [want("odd", &[3], DType::F32), want("large", &shape, dtype)];
        let (mut pages, tensors) = filled(&folder, &wanted, usize::MAX).unwrap();
        let expected = match dtype {
            DType::F32 => bytes_of(&values, |value| value.to_le_bytes()),
            _ => bytes_of(&values, |value| bf16::from_f32(*value).to_le_bytes()),
        };
        let (index, manifest) = folder.indexed();
        let extent = |want: &Wanted| tensors[&key_of(want, &index, &manifest).unwrap()];
        let Extent { at, bytes } = extent(&wanted[1]);
        assert_eq!(pages.bytes_mut()[at..at + bytes], expected);
        let Extent { at, bytes } = extent(&wanted[0]);
        assert_eq!(pages.bytes_mut()[at..at + bytes], bytes_of(&[1f32, 2.0, 3.0], |value| value.to_le_bytes()));
    }
}

#[test]
fn pieces_are_told_as_written_in_their_order_and_once() {
    let (tensor, values) = large();
    let folder = Folder::with(&[tensor, f32s("after", &[3], &[1.0, 2.0, 3.0])]);
    let wanted = [want("after", &[3], DType::F32), want("large", &[values.len() / 4, 4], DType::F32)];
    let (pages, tensors) = filled(&folder, &wanted, usize::MAX).unwrap();
    assert!(pages.ends.is_sorted_by(|a, b| a < b), "{:?}", pages.ends);
    let last = tensors.values().map(|extent| extent.at + extent.bytes).max();
    assert_eq!(pages.ends.last().copied(), last);
    assert!(pages.ends.contains(&PIECE), "no part crosses a piece's end: {:?}", pages.ends);
}

#[test]
fn equal_tensors_are_kept_once_and_begin_on_borders() {
    let folder = Folder::with(&[f32s("a", &[3], &[1.0; 3]), f32s("b", &[3], &[1.0; 3]), f32s("c", &[3], &[2.0; 3])]);
    let (index, manifest) = folder.indexed();
    let wanted = ["a", "b", "c"].map(|name| want(name, &[3], DType::F32));
    let layout = Layout::of(&wanted, &index, &manifest).unwrap();
    let extents: Vec<Extent> = layout.reads.iter().map(|(_, _, extent)| *extent).collect();
    assert_eq!(extents, [Extent { at: 0, bytes: 12 }, Extent { at: BORDER, bytes: 12 }]);
    assert_eq!(layout.bytes, PAGES);
}

#[test]
fn bytes_that_changed_and_values_that_are_no_numbers_are_not_kept() {
    let folder = Folder::with(&[f32s("w", &[3], &[1.0, 2.0, 3.0])]);
    let (index, manifest) = folder.indexed();
    let at = index.get("w").unwrap().offset;
    folder.patch("model.safetensors", at, &[7]);
    let told = |result: Result<(Pages, HashMap<TensorKey, Extent>)>| result.err().unwrap().to_string();
    let wanted = [want("w", &[3], DType::F32)];
    assert!(told(fill_with(&index, &manifest, &wanted, usize::MAX)).contains("the file changed"));
    let folder = Folder::with(&[f32s("w", &[2], &[1.0, f32::NAN])]);
    assert!(told(filled(&folder, &[want("w", &[2], DType::F32)], usize::MAX)).contains("non-finite"));
    let folder = Folder::with(&[f32s("w", &[2], &[1.0, 1e30])]);
    assert!(told(filled(&folder, &[want("w", &[2], DType::F16)], usize::MAX)).contains("too large for f16"));
}

#[test]
fn it_ends_where_memory_cannot_be_pinned_and_where_nobody_wants_it_any_more() {
    let (tensor, values) = large();
    let folder = Folder::with(&[tensor]);
    let wanted = [want("large", &[values.len() / 4, 4], DType::F32)];
    assert_eq!(filled(&folder, &wanted, PIECE - 1).err().unwrap().to_string(), "it is full");
    let (index, manifest) = folder.indexed();
    let layout = Layout::of(&wanted, &index, &manifest).unwrap();
    let progress = Progress::new();
    progress.cancel();
    let mut pages = Pages { words: vec![0; layout.bytes / 8], ends: Vec::new(), full: usize::MAX };
    assert!(fill(layout.reads, &mut pages, (&index, &progress)).is_err());
    assert!(pages.ends.is_empty());
}

/// Three as one, each of a shape.
fn want_three(shape: &[usize], dtype: DType) -> Wanted {
    let below = ["k", "v"].map(|name| Below { name: name.to_owned(), rows: shape.first().copied().unwrap_or(1) });
    Wanted { below: below.to_vec(), ..want("q", shape, dtype) }
}

#[test]
fn several_that_are_one_on_the_device_lie_one_after_the_other() {
    // The first ends on no border of eight bytes, and the last crosses a piece's end.
    for (count, shape) in [(3, vec![1, 3]), (PIECE / 6 + 1, vec![PIECE / 6 + 1])] {
        let values: Vec<f32> = (0..3 * count).map(|value| (value % 2000) as f32 - 1000.0).collect();
        let part = |number: usize| &values[number * count..(number + 1) * count];
        let half = |name: &str, number: usize| {
            let bytes = bytes_of(part(number), |value| f16::from_f32(*value).to_le_bytes());
            given(name, Dtype::F16, &shape, bytes)
        };
        let folder = Folder::with(&[half("v", 2), f32s("k", &shape, part(1)), half("q", 0)]);
        for dtype in [DType::F16, DType::F32] {
            let wanted = want_three(&shape, dtype);
            let (mut pages, tensors) = filled(&folder, std::slice::from_ref(&wanted), usize::MAX).unwrap();
            let (index, manifest) = folder.indexed();
            let Extent { at, bytes } = tensors[&key_of(&wanted, &index, &manifest).unwrap()];
            let expected = match dtype {
                DType::F16 => bytes_of(&values, |value| f16::from_f32(*value).to_le_bytes()),
                _ => bytes_of(&values, |value| value.to_le_bytes()),
            };
            assert_eq!((tensors.len(), bytes), (1, expected.len()));
            assert!(pages.bytes_mut()[at..at + bytes] == expected, "{shape:?} as {}", dtype.as_str());
            assert!(pages.ends.is_sorted_by(|a, b| a < b), "{:?}", pages.ends);
        }
    }
}

#[test]
fn the_part_that_is_not_kept_is_named() {
    let broken = |name: &str, bad| f32s(name, &[2], &[1.0, bad]);
    for (bad, says) in [(f32::NAN, "'k' holds non-finite"), (1e30, "'k' holds values that are too large for f16")] {
        let folder = Folder::with(&[broken("q", 2.0), broken("k", bad), broken("v", 2.0)]);
        let error = filled(&folder, &[want_three(&[2], DType::F16)], usize::MAX).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    let folder = Folder::with(&[broken("q", 2.0), broken("k", 2.0), broken("v", 2.0)]);
    let (index, manifest) = folder.indexed();
    folder.patch("model.safetensors", index.get("v").unwrap().offset, &[7]);
    let error = fill_with(&index, &manifest, &[want_three(&[2], DType::F16)], usize::MAX).err().unwrap().to_string();
    assert!(error.contains("tensor 'v' is not what its manifest recorded"), "{error}");
}

proptest! {
    #[test]
    fn runs_are_the_extent_cut_at_pieces(at in 0usize..4 * PIECE, bytes in 0usize..4 * PIECE) {
        let mut next = at;
        for (from, length) in runs(Extent { at, bytes }) {
            prop_assert_eq!(from, next);
            prop_assert!(length > 0 && from / PIECE == (from + length - 1) / PIECE);
            next = from + length;
        }
        prop_assert_eq!(next, at + bytes);
    }
}

/// The bytes of a file, rows of heads in their order: what the kernel that arranges them takes.
#[test]
fn blocks_that_stay_blocks_are_kept_as_their_file_has_them() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("formats.gguf");
    std::fs::copy(fixtures.join("formats.gguf"), &path).unwrap();
    let index = Index::open(dir.path(), &["formats.gguf".into()]).unwrap();
    let manifest = Manifest::compute(dir.path(), &index).unwrap();
    let quantised: Vec<_> = index.iter().filter_map(|info| Some((info, info.dtype.blocks()?))).collect();
    let as_ =
        |info: &crate::weights::TensorInfo, dtype, layout| Wanted { layout, ..want(&info.name, &info.shape, dtype) };
    let wanted: Vec<Wanted> =
        quantised.iter().map(|(info, format)| as_(info, DType::U8, WeightLayout::Packed(*format))).collect();
    let (pages, tensors) = fill_with(&index, &manifest, &wanted, usize::MAX).unwrap();
    let all: Vec<u8> = pages.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(quantised.len() >= 10 && quantised.iter().any(|(info, _)| info.heads.is_some()));
    for ((info, format), want) in quantised.iter().zip(&wanted) {
        let extent = tensors[&key_of(want, &index, &manifest).unwrap()];
        assert_eq!(extent.bytes as u64, info.len, "{}", info.name);
        let numbers = [as_(info, DType::F32, WeightLayout::Rows)];
        let progress = Progress::new();
        let mut weights =
            crate::weights::load(&index, &manifest, &numbers, HashMap::new(), &Device::Cpu, &progress).unwrap();
        let numbers = weights.take(&info.name).unwrap().to_values().unwrap();
        assert_eq!(format.dequantize(&all[extent.at..][..extent.bytes]), numbers, "{}", info.name);
    }
    // A scale that is no number is seen, and named.
    let (info, _) = quantised.iter().find(|(info, _)| info.dtype == crate::weights::SourceDtype::Q4_K).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[info.offset as usize + 144 + 2..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let manifest = Manifest::compute(dir.path(), &index).unwrap();
    let error = fill_with(&index, &manifest, &wanted, usize::MAX).map(drop).unwrap_err().to_string();
    assert!(error.contains(&info.name) && error.contains("non-finite"), "{error}");
}
