use candle_core::WithDType;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::super::CHUNK;
use super::super::fixtures::{Folder, Given, f32s, given, serialised};
use super::super::source::Source;
use super::*;

const CPU: Device = Device::Cpu;

pub(super) fn want(name: &str, shape: &[usize], dtype: DType) -> Wanted {
    Wanted { name: name.to_owned(), below: Vec::new(), shape: shape.to_vec(), dtype, layout: WeightLayout::Rows }
}

pub(super) fn load_all(folder: &Folder, wanted: &[Wanted]) -> Result<Weights> {
    let (index, manifest) = folder.indexed();
    load(&index, &manifest, wanted, HashMap::new(), &CPU, &Progress::new())
}

pub(super) fn values<T: WithDType>(tensor: &Tensor) -> Vec<T> {
    tensor.host().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    match tensor.dtype() {
        DType::U8 => values::<u8>(tensor),
        DType::F16 => values::<f16>(tensor).iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::BF16 => values::<bf16>(tensor).iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F32 => values::<f32>(tensor).iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F64 => values::<f64>(tensor).iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::I64 => values::<i64>(tensor).iter().flat_map(|value| value.to_le_bytes()).collect(),
        other => panic!("no test makes {other:?}"),
    }
}

/// A large tensor: several chunks, and a last one that is not full.
fn large(name: &str) -> (Given, Vec<f32>) {
    let values: Vec<f32> = (0..CHUNK).map(|value| value as f32 - 1000.25).collect();
    (f32s(name, &[CHUNK / 4, 4], &values), values)
}

#[test]
fn a_tensor_of_many_chunks_arrives_whole_and_in_its_shape() {
    let (tensor, expected) = large("large");
    let folder = Folder::with(&[tensor, f32s("odd", &[3], &[1.0, 2.0, 3.0])]);
    let shape = [CHUNK / 4, 4];
    let wanted = [want("large", &shape, DType::F32), want("odd", &[3], DType::F16)];
    let mut weights = load_all(&folder, &wanted).unwrap();
    assert_eq!(weights.exclusive_bytes(), (CHUNK * 4 + 6) as u64);
    assert_eq!(weights.shared_bytes(), 0);
    let tensor = weights.take("large").unwrap();
    assert_eq!(tensor.dims(), shape);
    assert_eq!(values::<f32>(&tensor), expected);
    assert_eq!(values::<f16>(&weights.take("odd").unwrap()), [1.0, 2.0, 3.0].map(f16::from_f32));
    assert!(weights.is_empty());
    let error = weights.take("odd").unwrap_err();
    assert!(error.to_string().contains("'odd' was not asked for, or is taken already"));
    assert!(weights.take_optional("odd").is_none());
}

#[test]
fn a_cast_of_many_chunks_equals_the_cast_of_each_number() {
    let (tensor, expected) = large("large");
    let folder = Folder::with(&[tensor]);
    let mut weights = load_all(&folder, &[want("large", &[CHUNK / 4, 4], DType::BF16)]).unwrap();
    let expected: Vec<bf16> = expected.into_iter().map(bf16::from_f32).collect();
    assert_eq!(values::<bf16>(&weights.take("large").unwrap()), expected);
}

#[test]
fn half_floats_become_exactly_their_values() {
    let finite = |bits: &u16| f16::from_bits(*bits).is_finite() && bf16::from_bits(*bits).is_finite();
    let bits: Vec<u16> = (0..=u16::MAX).filter(finite).collect();
    let raw: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let shape = [bits.len()];
    let folder = Folder::with(&[given("h", Dtype::F16, &shape, raw.clone()), given("b", Dtype::BF16, &shape, raw)]);
    let wanted = [want("h", &shape, DType::F32), want("b", &shape, DType::F32)];
    let mut weights = load_all(&folder, &wanted).unwrap();
    let halves: Vec<f32> = bits.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
    let brains: Vec<f32> = bits.iter().map(|bits| f32::from_bits(u32::from(*bits) << 16)).collect();
    let same = |left: &[f32], right: &[f32]| left.iter().zip(right).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same(&values(&weights.take("h").unwrap()), &halves));
    assert!(same(&values(&weights.take("b").unwrap()), &brains));
}

#[test]
fn weights_that_are_not_finite_are_refused_with_their_tensors_name() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for target in [DType::F32, DType::F16, DType::BF16] {
            let (mut tensor, mut values) = large("broken");
            *values.last_mut().unwrap() = bad;
            tensor.bytes = f32s("", &[CHUNK / 4, 4], &values).bytes;
            let folder = Folder::with(&[f32s("sound", &[1], &[1.0]), tensor]);
            let wanted = [want("sound", &[1], target), want("broken", &[CHUNK / 4, 4], target)];
            let error = load_all(&folder, &wanted).unwrap_err();
            assert_eq!(error.to_string(), "model/v1/model.safetensors: tensor 'broken' holds non-finite values");
        }
    }
}

