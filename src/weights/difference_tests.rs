use std::fs;
use std::path::Path;
use std::time::Instant;

use half::f16;
use proptest::prelude::*;
use safetensors::Dtype;

use super::super::fixtures::{Folder, Given, f32s, given};
use super::super::{CHUNK, Progress, distances};
use super::*;

struct Side(Index, Manifest);

impl Side {
    fn of(tensors: &[Given]) -> (Folder, Side) {
        let folder = Folder::with(tensors);
        let (index, manifest) = folder.indexed();
        (folder, Side(index, manifest))
    }

    fn tensors(&self) -> Tensors<'_> {
        Tensors { index: &self.0, manifest: Some(&self.1) }
    }

    fn unseen(&self) -> Tensors<'_> {
        Tensors { index: &self.0, manifest: None }
    }
}

fn measured(before: &Side, now: &Side) -> (TensorChanges, Distances) {
    let sides = (before.tensors(), now.tensors());
    let changes = TensorChanges::between(sides.0, sides.1);
    let found = distances(sides, &changes.changed, None, &Progress::new()).unwrap();
    (changes, found)
}

fn halves(name: &str, shape: &[usize], values: &[f32]) -> Given {
    given(name, Dtype::F16, shape, values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect())
}

#[test]
fn every_kind_of_difference_is_told_and_what_is_the_same_too() {
    let (_a, before) = Side::of(&[
        f32s("same", &[2], &[1.0, 2.0]),
        f32s("moved", &[2], &[3.0, 4.0]),
        f32s("half", &[2], &[1.5, 2.5]),
        f32s("shape", &[2, 3], &[0.0; 6]),
        f32s("gone", &[1], &[1.0]),
    ]);
    let (_b, now) = Side::of(&[
        f32s("same", &[2], &[1.0, 2.0]),
        f32s("moved", &[2], &[3.0, 9.0]),
        halves("half", &[2], &[1.5, 2.5]),
        f32s("shape", &[3, 2], &[0.0; 6]),
        f32s("fresh", &[1], &[1.0]),
    ]);
    let (changes, found) = measured(&before, &now);
    assert_eq!((changes.shared, changes.changed.as_slice()), (3, ["half".to_owned(), "moved".to_owned()].as_slice()));
    let told = changes.told(Some(&found));
    assert_eq!(told.same, ["1 of 3 tensors"]);
    let whats: Vec<&str> = told.differences.iter().map(|difference| difference.what.as_str()).collect();
    assert_eq!(whats, ["tensors", "dtype", "tensors.shapes", "tensors.names", "bytes"]);
    let tensors = told.differences[0].tensors.as_ref().unwrap();
    // (3, 4) and (3, 9) are 5 apart, and the longer is √90 long; what was halved holds the same numbers.
    let largest = tensors.largest.as_ref().unwrap();
    assert_eq!(largest.tensor, "moved");
    assert!((largest.distance - 5.0 / 90f64.sqrt()).abs() < 1e-12, "{}", largest.distance);
    assert_eq!((tensors.changed, tensors.measured, tensors.median), (2, 2, Some(largest.distance / 2.0)));
    assert_eq!(told.differences[1].message, "1 tensor is F16, before F32");
    assert_eq!(told.differences[2].message, "1 tensor of another shape: 'shape' is [3, 2], and was [2, 3]");
    assert_eq!(told.differences[3].message, "1 tensor is gone: 'gone'; 1 tensor is new: 'fresh'");
}

#[test]
fn numbers_that_are_only_stored_otherwise_are_harmless() {
    let (_a, before) = Side::of(&[f32s("x", &[2], &[1.5, 2.5])]);
    let (_b, now) = Side::of(&[halves("x", &[2], &[1.5, 2.5])]);
    let (changes, found) = measured(&before, &now);
    let told = &changes.told(Some(&found)).differences[0];
    assert_eq!(told.severity, Severity::Harmless);
    assert_eq!(told.message, "1 of 1 tensors is stored otherwise and holds the same numbers");
}

#[test]
fn without_digests_it_says_that_it_does_not_know() {
    let (_a, before) = Side::of(&[f32s("x", &[1], &[1.0])]);
    let (_b, now) = Side::of(&[f32s("x", &[1], &[2.0])]);
    let changes = TensorChanges::between(before.unseen(), now.tensors());
    assert_eq!((changes.unknown, changes.changed.len()), (1, 0));
    let told = changes.told(None);
    assert!(told.same.is_empty() && told.differences.is_empty(), "{told:?}");
    assert_eq!(told.incomparable, ["tensors: the digests of 1 tensor are not known yet"]);
}

