use proptest::prelude::*;

use super::*;

fn unreadable(file: usize, error: io::Error) -> Error {
    Error::internal(format!("file {file}: {error}"))
}

/// Bytes that repeat nowhere, so that a block in another's place is seen.
fn bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Hasher::new().update(b"bytes").finalize_xof().fill(&mut bytes);
    bytes
}

/// Files in a folder, each with its stretches.
fn written(files: &[(Vec<u8>, Vec<Range<u64>>)]) -> (tempfile::TempDir, Vec<Hashed>) {
    let dir = tempfile::tempdir().unwrap();
    let hashed = files.iter().enumerate().map(|(number, (bytes, stretches))| {
        let path = dir.path().join(number.to_string());
        std::fs::write(&path, bytes).unwrap();
        Hashed { path, len: bytes.len() as u64, stretches: stretches.clone() }
    });
    let hashed = hashed.collect();
    (dir, hashed)
}

fn agree(files: &[(Vec<u8>, Vec<Range<u64>>)]) {
    let (_dir, hashed) = written(files);
    for threads in [1, 4] {
        let progress = Progress::new();
        let found = digests_on(threads, &hashed, &progress, unreadable).unwrap();
        assert_eq!(progress.done(), files.iter().map(|(bytes, _)| bytes.len() as u64).sum::<u64>());
        assert_eq!(found.len(), files.len());
        each_agrees(files, found);
    }
}

fn each_agrees(files: &[(Vec<u8>, Vec<Range<u64>>)], found: Vec<Digests>) {
    for ((bytes, stretches), found) in files.iter().zip(found) {
        assert_eq!(found.whole, blake3::hash(bytes), "a file of {} bytes", bytes.len());
        assert_eq!(found.stretches.len(), stretches.len());
        for (stretch, found) in stretches.iter().zip(found.stretches) {
            let expected = blake3::hash(&bytes[stretch.start as usize..stretch.end as usize]);
            assert_eq!(found, expected, "{stretch:?} of a file of {} bytes", bytes.len());
        }
    }
}

#[test]
fn a_file_has_the_same_digest_however_it_is_divided() {
    let lens =
        [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1];
    let files: Vec<_> = lens.iter().map(|len| (bytes(*len as usize), std::iter::once(0..*len).collect())).collect();
    agree(&files);
    for file in files {
        agree(&[file]);
    }
}

#[test]
fn stretches_that_begin_or_end_anywhere_have_their_own() {
    let len = 3 * PIECE + 77;
    // Each begins where the one before ends: within a block, with one, with a piece, as nothing, and over several pieces.
    let ends =
        [8, 8, BLOCK, BLOCK + 3, PIECE - 1, PIECE, PIECE, PIECE + 2 * BLOCK + 1, 3 * PIECE + 1, 3 * PIECE + 1, len];
    let starts = std::iter::once(0).chain(ends);
    let stretches: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
    agree(&[(bytes(len as usize), stretches)]);
}

#[test]
fn what_cannot_be_read_is_told_of_its_file() {
    let (dir, mut hashed) = written(&[(bytes(10), vec![]), (bytes(PIECE as usize), vec![])]);
    hashed[1].len += 1;
    let failed = |hashed: &[Hashed]| digests(hashed, &Progress::new(), unreadable).err().unwrap().to_string();
    assert!(failed(&hashed).contains("file 1: failed to fill whole buffer"), "{}", failed(&hashed));
    std::fs::remove_file(dir.path().join("0")).unwrap();
    assert!(failed(&hashed[..1]).contains("file 0: No such file"), "{}", failed(&hashed[..1]));
}

#[test]
fn nothing_is_hashed_once_it_was_cancelled() {
    let (_dir, hashed) = written(&[(bytes(10), vec![])]);
    let progress = Progress::new();
    progress.cancel();
    let error = digests(&hashed, &progress, unreadable).err().unwrap();
    assert_eq!(error.kind(), crate::error::Kind::Conflict);
    assert_eq!(progress.done(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn digests_are_those_of_a_hasher_that_reads_all_in_order(
        files in prop::collection::vec(
            (prop_oneof![0..3000u64, 0..4 * BLOCK, 0..3 * PIECE], prop::collection::vec(0.0..1.0f64, 0..12)),
            1..4,
        ),
    ) {
        let files: Vec<_> = files.into_iter().map(|(len, cuts)| {
            let mut cuts: Vec<u64> = cuts.iter().map(|cut| (cut * len as f64) as u64).collect();
            cuts.sort_unstable();
            // Every second stretch has a gap behind it.
            let stretches = cuts.chunks_exact(2).map(|cut| cut[0]..cut[1]).collect();
            (bytes(len as usize), stretches)
        }).collect();
        agree(&files);
    }
}