#[test]
fn a_value_too_large_for_the_wanted_dtype_is_refused() {
    let folder = Folder::with(&[f32s("big", &[2], &[1.0, 70_000.0])]);
    let error = load_all(&folder, &[want("big", &[2], DType::F16)]).unwrap_err().to_string();
    assert!(error.contains("tensor 'big' holds values that are too large for f16"), "{error}");
    assert!(load_all(&folder, &[want("big", &[2], DType::BF16)]).is_ok());
}

#[test]
fn a_file_that_changes_between_manifest_and_load_is_refused() {
    let folder = Folder::with(&[f32s("one", &[2], &[1.0, 2.0])]);
    let (index, manifest) = folder.indexed();
    let offset = index.get("one").unwrap().offset;
    let wanted = [want("one", &[2], DType::F32)];
    let read = || load(&index, &manifest, &wanted, HashMap::new(), &CPU, &Progress::new());
    assert!(read().is_ok());
    folder.patch("model.safetensors", offset, &[1]);
    let error = read().unwrap_err().to_string();
    assert!(error.contains("tensor 'one' is not what its manifest recorded"), "{error}");
    folder.patch("model.safetensors", offset, &f32::NAN.to_le_bytes());
    let error = read().unwrap_err().to_string();
    assert!(error.contains("tensor 'one' is not what its manifest recorded"), "{error}");
    folder.write("model.safetensors", b"short");
    let error = read().unwrap_err().to_string();
    assert!(error.contains("the file ended early"), "{error}");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains("cannot open it"), "{error}");
}

#[test]
fn resident_tensors_are_not_read() {
    let folder = Folder::with(&[f32s("kept", &[2], &[1.0, 2.0]), f32s("new", &[2], &[3.0, 4.0])]);
    let (index, manifest) = folder.indexed();
    let wanted = [want("kept", &[2], DType::F32), want("new", &[2], DType::F32)];
    let key = key_of(&wanted[0], &index, &manifest).unwrap();
    let tensor = Tensor::from_vec(vec![1f32, 2.0], 2, &CPU).unwrap();
    // Its bytes in the file are garbage now: whoever reads them fails.
    folder.patch("model.safetensors", index.get("kept").unwrap().offset, &[0xff; 8]);
    let progress = Progress::new();
    let resident = HashMap::from([(key.clone(), tensor.clone())]);
    let mut weights = load(&index, &manifest, &wanted, resident, &CPU, &progress).unwrap();
    assert_eq!((progress.done(), progress.total()), (8, 8));
    assert_eq!((weights.exclusive_bytes(), weights.shared_bytes()), (8, 8));
    let entries: HashMap<_, _> =
        weights.entries().map(|(key, tensor)| (key.clone(), tensor.host().unwrap().id())).collect();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[&key], tensor.host().unwrap().id());
    assert_eq!(weights.take("kept").unwrap().host().unwrap().id(), tensor.host().unwrap().id());
    assert_eq!(values::<f32>(&weights.take("new").unwrap()), [3.0, 4.0]);
    assert!(load(&index, &manifest, &wanted, HashMap::new(), &CPU, &progress).is_err());
}

#[test]
fn a_resident_tensor_of_the_wrong_kind_is_an_error_not_a_wrong_answer() {
    let folder = Folder::with(&[f32s("kept", &[2], &[1.0, 2.0])]);
    let (index, manifest) = folder.indexed();
    let wanted = [want("kept", &[2], DType::F32)];
    let key = key_of(&wanted[0], &index, &manifest).unwrap();
    let resident = HashMap::from([(key, Tensor::from_vec(vec![1f64, 2.0], 2, &CPU).unwrap())]);
    let error = load(&index, &manifest, &wanted, resident, &CPU, &Progress::new()).unwrap_err();
    assert!(error.to_string().contains("not what its key says"), "{error}");
}

#[test]
fn the_same_bytes_in_two_formats_or_shapes_are_not_shared() {
    let raw = vec![0x3c; 8];
    let folder = Folder::with(&[
        given("half", Dtype::F16, &[4], raw.clone()),
        given("brain", Dtype::BF16, &[4], raw.clone()),
        given("square", Dtype::F16, &[2, 2], raw.clone()),
        given("again", Dtype::F16, &[4], raw),
    ]);
    let (index, manifest) = folder.indexed();
    let key = |name, shape: &[usize], dtype| key_of(&want(name, shape, dtype), &index, &manifest).unwrap();
    let half = key("half", &[4], DType::F32);
    assert_eq!(half, key("again", &[4], DType::F32));
    for other in [key("brain", &[4], DType::F32), key("square", &[2, 2], DType::F32), key("half", &[4], DType::F16)] {
        assert_ne!(half, other);
    }
}