#[test]
fn a_tensor_of_many_pieces_is_measured_whole_and_its_bytes_are_verified() {
    let many: Vec<f32> = (0..CHUNK).map(|value| value as f32).collect();
    let mut last = many.clone();
    last[CHUNK - 1] += 7.0;
    let norm = last.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let (_a, before) = Side::of(&[f32s("x", &[CHUNK], &many)]);
    let (folder, now) = Side::of(&[f32s("x", &[CHUNK], &last)]);
    let (changes, found) = measured(&before, &now);
    let exact = 7.0 / norm;
    assert!((found.largest().unwrap().distance - exact).abs() < exact * 1e-9);
    // A file that changes meanwhile measures nothing.
    let offset = now.0.get("x").unwrap().offset;
    folder.patch("model.safetensors", offset, &9f32.to_le_bytes());
    let found = distances((before.tensors(), now.tensors()), &changes.changed, None, &Progress::new()).unwrap();
    assert_eq!(found.measured(), 0);
    assert!(found.why_not().unwrap().contains("the file changed"), "{found:?}");
}

#[test]
fn it_ends_when_the_time_is_over_or_when_it_is_told_to() {
    let (_a, before) = Side::of(&[f32s("x", &[1], &[1.0]), f32s("y", &[1], &[1.0])]);
    let (_b, now) = Side::of(&[f32s("x", &[1], &[2.0]), f32s("y", &[1], &[2.0])]);
    let changes = TensorChanges::between(before.tensors(), now.tensors());
    let sides = (before.tensors(), now.tensors());
    let found = distances(sides, &changes.changed, Some(Instant::now()), &Progress::new()).unwrap();
    let told = &changes.told(Some(&found)).differences[0];
    assert_eq!(told.message, "2 of 2 tensors have other values; 2 of them not measured: there was no time");
    let cancelled = Progress::new();
    cancelled.cancel();
    assert!(distances(sides, &changes.changed, None, &cancelled).is_err());
}

#[test]
fn values_that_are_no_numbers_are_not_measured_and_the_others_are() {
    let (_a, before) = Side::of(&[f32s("x", &[1], &[1.0]), f32s("y", &[1], &[1.0])]);
    let (_b, now) = Side::of(&[f32s("x", &[1], &[f32::NAN]), f32s("y", &[1], &[2.0])]);
    let (changes, found) = measured(&before, &now);
    assert_eq!((found.measured(), found.largest().unwrap().distance), (1, 0.5));
    let told = &changes.told(Some(&found)).differences[0];
    assert!(told.message.contains("1 of them not measured") && told.message.contains("non-finite"), "{}", told.message);
}

/// The fixture holds every format that is read, and what ggml's own package makes of it as f32.
#[test]
fn a_gguf_file_is_compared_with_safetensors_as_the_numbers_that_it_stands_for() {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name);
    let (quantised, plain) = (Folder::new(), Folder::new());
    quantised.write("model.gguf", &fs::read(fixture("formats.gguf")).unwrap());
    plain.write("model.safetensors", &fs::read(fixture("formats.safetensors")).unwrap());
    let index = quantised.open_files(&["model.gguf"]).unwrap();
    let manifest = Manifest::compute(quantised.path(), &index).unwrap();
    let (before, now) = (Side(index, manifest), {
        let (index, manifest) = plain.indexed();
        Side(index, manifest)
    });
    let (changes, found) = measured(&before, &now);
    assert!(changes.gone.is_empty() && changes.new.is_empty() && changes.reshaped.is_empty(), "{changes:?}");
    assert!(changes.formats.len() >= 5, "{:?}", changes.formats);
    // Queries and keys of a file in f32 have their rows in another order, and the same values.
    assert_eq!(found.measured(), changes.changed.len());
    assert_eq!(found.largest().unwrap().distance, 0.0);
}

proptest! {
    /// Of itself a version differs in nothing, and both ways round it is the same names and the same distances.
    #[test]
    fn tensors_are_compared_alike_both_ways(
        was in prop::collection::btree_map("[a-d]", prop::collection::vec(-2f32..2.0, 1..4), 1..4),
        is in prop::collection::btree_map("[a-d]", prop::collection::vec(-2f32..2.0, 1..4), 1..4),
    ) {
        let side = |tensors: &BTreeMap<String, Vec<f32>>| {
            let given: Vec<Given> = tensors.iter().map(|(name, values)| f32s(name, &[values.len()], values)).collect();
            Side::of(&given)
        };
        let ((_a, was), (_b, is)) = (side(&was), side(&is));
        let (own, none) = measured(&was, &was);
        prop_assert!(own.told(Some(&none)).differences.is_empty());
        let ((there, far), (back, near)) = (measured(&was, &is), measured(&is, &was));
        prop_assert_eq!(&there.changed, &back.changed);
        prop_assert_eq!((&there.gone, &there.new), (&back.new, &back.gone));
        prop_assert_eq!(&far, &near);
        let whats = |changes: &TensorChanges, found: &Distances| -> Vec<String> {
            changes.told(Some(found)).differences.into_iter().map(|difference| difference.what).collect()
        };
        prop_assert_eq!(whats(&there, &far), whats(&back, &near));
        prop_assert!(far.largest().is_none_or(|largest| (0.0..=2.0).contains(&largest.distance)));
    }
}
