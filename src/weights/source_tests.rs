use proptest::prelude::*;

use super::*;

/// Bytes that repeat nowhere, in a file and here.
fn file(len: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    (file, bytes)
}

/// Room for so many bytes, as many behind the beginning of a page.
fn room(bytes: usize, behind: usize) -> (Vec<u8>, std::ops::Range<usize>) {
    let room = vec![0; bytes + behind + PAGE];
    let start = room.as_ptr().align_offset(PAGE) + behind;
    (room, start..start + bytes)
}

/// Where it cannot be: `what` said so, and there is nothing to see.
fn possible(open: &Open, what: &str) -> bool {
    if open.direct.is_none() {
        eprintln!("{what}: not tested, since the folder for temporary files has no direct reads");
    }
    open.direct.is_some()
}

proptest! {
    #[test]
    fn the_same_bytes_are_read_past_the_page_cache(
        pages in 0usize..3, offset in prop_oneof![Just(0usize), 1usize..PAGE], behind in prop_oneof![Just(0usize), 1usize..PAGE],
        len in 0usize..5 * PAGE,
    ) {
        let offset = pages * PAGE + offset;
        // It ends with the file.
        let (file, bytes) = file(offset + len);
        let mut open = Open::of(file.path(), true).unwrap();
        let (mut room, piece) = room(len, behind);
        open.read(&mut room[piece.clone()], offset as u64).unwrap();
        prop_assert!(room[piece] == bytes[offset..], "{} bytes from {} on", len, offset);
    }
}

#[test]
fn what_is_not_there_is_missed_either_way() {
    let (file, bytes) = file(3 * PAGE);
    for direct in [false, true] {
        let mut open = Open::of(file.path(), direct).unwrap();
        for len in [PAGE + 1, 2 * PAGE] {
            let (mut room, piece) = room(len, 0);
            let error = open.read(&mut room[piece], 2 * PAGE as u64).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "direct: {direct}, {len} bytes");
        }
        let (mut room, piece) = room(bytes.len(), 0);
        open.read(&mut room[piece.clone()], 0).unwrap();
        assert_eq!(room[piece], bytes);
    }
    assert!(Open::of(Path::new("/nowhere/at/all"), true).is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn only_whole_pages_go_past_the_page_cache() {
    // What this thread had the storage fetch: what lies in the page cache is not fetched, but past it.
    let fetched = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let (file, _) = file(8 * PAGE);
    file.as_file().sync_all().unwrap();
    let mut open = Open::of(file.path(), true).unwrap();
    if !possible(&open, "whole pages") {
        return;
    }
    let mut read = |bytes, behind, offset| {
        let (mut room, piece) = room(bytes, behind);
        let before = fetched();
        open.read(&mut room[piece], offset).unwrap();
        fetched() - before
    };
    let page = PAGE as u64;
    assert_eq!(read(3 * PAGE, 0, 2 * page), 3 * page);
    assert_eq!(read(2 * PAGE + 7, 0, page), 2 * page, "the rest is in the page cache");
    assert_eq!(read(3 * PAGE, 0, 2 * page + 8), 0, "not from where a page begins");
    assert_eq!(read(3 * PAGE, 8, 2 * page), 0, "not to where a page begins");
    assert_eq!(read(PAGE - 1, 0, 0), 0, "no whole page");
}
