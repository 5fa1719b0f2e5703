use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::super::fixtures::{f32s, given, serialised, with_header};
use super::*;

fn read_bytes(bytes: &[u8]) -> Result<Header, String> {
    read(bytes, bytes.len() as u64)
}

fn refusal(json: &str, data: usize) -> String {
    read_bytes(&with_header(json, data)).unwrap_err()
}

fn valid() -> Vec<u8> {
    serialised(&[
        f32s("encoder.weight", &[2, 3], &[1.0; 6]),
        given("half", Dtype::F16, &[4], vec![0; 8]),
        given("ids", Dtype::I64, &[1, 2], vec![0; 16]),
        given("empty", Dtype::F32, &[0, 7], vec![]),
        f32s("scalar", &[], &[3.0]),
    ])
}

#[test]
fn a_header_of_the_reference_implementation_reads_the_same_here() {
    let bytes = valid();
    let header = read_bytes(&bytes).unwrap();
    let oracle = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(header.entries.len(), oracle.len());
    for entry in &header.entries {
        let expected = oracle.tensor(&entry.name).unwrap();
        assert_eq!(entry.shape, expected.shape());
        assert_eq!(entry.dtype.name(), format!("{:?}", expected.dtype()));
        let (from, to) = (entry.offset as usize, (entry.offset + entry.len) as usize);
        assert_eq!(&bytes[from..to], expected.data());
    }
}

#[test]
fn every_dtype_has_the_size_that_the_reference_implementation_gives_it() {
    for dtype in SourceDtype::ALL {
        let oracle: Dtype = serde_json::from_value(dtype.name().into()).unwrap();
        assert_eq!(dtype.block(), (1, oracle.bitsize() as u64 / 8), "{dtype}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = valid();
    for len in 0..bytes.len() {
        assert!(read_bytes(&bytes[..len]).is_err(), "cut to {len} of {} bytes", bytes.len());
    }
}

#[test]
fn each_defect_of_a_header_has_its_own_words() {
    let f32_at = |name: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |name: &str, from: u64, to: u64| f32_at(name, "[1]", from, to);
    let cases = [
        (
            format!("{{{},{}}}", one("a", 0, 4), one("b", 2, 6)),
            6,
            "tensor 'b': its offsets 2..6 overlap the tensor before",
        ),
        (format!("{{{},{}}}", one("a", 0, 4), one("b", 8, 12)), 12, "tensor 'b': its offsets 8..12 leave a gap"),
        (format!("{{{}}}", one("a", 4, 8)), 8, "tensor 'a': its offsets 4..8 leave a gap"),
        (format!("{{{}}}", one("a", 0, 8)), 8, "F32 of shape [1] takes 4 bytes"),
        (format!("{{{}}}", one("a", 0, 4)), 2, "truncated: tensor 'a' ends at byte 4 of 2 bytes"),
        (format!("{{{}}}", one("a", 0, 4)), 5, "1 bytes follow the last tensor"),
        (format!("{{{},{}}}", one("a", 0, 4), one("a", 4, 8)), 8, "tensor 'a' is there twice"),
        (format!("{{{}}}", f32_at("a", "[4294967296,4294967296,2]", 0, 4)), 4, "overflows"),
        (format!("{{{}}}", f32_at("a", "[4611686018427387905]", 0, 4)), 4, "overflows"),
        (format!("{{{}}}", f32_at("a", "[-1]", 0, 4)), 4, "tensor 'a': invalid value"),
        (format!("{{{}}}", f32_at("a", "[1.5]", 0, 4)), 4, "tensor 'a': invalid type"),
        (format!("{{{}}}", one("a", 4, 0)), 4, "leave a gap"),
        (format!("{{{},{}}}", one("a", 0, 4), one("b", 4, 0)), 4, "its offsets are 4..0"),
        (format!("{{{}}}", one("a", 0, u64::MAX)), 4, "takes 4 bytes"),
        (r#"{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, "dtype 'F8_E5M2' is not supported"),
        (r#"{"a":{"dtype":"F32","shape":[1]}}"#.into(), 4, "missing field `data_offsets`"),
        (r#"{"__metadata__":{"format":1}}"#.into(), 0, "bad header: invalid type"),
        ("[]".into(), 0, "does not begin with '{'"),
        ("".into(), 0, "does not begin with '{'"),
        ("{".into(), 0, "bad header: EOF"),
        ("{} {}".into(), 0, "bad header: trailing characters"),
    ];
    for (json, data, expected) in cases {
        let reason = refusal(&json, data);
        assert!(reason.contains(expected), "{json}: {reason}");
    }
}

#[test]
fn a_length_field_that_lies_is_refused_before_anything_is_allocated() {
    for len in [u64::MAX, u64::MAX - 7, LONGEST_HEADER + 1] {
        let mut bytes = with_header("{}", 0);
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        assert!(read_bytes(&bytes).unwrap_err().contains("the limit is 100000000"));
    }
    let mut bytes = with_header("{}", 0);
    bytes[..8].copy_from_slice(&LONGEST_HEADER.to_le_bytes());
    assert!(read_bytes(&bytes).unwrap_err().contains("truncated"));
}

#[test]
fn a_name_from_a_file_cannot_break_a_line_or_fill_a_page() {
    let json = format!(r#"{{"a\nb{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,3]}}}}"#, "x".repeat(5000));
    let reason = refusal(&json, 3);
    assert!(reason.contains(r"a\nb") && !reason.contains('\n') && reason.len() < 400, "{reason}");
}

/// Whatever is accepted here, the reference implementation accepts and sees the same.
fn agrees_with_the_oracle(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(header) = read_bytes(bytes) else { return Ok(()) };
    let oracle = SafeTensors::deserialize(bytes);
    let oracle = oracle.map_err(|error| TestCaseError::fail(format!("accepted what the oracle refuses: {error}")))?;
    prop_assert_eq!(header.entries.len(), oracle.len());
    for entry in &header.entries {
        let expected = oracle.tensor(&entry.name).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&entry.shape, expected.shape());
        let range = entry.offset as usize..(entry.offset + entry.len) as usize;
        prop_assert_eq!(&bytes[range], expected.data());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_change_of_a_valid_file_makes_the_reader_panic_or_disagree_with_the_oracle(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = valid();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        agrees_with_the_oracle(&bytes)?;
    }

    #[test]
    fn no_header_made_of_plausible_parts_makes_the_reader_panic_or_disagree_with_the_oracle(
        tensors in prop::collection::vec(
            ("[ab]{1,2}", prop::sample::select(vec!["F32", "F16", "I64", "U8", "F4", "nope"]),
             prop::collection::vec(prop::sample::select(vec![0u64, 1, 2, 3, 1 << 32, u64::MAX]), 0..4),
             0u64..40, 0u64..40),
            0..5,
        ),
        data in 0usize..64,
    ) {
        let parts: Vec<String> = tensors.iter().map(|(name, dtype, shape, from, to)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
        }).collect();
        agrees_with_the_oracle(&with_header(&format!("{{{}}}", parts.join(",")), data))?;
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        agrees_with_the_oracle(&bytes)?;
    }
}
