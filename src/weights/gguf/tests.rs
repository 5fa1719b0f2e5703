use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use half::f16;
use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::gguf::Format;
use crate::gguf::writer::Writer;
use crate::ops::{Device, Tensor, WeightLayout};
use crate::weights::{Below, Index, Manifest, Progress, SourceDtype, Wanted, check, copy, key_of, load};

const FILE: &str = "model.gguf";

struct Folder {
    _root: TempDir,
    dir: PathBuf,
}

impl Folder {
    fn with(bytes: &[u8]) -> Folder {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("model/v1");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(FILE), bytes).unwrap();
        Folder { _root: root, dir }
    }

    fn open(&self) -> Result<Index> {
        Index::open(&self.dir, &[FILE.into()])
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn llama() -> Writer {
    Writer::new()
        .with("general.architecture", "llama")
        .with("llama.attention.head_count", 2u32)
        .with("llama.attention.head_count_kv", 1u32)
}

fn wanted(index: &Index, name: &str, dtype: DType, layout: WeightLayout) -> Wanted {
    let shape = index.get(name).unwrap().shape.clone();
    Wanted { name: name.to_owned(), below: Vec::new(), shape, dtype, layout }
}

fn one(folder: &Folder, name: &str, dtype: DType, layout: WeightLayout) -> Result<Tensor> {
    let index = folder.open()?;
    let manifest = Manifest::compute(&folder.dir, &index)?;
    let wanted = [wanted(&index, name, dtype, layout)];
    load(&index, &manifest, &wanted, HashMap::new(), &Device::Cpu, &Progress::new())?.take(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let host = tensor.host().unwrap();
    host.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()).and_then(|flat| flat.to_vec1()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What ggml's own package says of the fixture, in Hugging Face's order.
fn expected() -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(fixture("formats.safetensors")).unwrap();
    let read = |view: safetensors::tensor::TensorView<'_>| {
        let numbers = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (view.shape().to_vec(), numbers)
    };
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), read(view))).collect()
}

#[test]
fn every_format_is_read_as_ggmls_own_package_reads_it_to_the_bit() {
    let folder = Folder::with(&fs::read(fixture("formats.gguf")).unwrap());
    let index = folder.open().unwrap();
    let manifest = Manifest::compute(&folder.dir, &index).unwrap();
    let expected = expected();
    assert_eq!(index.len(), expected.len());
    let formats: std::collections::BTreeSet<SourceDtype> = index.iter().map(|tensor| tensor.dtype).collect();
    assert_eq!(formats.len(), Format::ALL.len());
    for layout in [WeightLayout::Rows, WeightLayout::Panels] {
        let wanted: Vec<Wanted> = expected.keys().map(|name| wanted(&index, name, DType::F32, layout)).collect();
        check(&index, &wanted, &|_| false).unwrap();
        let mut weights = load(&index, &manifest, &wanted, HashMap::new(), &Device::Cpu, &Progress::new()).unwrap();
        for (name, (shape, numbers)) in &expected {
            let found = values(&weights.take(name).unwrap());
            let mut stored = vec![0f32; found.len()];
            match layout {
                WeightLayout::Rows => stored.copy_from_slice(numbers),
                _ => layout.place(&mut stored, shape, 0, numbers).unwrap(),
            }
            assert_eq!(bits(&found), bits(&stored), "{name} {layout:?}");
        }
    }
}

#[test]
fn a_gpu_computes_with_bf16_where_most_values_are_quantised() {
    let block = [0u8; 18];
    let file = llama().f32s("blk.0.attn_norm.weight", &[31], &[0.0; 31]);
    let most = file.tensor("blk.0.ffn_up.weight", &[32, 1], Format::Q4_0, &block);
    assert_eq!(Folder::with(&most.bytes()).open().unwrap().main_format(), DType::BF16);
    let half = most.f32s("blk.1.attn_norm.weight", &[1], &[0.0]);
    assert_eq!(Folder::with(&half.bytes()).open().unwrap().main_format(), DType::F32);
}