#[test]
fn equal_tensors_under_two_names_are_read_and_held_once() {
    let folder = Folder::with(&[f32s("in", &[2], &[1.0, 2.0]), f32s("out", &[2], &[1.0, 2.0])]);
    let wanted = [want("in", &[2], DType::F32), want("out", &[2], DType::F32)];
    let mut weights = load_all(&folder, &wanted).unwrap();
    assert_eq!(weights.exclusive_bytes(), 8);
    assert_eq!(weights.take("in").unwrap().host().unwrap().id(), weights.take("out").unwrap().host().unwrap().id());
}

#[test]
fn cancelling_stops_between_chunks() {
    let (tensor, _) = large("large");
    let folder = Folder::with(&[tensor]);
    let (index, manifest) = folder.indexed();
    let wanted = [want("large", &[CHUNK / 4, 4], DType::F32)];
    let progress = Progress::new();
    let mut source = Source::new(&index, &progress);
    let info = index.get("large").unwrap();
    let part = Part { info, digest: manifest.tensors["large"].as_str(), first: 0 };
    let mut piece = vec![0; CHUNK];
    source.fill(&part, 0, &mut piece, Some(&mut blake3::Hasher::new())).unwrap();
    progress.cancel();
    let error = source.fill(&part, CHUNK, &mut piece, Some(&mut blake3::Hasher::new())).unwrap_err();
    assert_eq!(error.to_string(), "reading the weights was cancelled");
    assert_eq!(progress.done(), CHUNK as u64);
    let error = load(&index, &manifest, &wanted, HashMap::new(), &CPU, &progress).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Conflict);
    assert_eq!((progress.done(), progress.total()), (0, 4 * CHUNK as u64));
}

