//! Several tensors of a checkpoint as one, the rows of each below those of the one before.

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;

use super::super::CHUNK;
use super::super::fixtures::{Folder, Given, f32s, given};
use super::tests::{load_all, values, want};
use super::*;

const CPU: Device = Device::Cpu;
const THREE: [&str; 3] = ["q", "k", "v"];

/// These, each of a shape, as one.
fn want_stacked(names: &[&str], shape: &[usize], dtype: DType) -> Wanted {
    let rows = shape.first().copied().unwrap_or(1);
    let below = names[1..].iter().map(|name| Below { name: (*name).to_owned(), rows }).collect();
    Wanted { below, ..want(names[0], shape, dtype) }
}

fn f16s(name: &str, shape: &[usize], values: &[f32]) -> Given {
    given(name, Dtype::F16, shape, values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect())
}

fn bf16s(name: &str, shape: &[usize], values: &[f32]) -> Given {
    given(name, Dtype::BF16, shape, values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect())
}

/// Three that differ, `[2, 2]`.
fn three() -> [Given; 3] {
    let part = |name, first: f32| f32s(name, &[2, 2], &[first, first + 1.0, first + 2.0, first + 3.0]);
    [part("q", 0.0), part("k", 10.0), part("v", 20.0)]
}

#[test]
fn each_comes_below_the_one_before_whatever_its_format_and_place_in_the_file() {
    let folder = Folder::with(&[
        f32s("v", &[1, 3], &[7.0, 8.0, 9.0]),
        f16s("q", &[1, 3], &[1.0, 2.0, 3.0]),
        bf16s("k", &[1, 3], &[4.0, 5.0, 6.0]),
    ]);
    let wanted = [want_stacked(&THREE, &[1, 3], DType::F32)];
    check(&folder.open(), &wanted, &|_| false).unwrap();
    let mut weights = load_all(&folder, &wanted).unwrap();
    assert_eq!((weights.len(), weights.exclusive_bytes()), (1, 36));
    let tensor = weights.take("q").unwrap();
    assert_eq!(tensor.dims(), [3, 3]);
    assert_eq!(values::<f32>(&tensor), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
}

#[test]
fn parts_may_have_rows_of_their_own_number_but_not_of_their_own_width() {
    let folder = Folder::with(&[
        f32s("q", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        f32s("k", &[1, 2], &[7.0, 8.0]),
        f32s("v", &[1, 3], &[0.0; 3]),
    ]);
    let wanted = |name: &str, rows| {
        let below = vec![Below { name: name.to_owned(), rows }];
        Wanted { below, layout: WeightLayout::Panels, ..want("q", &[3, 2], DType::F32) }
    };
    let mut weights = load_all(&folder, &[wanted("k", 1)]).unwrap();
    assert_eq!(wanted("k", 1).whole(), [4, 2]);
    let stored = values::<f32>(&weights.take("q").unwrap());
    let column = |at: usize| stored[at * 16..][..4].to_vec();
    assert_eq!((column(0), column(1)), (vec![1.0, 3.0, 5.0, 7.0], vec![2.0, 4.0, 6.0, 8.0]));
    for (name, rows, says) in
        [("k", 2, "'k' has shape [1, 2], not [2, 2]"), ("v", 1, "'v' has shape [1, 3], not [1, 2]")]
    {
        let checked = check(&folder.open(), &[wanted(name, rows)], &|_| true).unwrap_err().to_string();
        let loaded = load_all(&folder, &[wanted(name, rows)]).unwrap_err().to_string();
        assert!(checked.contains(says) && loaded.contains(says), "{checked}; {loaded}");
    }
}

#[test]
fn a_footprint_counts_all_of_it_and_progress_every_byte_of_its_files() {
    let [q, k, _] = three();
    let folder = Folder::with(&[q, k, f16s("v", &[2, 2], &[1.0; 4])]);
    let wanted = vec![want_stacked(&THREE, &[2, 2], DType::BF16), want_stacked(&["a", "b"], &[], DType::F32)];
    assert_eq!((wanted[0].whole(), wanted[1].whole()), (vec![6, 2], vec![2]));
    assert_eq!(Footprint { wanted: wanted.clone(), workspace: 0, ..Default::default() }.total(), 12 * 2 + 2 * 4);
    let wanted_twice_over = vec![want_stacked(&["a", "b"], &[usize::MAX, 2], DType::F32)];
    assert_eq!(Footprint { wanted: wanted_twice_over, workspace: 0, ..Default::default() }.total(), u64::MAX);
    let (index, manifest) = folder.indexed();
    let progress = Progress::new();
    let weights = load(&index, &manifest, &wanted[..1], HashMap::new(), &CPU, &progress).unwrap();
    assert_eq!((weights.exclusive_bytes(), weights.shared_bytes()), (24, 0));
    assert_eq!((progress.done(), progress.total()), (16 + 16 + 8, 40));
}

#[test]
fn what_does_not_fit_is_named_part_by_part() {
    let folder = Folder::with(&[
        f32s("q", &[2, 2], &[0.0; 4]),
        f32s("v", &[4, 1], &[0.0; 4]),
        given("i", Dtype::I64, &[2, 2], vec![0; 32]),
        f32s("stranger", &[1], &[0.0]),
    ]);
    let index = folder.open();
    let wanted = [want_stacked(&["q", "k", "v", "i"], &[2, 2], DType::F32)];
    let error = check(&index, &wanted, &|_| false).unwrap_err().to_string();
    for expected in [
        "'k' is missing",
        "'v' has shape [4, 1], not [2, 2]",
        "'i' is I64, which cannot become f32",
        "'stranger' is not part of this architecture",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(!error.contains("'q'"), "{error}");
    let error =
        |names: &[&str]| load_all(&folder, &[want_stacked(names, &[2, 2], DType::F32)]).unwrap_err().to_string();
    assert!(error(&["q", "k"]).contains("tensor 'k' is missing"));
    assert!(error(&["q", "v"]).contains("tensor 'v' has shape [4, 1], not [2, 2]"));
    assert!(error(&["q", "i"]).contains("tensor 'i' is I64, which cannot become f32"));
}

#[test]
fn no_tensor_is_wanted_twice_as_a_part_either() {
    let folder = Folder::with(&three());
    for twice in [
        vec![want_stacked(&["q", "k", "q"], &[2, 2], DType::F32)],
        vec![want_stacked(&["q", "k"], &[2, 2], DType::F32), want("k", &[2, 2], DType::F32)],
        vec![want_stacked(&["q", "k"], &[2, 2], DType::F32), want_stacked(&["v", "k"], &[2, 2], DType::F32)],
    ] {
        let checked = check(&folder.open(), &twice, &|_| true).unwrap_err().to_string();
        let loaded = load_all(&folder, &twice).unwrap_err().to_string();
        assert!(checked.contains("is wanted twice") && loaded.contains("is wanted twice"), "{checked}; {loaded}");
    }
}

#[test]
fn a_value_that_is_no_number_is_refused_with_its_own_tensors_name() {
    for (bad, says) in [(f32::NAN, "holds non-finite values"), (70_000.0, "holds values that are too large for f16")] {
        for broken in THREE {
            let part = |name: &str| f32s(name, &[1, 2], &[1.0, if name == broken { bad } else { 2.0 }]);
            let folder = Folder::with(&THREE.map(part));
            let error = load_all(&folder, &[want_stacked(&THREE, &[1, 2], DType::F16)]).unwrap_err().to_string();
            assert_eq!(error, format!("model/v1/model.safetensors: tensor '{broken}' {says}"));
        }
    }
}

#[test]
fn a_part_that_changed_after_the_manifest_is_named() {
    let folder = Folder::with(&three());
    let (index, manifest) = folder.indexed();
    folder.patch("model.safetensors", index.get("k").unwrap().offset, &[1]);
    let wanted = [want_stacked(&THREE, &[2, 2], DType::F32)];
    let error = load(&index, &manifest, &wanted, HashMap::new(), &CPU, &Progress::new()).unwrap_err().to_string();
    assert!(error.contains("tensor 'k' is not what its manifest recorded"), "{error}");
}

#[test]
fn generations_share_it_when_every_part_is_equal_and_not_when_one_differs() {
    let wanted = [want_stacked(&THREE, &[2, 2], DType::F32)];
    let first = load_all(&Folder::with(&three()), &wanted).unwrap();
    let resident: HashMap<TensorKey, Tensor> =
        first.entries().map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
    let next = |tensors: &[Given]| {
        let (index, manifest) = Folder::with(tensors).indexed();
        load(&index, &manifest, &wanted, resident.clone(), &CPU, &Progress::new())
    };
    // No file is read for it: this folder is gone by then.
    let mut equal = next(&three()).unwrap();
    assert_eq!((equal.exclusive_bytes(), equal.shared_bytes()), (0, 48));
    let id = |tensor: &Tensor| tensor.host().unwrap().id();
    assert_eq!(id(&equal.take("q").unwrap()), id(&resident.values().next().unwrap().clone()));
    let [q, k, _] = three();
    let other = f32s("v", &[2, 2], &[20.0, 21.0, 22.0, 24.0]);
    let error = next(&[q, k, other]).unwrap_err().to_string();
    assert!(error.contains("cannot open it"), "it is read: {error}");
}

#[test]
fn keys_tell_apart_what_is_made_of_other_parts_in_other_formats_or_another_order() {
    let [q, k, v] = three();
    let raw = vec![0x3c; 8];
    let whole = f32s(
        "whole",
        &[4, 2],
        &[q.bytes.as_slice(), &k.bytes].concat().chunks_exact(4).map(number).collect::<Vec<_>>(),
    );
    let halves = [given("half", Dtype::F16, &[2, 2], raw.clone()), given("brain", Dtype::BF16, &[2, 2], raw)];
    let [half, brain] = halves;
    let folder = Folder::with(&[q, k, v, whole, half, brain]);
    let (index, manifest) = folder.indexed();
    let key =
        |names: &[&str], shape: &[usize], dtype| key_of(&want_stacked(names, shape, dtype), &index, &manifest).unwrap();
    let keys = [
        key(&["q", "k"], &[2, 2], DType::F32),
        key(&["k", "q"], &[2, 2], DType::F32),
        key(&["q", "v"], &[2, 2], DType::F32),
        key(&["q", "k", "v"], &[2, 2], DType::F32),
        key(&["q", "k"], &[2, 2], DType::F16),
        key(&["q", "half"], &[2, 2], DType::F32),
        key(&["q", "brain"], &[2, 2], DType::F32),
        key(&["q"], &[2, 2], DType::F32),
        key(&["whole"], &[4, 2], DType::F32),
    ];
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len(), "{keys:#?}");
    assert_eq!(keys[0].shape, [4, 2]);
}

fn number(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_is_what_its_parts_are_one_below_the_other(
        rows in 1usize..40, columns in 1usize..20, formats in prop::collection::vec(0usize..3, 2..5), panels: bool,
        large: bool,
    ) {
        // Some are of several chunks.
        let rows = if large { rows + CHUNK / 2 / columns } else { rows };
        let shape = [rows, columns];
        let layout = if panels { WeightLayout::Panels } else { WeightLayout::Rows };
        let numbers = |part: usize| (0..rows * columns).map(move |at| ((at * 7 + part * 31) % 251) as f32 - 125.0);
        let names: Vec<String> = (0..formats.len()).map(|part| format!("p{part}")).collect();
        let tensors: Vec<Given> = names.iter().zip(&formats).enumerate().map(|(part, (name, format))| {
            let make = [f32s, f16s, bf16s][*format];
            make(name, &shape, &numbers(part).collect::<Vec<_>>())
        }).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let wanted = Wanted { layout, ..want_stacked(&names, &shape, DType::F32) };
        let mut weights = load_all(&Folder::with(&tensors), std::slice::from_ref(&wanted)).unwrap();
        let all: Vec<f32> = (0..formats.len()).flat_map(numbers).collect();
        let stored = layout.stored(&wanted.whole());
        let mut expected = vec![0f32; stored.iter().product()];
        layout.place(&mut expected, &wanted.whole(), 0, &all).unwrap();
        let tensor = weights.take("p0").unwrap();
        prop_assert_eq!(tensor.dims(), stored);
        prop_assert!(values::<f32>(&tensor) == expected);
    }
}
