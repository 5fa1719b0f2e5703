//! Weight files: headers, shards and the index of shards, up to tensors in memory.
//!
//! A file called `name +24` is a header alone: its length is put before it and 24 zero bytes behind it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use safetensors::SafeTensors;

use super::accepted;
use super::files::{File, Version, split};
use crate::error::{Kind, Result};
use crate::ops::{Device, WeightLayout};
use crate::repository::{ModelConfig, Spec};
use crate::value::Task;
use crate::weights::{Index, Manifest, Progress, SourceDtype, TensorInfo, Wanted, check as fits, load};

/// As large as `name +24` may make a file's data.
const MOST_DATA: usize = 1 << 16;
/// No family asks for a larger dimension, or for more of them.
const LARGEST: usize = 1 << 24;
const MOST_DIMENSIONS: usize = 4;

pub(super) fn check(data: &[u8]) -> Result<()> {
    let mut files: Vec<File> = split(data).into_iter().map(completed).collect();
    files.insert(0, File { name: "config.json".into(), body: br#"{"model_type": "bert"}"#.into() });
    let version = Version::with(&files);
    for name in files.iter().map(|file| &file.name).filter(|name| name.ends_with(".safetensors")) {
        accepted(Index::open(&version.dir, &[name.into()]).map(|index| tiles(&index)), &[Kind::Refused]);
    }
    let spec = Spec::read(&version.dir, "model", "v1", &ModelConfig::new(Task::Classify))?;
    let index = Index::open(&version.dir, &spec.all_weight_files())?;
    tiles(&index);
    loads(&version.dir, &index)
}

/// Spells a file out that is written as its header.
pub(super) fn completed(file: File) -> File {
    let Some((name, zeros)) = file.name.rsplit_once(" +") else { return file };
    let Some(zeros) = zeros.parse().ok().filter(|zeros: &usize| *zeros <= MOST_DATA) else { return file };
    let mut body = (file.body.len() as u64).to_le_bytes().to_vec();
    body.extend(file.body);
    body.resize(body.len() + zeros, 0);
    File { name: name.to_owned(), body }
}

/// The tensors of a file fill what its header leaves, each as long as its shape says; and the reference implementation
/// finds the same.
fn tiles(index: &Index) {
    let main = index.files.first().map(|file| folder(file)).unwrap_or_default();
    for (number, file) in index.files.iter().enumerate() {
        let bytes = std::fs::read(index.dir.join(file)).unwrap();
        let oracle = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<&TensorInfo> = index.iter().filter(|tensor| tensor.file == number).collect();
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
        assert_eq!(tensors.len(), oracle.len());
        let mut end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap());
        for TensorInfo { name, dtype, shape, offset, len, .. } in tensors {
            assert_eq!(*offset, end, "{name}");
            end += len;
            let elements: u128 = shape.iter().map(|size| *size as u128).product();
            assert_eq!(elements * u128::from(dtype.block().1), u128::from(*len), "{name}");
            let bare = match folder(file) == main {
                true => name,
                false => name.strip_prefix(folder(file)).unwrap().strip_prefix('/').unwrap(),
            };
            let expected = oracle.tensor(bare).unwrap();
            assert_eq!((shape.as_slice(), dtype.name()), (expected.shape(), &*format!("{:?}", expected.dtype())));
            assert_eq!(&bytes[*offset as usize..end as usize], expected.data());
        }
        assert_eq!(end, bytes.len() as u64);
    }
    assert_eq!(index.total_bytes(), index.iter().map(|tensor| tensor.len).sum::<u64>());
}

fn folder(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Whatever a family could ask for of these files comes in its shape and finite, or is refused.
pub(super) fn loads(dir: &Path, index: &Index) -> Result<()> {
    let manifest = Manifest::compute(dir, index)?;
    assert_eq!(manifest.tensors.len(), index.len());
    let wanted: Vec<Wanted> = index.iter().filter_map(wanted).collect();
    fits(index, &wanted, &|_| true)?;
    let mut weights = load(index, &manifest, &wanted, HashMap::new(), &Device::Cpu, &Progress::new())?;
    assert_eq!(weights.len(), wanted.len());
    for Wanted { name, shape, dtype, layout, .. } in &wanted {
        let tensor = weights.take(name).unwrap();
        assert_eq!((tensor.dims(), tensor.dtype()), (&*layout.stored(shape), *dtype), "{name}");
        if *dtype == DType::F32 {
            let values = tensor
                .host()
                .and_then(candle_core::Tensor::flatten_all)
                .and_then(|tensor| tensor.to_vec1::<f32>())
                .unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{name}: {values:?}");
        }
    }
    Ok(())
}

/// As a family may ask for it; none for what none asks for.
fn wanted(tensor: &TensorInfo) -> Option<Wanted> {
    let TensorInfo { name, shape, .. } = tensor;
    if shape.len() > MOST_DIMENSIONS || !shape.iter().all(|size| (1..=LARGEST).contains(size)) {
        return None;
    }
    let dtype = match tensor.dtype {
        SourceDtype::F16 | SourceDtype::Bf16 | SourceDtype::F32 | SourceDtype::F64 => DType::F32,
        quantised if quantised.is_quantised() => DType::F32,
        SourceDtype::U8 => DType::U8,
        SourceDtype::U32 => DType::U32,
        SourceDtype::I16 => DType::I16,
        SourceDtype::I32 => DType::I32,
        SourceDtype::I64 => DType::I64,
        _ => return None,
    };
    let layout = if shape.len() < 2 { WeightLayout::Rows } else { WeightLayout::Panels };
    Some(Wanted { name: name.clone(), below: Vec::new(), shape: shape.clone(), dtype, layout })
}
