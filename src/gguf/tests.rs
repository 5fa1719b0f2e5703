use super::writer::{Given, Info, Writer};
use super::*;

fn read_all(bytes: &[u8]) -> Result<Header, String> {
    read(bytes, bytes.len() as u64)
}

fn refused(writer: &Writer) -> String {
    read_all(&writer.bytes()).unwrap_err()
}

fn whole() -> Writer {
    Writer::new()
        .with("general.architecture", "llama")
        .with("a.number", 7u32)
        .with("a.float", 1e-5f32)
        .with("a.flag", true)
        .with("words", Given::strings(&["a", "", "größer", "🦀"]))
        .with("kinds", Given::i32s(&[1, -3]))
        .with("scores", Given::f32s(&[0.5, -1.0]))
        .f32s("one", &[3], &[1.0, 2.0, 3.0])
        .tensor("two", &[32, 2], Format::Q8_0, &[0; 68])
        .tensor("none", &[0], Format::F32, &[])
        .tensor("three", &[256], Format::Q6_K, &[0; 210])
}

#[test]
fn everything_that_a_header_says_is_read() {
    let bytes = whole().bytes();
    let header = read_all(&bytes).unwrap();
    let metadata = &header.metadata;
    assert_eq!(metadata.str("general.architecture"), Ok(Some("llama")));
    assert_eq!(metadata.usize("a.number"), Ok(Some(7)));
    assert_eq!(metadata.f64("a.float"), Ok(Some(1e-5)));
    assert_eq!(metadata.bool("a.flag"), Ok(Some(true)));
    let words: Vec<&str> = metadata.strings("words").unwrap().unwrap().iter().collect();
    assert_eq!(words, ["a", "", "größer", "🦀"]);
    assert_eq!(metadata.numbers("kinds").unwrap().unwrap().integers(), Some(vec![1, -3]));
    assert_eq!(metadata.numbers("scores").unwrap().unwrap().f32s(), Some(vec![0.5, -1.0]));
    assert_eq!(metadata.numbers("scores").unwrap().unwrap().integers(), None);
    assert_eq!(metadata.str("missing"), Ok(None));
    assert_eq!(metadata.str("a.number").unwrap_err(), "a.number: expected a string, found 7");
    assert_eq!(header.len % 32, 0);
    assert_eq!(header.digest, blake3::hash(&bytes[..header.len as usize]));
    let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.offset - header.len, t.len)).collect();
    assert_eq!(found, [("one", 0, 12), ("two", 32, 68), ("none", 128, 0), ("three", 128, 210)]);
    assert_eq!(header.tensor("two").unwrap().dims, [32, 2]);
}

#[test]
fn version_2_is_read_alike_and_others_are_refused_by_number() {
    let mut writer = whole();
    writer.version = 2;
    assert!(read_all(&writer.bytes()).is_ok());
    for version in [0, 1, 4, u32::MAX] {
        writer.version = version;
        assert_eq!(refused(&writer), format!("it is GGUF version {version}; 2 and 3 are read"));
    }
    writer.version = 3u32.swap_bytes();
    assert!(refused(&writer).contains("big-endian"));
    let mut other = whole().bytes();
    other[0] = b'g';
    assert!(read_all(&other).unwrap_err().starts_with("not GGUF"));
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let bytes = whole().bytes();
    let ends = read_all(&bytes).unwrap().tensors.into_iter().map(|tensor| tensor.offset + tensor.len);
    let end = ends.max().unwrap() as usize;
    for len in 0..end {
        let error = read_all(&bytes[..len]).unwrap_err();
        assert!(error.starts_with("truncated"), "{len}: {error}");
    }
    // The last tensor's padding alone may be missing.
    for len in end..=bytes.len() {
        assert!(read_all(&bytes[..len]).is_ok(), "{len}");
    }
    // A file that is shorter than it was said to be.
    for len in [0, 4, 30, 200] {
        assert!(read(&bytes[..len], bytes.len() as u64).is_err(), "{len}");
    }
}

#[test]
fn bytes_behind_the_last_tensor_are_refused() {
    let mut bytes = whole().bytes();
    bytes.push(0);
    assert!(read_all(&bytes).unwrap_err().ends_with("bytes follow the last tensor"));
}

#[test]
fn counts_and_lengths_that_cannot_be_are_refused_before_anything_is_reserved() {
    for count in [1 << 20, u64::MAX] {
        let mut writer = whole();
        writer.pair_count = Some(count);
        assert!(refused(&writer).contains("metadata pairs"), "{count}");
        let mut writer = whole();
        writer.tensor_count = Some(count);
        assert!(refused(&writer).contains("tensors"), "{count}");
    }
    let mut writer = whole();
    writer.pair_count = Some(8);
    assert!(read_all(&writer.bytes()).is_err());
    for len in [1u64 << 40, u64::MAX] {
        let text = Writer::new().with("text", Given::raw(8, &len.to_le_bytes()));
        assert!(refused(&text).contains("truncated at the value of 'text'"), "{}", refused(&text));
        for kind in [0u32, 4, 8, 12] {
            let array = [kind.to_le_bytes().as_slice(), &len.to_le_bytes()].concat();
            let array = Writer::new().with("array", Given::raw(9, &array));
            assert!(refused(&array).contains("truncated at the value of 'array'"), "{}", refused(&array));
        }
    }
    let mut key = Writer::new().with(&"k".repeat(65_536), 1u32).bytes();
    assert!(read_all(&key).unwrap_err().contains("the limit is 65535"));
    key.truncate(100);
    assert!(read_all(&key).is_err());
}