#[test]
fn what_does_not_fit_is_one_error_that_names_it_all() {
    let folder = Folder::with(&[
        f32s("fits", &[1], &[1.0]),
        f32s("turned", &[2, 1], &[1.0, 2.0]),
        f32s("stranger", &[1], &[1.0]),
        f32s("cls.bias", &[1], &[1.0]),
        given("ids", Dtype::I64, &[1], vec![0; 8]),
    ]);
    let wanted = [
        want("fits", &[1], DType::F32),
        want("turned", &[1, 2], DType::F32),
        want("gone", &[1], DType::F32),
        want("ids", &[1], DType::F32),
    ];
    let index = folder.open();
    let error = check(&index, &wanted, &|name| name.starts_with("cls.")).unwrap_err().to_string();
    for expected in [
        "'turned' has shape [2, 1], not [1, 2]",
        "'gone' is missing",
        "'ids' is I64, which cannot become f32",
        "'stranger' is not part of this architecture",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(!error.contains("cls.bias") && !error.contains("'fits'"), "{error}");
    check(&index, &wanted[..1], &|name| name != "fits").unwrap();
    let many: Vec<Wanted> = (0..20).map(|n| want(&format!("t{n}"), &[1], DType::F32)).collect();
    let error = check(&index, &many, &|_| true).unwrap_err().to_string();
    assert!(error.contains("'t7' is missing, and 12 more") && !error.contains("'t8'"), "{error}");
}

#[test]
fn a_wanted_tensor_that_cannot_be_had_is_refused_by_load_too() {
    let folder = Folder::with(&[f32s("one", &[2], &[1.0, 2.0])]);
    let error = |wanted: &[Wanted]| load_all(&folder, wanted).unwrap_err().to_string();
    assert!(error(&[want("two", &[2], DType::F32)]).contains("tensor 'two' is missing"));
    assert!(error(&[want("one", &[1, 2], DType::F32)]).contains("has shape [2], not [1, 2]"));
    assert!(error(&[want("one", &[2], DType::I64)]).contains("is F32, which cannot become i64"));
    assert!(error(&[want("one", &[2], DType::F32), want("one", &[2], DType::F16)]).contains("wanted twice"));
    let (index, mut manifest) = folder.indexed();
    manifest.tensors.clear();
    let wanted = [want("one", &[2], DType::F32)];
    let error = load(&index, &manifest, &wanted, HashMap::new(), &CPU, &Progress::new()).unwrap_err().to_string();
    assert!(error.contains("the manifest knows no tensor 'one'"), "{error}");
}

#[test]
fn a_quantised_tensor_takes_its_panels_and_is_another_than_the_same_bytes_otherwise() {
    let layout = WeightLayout::Quantized(crate::ops::QuantFormat::Q4_1);
    let wanted = Wanted { layout, ..want("w", &[40, 64], DType::U8) };
    // Three panels of sixteen rows, of two blocks of 20 bytes.
    assert_eq!(Footprint { wanted: vec![wanted.clone()], workspace: 0, ..Default::default() }.total(), 48 * 2 * 20);
    let (index, manifest) = Folder::with(&[given("w", Dtype::F32, &[40, 64], vec![0; 40 * 64 * 4])]).indexed();
    let key = key_of(&wanted, &index, &manifest).unwrap();
    assert_eq!((key.dtype, key.layout), (DType::U8, layout));
    assert_ne!(key, key_of(&want("w", &[40, 64], DType::U8), &index, &manifest).unwrap());
}

#[test]
fn a_footprint_is_the_sum_of_its_targets_and_never_wraps() {
    let wanted = vec![want("a", &[3, 5], DType::F16), want("b", &[], DType::F32)];
    let footprint = Footprint { wanted, workspace: 100, ..Default::default() };
    assert_eq!((footprint.weight_bytes(), footprint.total()), (34, 134));
    let wanted = vec![want("a", &[usize::MAX, 2], DType::F32); 2];
    assert_eq!(Footprint { wanted, workspace: 1, ..Default::default() }.total(), u64::MAX);
}

#[test]
fn tensors_come_from_the_shard_that_holds_them() {
    let folder = Folder::new();
    folder.write("a.safetensors", &serialised(&[f32s("z", &[1], &[1.0]), f32s("y", &[1], &[2.0])]));
    folder.write("b.safetensors", &serialised(&[f32s("a", &[1], &[3.0])]));
    let index = folder.open_files(&["a.safetensors", "b.safetensors"]).unwrap();
    let manifest = Manifest::compute(folder.path(), &index).unwrap();
    let wanted: Vec<Wanted> = ["a", "y", "z"].map(|name| want(name, &[1], DType::F32)).to_vec();
    let mut weights = load(&index, &manifest, &wanted, HashMap::new(), &CPU, &Progress::new()).unwrap();
    for (name, expected) in [("a", 3.0), ("y", 2.0), ("z", 1.0)] {
        assert_eq!(values::<f32>(&weights.take(name).unwrap()), [expected]);
    }
}

/// A tensor of any supported format and a small shape (empty ones and scalars too), with finite contents.
fn any_tensor() -> impl Strategy<Value = (Dtype, Vec<usize>, u64)> {
    let dtypes = vec![Dtype::U8, Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64, Dtype::I64];
    (prop::sample::select(dtypes), prop::collection::vec(0usize..5, 0..4), any::<u64>())
}

fn finite_bytes(dtype: Dtype, count: usize, seed: u64) -> Vec<u8> {
    let number = |at: usize| (seed.wrapping_mul(at as u64 + 1) >> 40) as f64 / 64.0 - 1000.0;
    (0..count)
        .flat_map(|at| match dtype {
            Dtype::U8 => vec![number(at) as u8],
            Dtype::F16 => f16::from_f64(number(at) / 1000.0).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(number(at)).to_le_bytes().to_vec(),
            Dtype::F32 => (number(at) as f32).to_le_bytes().to_vec(),
            Dtype::F64 => number(at).to_le_bytes().to_vec(),
            _ => (number(at) as i64).to_le_bytes().to_vec(),
        })
        .collect()
}

fn candle(dtype: Dtype) -> DType {
    match dtype {
        Dtype::U8 => DType::U8,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => DType::I64,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_the_reference_implementation_wrote_is_what_is_loaded(
        tensors in prop::collection::btree_map("[a-z]{1,6}(\\.[a-zé]{1,6})?", any_tensor(), 1..8),
    ) {
        let tensors: Vec<Given> = tensors.into_iter().map(|(name, (dtype, shape, seed))| {
            let bytes = finite_bytes(dtype, shape.iter().product(), seed);
            given(&name, dtype, &shape, bytes)
        }).collect();
        let folder = Folder::with(&tensors);
        let wanted: Vec<Wanted> =
            tensors.iter().map(|tensor| want(&tensor.name, &tensor.shape, candle(tensor.dtype))).collect();
        check(&folder.open(), &wanted, &|_| false).unwrap();
        let mut weights = load_all(&folder, &wanted).unwrap();
        let file = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        let oracle = SafeTensors::deserialize(&file).unwrap();
        for want in &wanted {
            let tensor = weights.take(&want.name).unwrap();
            let expected = oracle.tensor(&want.name).unwrap();
            prop_assert_eq!(tensor.dims(), expected.shape());
            prop_assert_eq!(bytes(&tensor), expected.data());
        }
    }
}