#[test]
fn parts_one_below_the_other_are_dequantised_and_put_in_order_each() {
    let folder = Folder::with(&fs::read(fixture("formats.gguf")).unwrap());
    let (index, expected) = (folder.open().unwrap(), expected());
    let manifest = Manifest::compute(&folder.dir, &index).unwrap();
    let names: Vec<String> = (0..8).map(|layer| format!("model.layers.{layer}.self_attn.k_proj.weight")).collect();
    let (shape, layout) = (index.get(&names[0]).unwrap().shape.clone(), WeightLayout::Rows);
    let below = names[1..].iter().map(|name| Below { name: name.clone(), rows: shape[0] }).collect();
    let together = Wanted { name: names[0].clone(), below, shape, dtype: DType::F32, layout };
    let mut weights = load(&index, &manifest, &[together], HashMap::new(), &Device::Cpu, &Progress::new()).unwrap();
    let all: Vec<f32> = names.iter().flat_map(|name| expected[name].1.clone()).collect();
    assert_eq!(bits(&values(&weights.take(&names[0]).unwrap())), bits(&all));
}

#[test]
fn halves_are_the_dequantised_values_rounded_once_and_copies_are_the_same() {
    let folder = Folder::with(&fs::read(fixture("formats.gguf")).unwrap());
    let (index, expected) = (folder.open().unwrap(), expected());
    for (name, (_, numbers)) in &expected {
        let rounded: Vec<f16> = numbers.iter().map(|number| f16::from_f32(*number)).collect();
        let tensor = one(&folder, name, DType::F16, WeightLayout::Rows).unwrap();
        assert_eq!(values(&tensor), rounded.iter().map(|number| number.to_f32()).collect::<Vec<_>>(), "{name}");
        let mut bytes = Vec::new();
        copy(&index, name, DType::F16, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert_eq!(bytes, rounded.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_tensor_of_many_runs_and_heads_is_read_in_order() {
    // More than a run of blocks, more than a piece, and heads that end within both.
    let (heads, half, columns) = (2, 33, 6_000);
    let rows = heads * 2 * half;
    let values_of = |row: usize| (0..columns).map(move |column| (row * columns + column) as f32 / 1024.0);
    let stored = (0..rows).flat_map(|row| {
        let (head, at) = (row / (2 * half), row % (2 * half));
        let ours = head * 2 * half + if at % 2 == 0 { at / 2 } else { half + at / 2 };
        values_of(ours)
    });
    let bytes: Vec<u8> = stored.flat_map(f32::to_le_bytes).collect();
    let file = llama().tensor("blk.0.attn_q.weight", &[columns as u64, rows as u64], Format::F32, &bytes);
    let folder = Folder::with(&file.bytes());
    let name = "model.layers.0.self_attn.q_proj.weight";
    let tensor = one(&folder, name, DType::F32, WeightLayout::Rows).unwrap();
    assert!(values(&tensor).into_iter().eq((0..rows).flat_map(values_of)));
}

#[test]
fn the_architecture_decides_whether_rows_are_put_back() {
    let numbers: Vec<f32> = (0..8).map(|number| number as f32).collect();
    for (architecture, expected) in [("llama", [0, 2, 1, 3, 4, 6, 5, 7]), ("qwen2", [0, 1, 2, 3, 4, 5, 6, 7])] {
        let file = llama()
            .instead("general.architecture", architecture)
            .f32s("blk.3.attn_q.weight", &[1, 8], &numbers)
            .f32s("blk.3.attn_q.bias", &[8], &numbers)
            .f32s("blk.3.attn_v.weight", &[1, 8], &numbers);
        let folder = Folder::with(&file.bytes());
        let read = |name: &str| values(&one(&folder, name, DType::F32, WeightLayout::Rows).unwrap());
        let expected = expected.map(|number| number as f32);
        assert_eq!(read("model.layers.3.self_attn.q_proj.weight"), expected, "{architecture}");
        assert_eq!(read("model.layers.3.self_attn.q_proj.bias"), expected, "{architecture}");
        assert_eq!(read("model.layers.3.self_attn.v_proj.weight"), numbers, "{architecture}");
    }
}

#[test]
fn rows_in_another_order_are_another_tensor() {
    let numbers = [1.0, 2.0, 3.0, 4.0];
    let file = |heads: u32| {
        let file = llama().instead("llama.attention.head_count", heads);
        Folder::with(
            &file.f32s("blk.0.attn_q.weight", &[1, 4], &numbers).f32s("blk.0.attn_v.weight", &[1, 4], &numbers).bytes(),
        )
    };
    let key = |folder: &Folder, part: &str| {
        let index = folder.open().unwrap();
        let manifest = Manifest::compute(&folder.dir, &index).unwrap();
        let name = format!("model.layers.0.self_attn.{part}.weight");
        key_of(&wanted(&index, &name, DType::F32, WeightLayout::Rows), &index, &manifest).unwrap()
    };
    let (one, two) = (file(1), file(2));
    assert_ne!(key(&one, "q_proj"), key(&two, "q_proj"));
    assert_ne!(key(&one, "q_proj"), key(&one, "v_proj"));
    assert_eq!(key(&one, "v_proj"), key(&two, "v_proj"));
}

#[test]
fn every_byte_is_in_a_digest_and_a_change_is_seen() {
    let file = llama().f32s("output_norm.weight", &[3], &[1.0; 3]).tensor(
        "output.weight",
        &[32, 2],
        Format::Q4_0,
        &[0x11; 36],
    );
    let folder = Folder::with(&file.bytes());
    let index = folder.open().unwrap();
    let manifest = Manifest::compute(&folder.dir, &index).unwrap();
    assert_eq!(manifest.files[FILE].size, file.bytes().len() as u64);
    assert_eq!(manifest.files[FILE].blake3, blake3::hash(&file.bytes()).to_hex().as_str());
    let head = index.get("lm_head.weight").unwrap();
    assert_eq!(manifest.tensors["lm_head.weight"], blake3::hash(&[0x11; 36]).to_hex().as_str());
    // Padding between tensors and behind the last is part of the file.
    for at in [head.offset - 1, file.bytes().len() as u64 - 1] {
        let mut changed = file.bytes();
        changed[at as usize] ^= 1;
        let other = Folder::with(&changed);
        let other = Manifest::compute(&other.dir, &other.open().unwrap()).unwrap();
        assert_eq!(manifest.differences(&other), ["'model.gguf' has other bytes"]);
    }
    let mut changed = file.bytes();
    changed[head.offset as usize + 5] ^= 1;
    fs::write(folder.dir.join(FILE), &changed).unwrap();
    let wanted = [wanted(&index, "lm_head.weight", DType::F32, WeightLayout::Panels)];
    let error = load(&index, &manifest, &wanted, HashMap::new(), &Device::Cpu, &Progress::new()).unwrap_err();
    assert!(error.to_string().contains("is not what its manifest recorded"), "{error}");
    let mut changed = file.bytes();
    changed[30] ^= 1;
    fs::write(folder.dir.join(FILE), &changed).unwrap();
    let error = Manifest::compute(&folder.dir, &index).unwrap_err();
    assert!(error.to_string().contains("changed after its header was read"), "{error}");
}

#[test]
fn scales_that_are_no_numbers_and_values_that_do_not_fit_are_refused() {
    let with_scale = |bits: u16| {
        let mut block = [0x7f; 34];
        block[..2].copy_from_slice(&bits.to_le_bytes());
        Folder::with(&llama().tensor("output.weight", &[32, 1], Format::Q8_0, &block).bytes())
    };
    let refused = |folder: &Folder, dtype| one(folder, "lm_head.weight", dtype, WeightLayout::Rows).unwrap_err();
    for bits in [f16::NAN.to_bits(), f16::INFINITY.to_bits()] {
        let error = refused(&with_scale(bits), DType::F32);
        assert!(error.to_string().contains("holds non-finite values"), "{error}");
    }
    // 127 times a thousand is more than f16 has.
    let large = with_scale(f16::from_f32(1000.0).to_bits());
    assert!(one(&large, "lm_head.weight", DType::F32, WeightLayout::Rows).is_ok());
    let error = refused(&large, DType::F16);
    assert!(error.to_string().contains("too large for f16"), "{error}");
    let error = copy(&large.open().unwrap(), "lm_head.weight", DType::F16, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("too large for f16"), "{error}");
}

#[test]
fn quantised_weights_do_not_become_integers() {
    let folder = Folder::with(&fs::read(fixture("formats.gguf")).unwrap());
    let index = folder.open().unwrap();
    let name = "model.layers.3.mlp.up_proj.weight";
    let wanted = [wanted(&index, name, DType::U32, WeightLayout::Rows)];
    let error = check(&index, &wanted, &|_| true).unwrap_err();
    assert!(error.to_string().contains("is Q4_0, which cannot become u32"), "{error}");
}

fn refused(writer: &Writer) -> String {
    let error = Folder::with(&writer.bytes()).open().unwrap_err();
    assert!(matches!(&error, Error::Unloadable { file, .. } if file == "model/v1/model.gguf"), "{error}");
    error.to_string()
}

#[test]
fn what_the_architectures_do_not_have_is_refused_by_name() {
    let named = |name: &str| refused(&llama().instead("general.architecture", name));
    assert!(named("mamba").contains("the architecture 'mamba' is not read; llama, qwen2, qwen3 are"));
    assert!(refused(&llama().without("general.architecture")).contains("general.architecture is missing"));
    let experts = llama().f32s("blk.0.ffn_gate_exps.weight", &[1], &[1.0]);
    assert!(refused(&experts).contains("tensor 'blk.0.ffn_gate_exps.weight': it is not part of the architectures"));
    let split = llama().with("split.count", 3u32);
    assert!(refused(&split).contains("one of 3 parts"));
}

#[test]
fn heads_that_do_not_fit_their_rows_are_refused() {
    let q = |heads: u32, rows: u64| {
        let values = vec![0.0; rows as usize];
        llama().instead("llama.attention.head_count", heads).f32s("blk.0.attn_q.weight", &[1, rows], &values)
    };
    for (heads, rows) in [(0, 8), (3, 8), (8, 8), (u32::MAX, 8)] {
        let error = refused(&q(heads, rows));
        assert!(error.contains(&format!("its {rows} rows are no {heads} heads of two halves each")), "{error}");
    }
    let none = q(1, 8).without("llama.attention.head_count");
    assert!(refused(&none).contains("llama.attention.head_count is missing"));
    // Nothing to put back: no rows.
    assert!(Folder::with(&q(1, 0).bytes()).open().is_ok());
}

#[test]
fn rotary_factors_are_no_weights() {
    let file = llama().f32s("rope_freqs.weight", &[2], &[1.0, 8.0]).f32s("output_norm.weight", &[1], &[1.0]);
    let folder = Folder::with(&file.bytes());
    let index = folder.open().unwrap();
    assert_eq!(index.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["model.norm.weight"]);
    // Their bytes are in the file's digest all the same.
    let manifest = Manifest::compute(&folder.dir, &index).unwrap();
    assert_eq!(manifest.files[FILE].blake3, blake3::hash(&file.bytes()).to_hex().as_str());
}

#[test]
fn a_gguf_file_is_never_one_of_several() {
    let folder = Folder::with(&llama().bytes());
    fs::write(folder.dir.join("other.gguf"), llama().bytes()).unwrap();
    let error = Index::open(&folder.dir, &[FILE.into(), "other.gguf".into()]).unwrap_err();
    assert!(error.to_string().contains("cannot be one of several"), "{error}");
}