#[test]
fn values_of_no_known_type_and_arrays_of_arrays_are_refused() {
    let unknown = Writer::new().with("key", Given::raw(13, &[0; 8]));
    assert_eq!(refused(&unknown), "the value of 'key' is of the type 13, which the format does not have");
    let nested = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes(), &[0; 32]].concat();
    assert!(refused(&Writer::new().with("key", Given::raw(9, &nested))).contains("array of arrays"));
    assert!(refused(&Writer::new().with("key", Given::raw(7, &[2]))).contains("is no Bool"));
    let text = [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat();
    assert!(refused(&Writer::new().with("key", Given::raw(8, &text))).contains("not UTF-8"));
    // Two strings that are UTF-8 only when they are joined.
    let halves =
        [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &1u64.to_le_bytes(), &[0xc3], &1u64.to_le_bytes(), &[0xb6]];
    assert!(refused(&Writer::new().with("key", Given::raw(9, &halves.concat()))).contains("not UTF-8"));
}

#[test]
fn what_is_there_twice_is_refused() {
    assert_eq!(refused(&whole().with("a.flag", false)), "the key 'a.flag' is there twice");
    assert_eq!(refused(&whole().f32s("one", &[1], &[1.0])), "tensor 'one' is there twice");
}

#[test]
fn formats_that_are_not_read_are_named() {
    let with = |format: u32| {
        let mut writer = whole();
        writer.infos[1].format = format;
        refused(&writer)
    };
    assert!(with(13).starts_with("tensor 'two': its format Q5_K is not read; F32, F16"), "{}", with(13));
    assert!(with(20).contains("IQ4_NL"));
    assert!(with(4711).contains("its format 4711 is unknown"));
}

#[test]
fn every_format_fills_its_blocks() {
    for format in Format::ALL {
        let (values, bytes) = format.block();
        let row = values as u64 * 2;
        let data = vec![0; bytes as usize * 2 * 3];
        let header = read_all(&Writer::new().tensor("w", &[row, 3], format, &data).bytes()).unwrap();
        assert_eq!(header.tensors[0].len, data.len() as u64, "{format}");
        if values > 1 {
            let half = Writer::new().tensor("w", &[values as u64 / 2, 2], format, &data[..bytes as usize]);
            assert!(refused(&half).contains("no whole blocks"), "{format}");
        }
    }
}

#[test]
fn offsets_that_overlap_leave_gaps_or_are_unaligned_are_refused() {
    let moved = |to: u64| {
        let mut writer = whole();
        writer.infos[1].offset = to;
        refused(&writer)
    };
    assert!(moved(0).contains("overlaps 'one', which ends at"), "{}", moved(0));
    assert!(moved(64).contains("gap"), "{}", moved(64));
    assert!(moved(33).contains("no multiple of the alignment 32"), "{}", moved(33));
    assert!(moved(u64::MAX - 31).contains("gap"), "{}", moved(u64::MAX - 31));
    let mut past = whole();
    past.infos[0].dims = vec![1 << 40];
    past.infos.truncate(1);
    assert!(refused(&past).starts_with("truncated: tensor 'one'"));
    let mut overflowing = whole();
    overflowing.infos[0].dims = vec![1 << 40, 1 << 40];
    assert!(refused(&overflowing).contains("overflows"));
}

#[test]
fn names_and_dimensions_have_limits() {
    assert!(refused(&whole().f32s(&"n".repeat(65), &[1], &[1.0])).contains("the limit is 64"));
    assert!(refused(&whole().f32s("five", &[1; 5], &[1.0])).contains("5 dimensions, the limit is 4"));
    // Without dimensions, as with four, it is one number.
    assert!(read_all(&whole().f32s("four", &[1; 4], &[1.0]).f32s("none at all", &[], &[1.0]).bytes()).is_ok());
}

#[test]
fn an_alignment_of_its_own_is_kept_to() {
    let aligned = Writer::new().with("general.alignment", 8u32).f32s("a", &[1], &[1.0]);
    // Written on a border of 32, which is one of 8 too.
    assert!(read_all(&aligned.bytes()).unwrap_err().contains("bytes follow the last tensor"));
    let mut bytes = aligned.bytes();
    bytes.truncate(bytes.len() - 24);
    let header = read_all(&bytes).unwrap();
    assert_eq!(header.len % 8, 0);
    for bad in [0u32, 1, 4, 12, 1 << 20] {
        let wrong = Writer::new().with("general.alignment", bad).f32s("a", &[1], &[1.0]);
        assert!(refused(&wrong).contains("general.alignment: expected a power of two"), "{bad}");
    }
    assert!(refused(&Writer::new().with("general.alignment", "32")).contains("expected a whole number"));
}

#[test]
fn an_error_is_one_short_line_whatever_the_file_says() {
    let name = "a\nb\u{1b}[31m".to_owned();
    let mut writer = whole();
    writer.infos.push(Info { name, dims: vec![1], format: 99, offset: 0 });
    assert!(!refused(&writer).chars().any(char::is_control));
    let long = "x".repeat(60_000);
    let twice = Writer::new().with(&long, 1u32).with(&long, 1u32);
    assert!(refused(&twice).len() < 500);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(&dir.path().join("none.gguf")).unwrap_err(), "the file is missing");
    assert_eq!(open(dir.path()).unwrap_err(), "not a regular file");
}
