//! How much a message holds, counted on the wire before it is decoded: an empty tensor is two bytes there, and more than a hundred
//! in memory.
//!
//! Source: protobuf encoding, "Message Structure"; `ModelInferRequest` of the protocol's gRPC specification. Pure.

/// Which message it is, as far as fields of it hold others of any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Call,
    Tensor,
    Contents,
}

/// `inputs` of a call, and `contents` of a tensor.
const WITHIN: u64 = 5;
/// `shape` of a tensor, whose numbers come packed.
const SHAPE: u64 = 3;

/// Fields of a message, of its tensors, and of their contents. Where it is no message, those before that: then it is not decoded
/// either.
pub(super) fn fields(message: &[u8]) -> u64 {
    count(message, Of::Call)
}

fn count(mut bytes: &[u8], of: Of) -> u64 {
    let mut count = 0;
    while let Some((tag, value)) = field(&mut bytes) {
        count += match (of, tag) {
            (Of::Call, WITHIN) => 1 + self::count(value, Of::Tensor),
            (Of::Tensor, WITHIN) => 1 + self::count(value, Of::Contents),
            // One byte each at least.
            (Of::Tensor, SHAPE) => 1 + value.len() as u64,
            _ => 1,
        };
    }
    count
}

/// The next field's tag, and its bytes where it has a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = varint(bytes)?;
    let length = match key & 7 {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        // Groups are no part of these messages, and are skipped where they are decoded: what is in one counts as if it were not.
        3 | 4 => 0,
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((key >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    const LONGEST: usize = 10;
    let mut number = 0;
    for (place, byte) in bytes.iter().take(LONGEST).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(7 * place as u32)?;
        if byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::http::oip::messages::{Contents, InferRequest, Tensor, WantedOutput};

    #[test]
    fn what_is_decoded_is_counted() {
        let encoded = |request: &InferRequest| fields(&request.encode_to_vec());
        assert_eq!(encoded(&InferRequest::default()), 0);
        let contents = Contents { bytes_contents: vec![vec![]; 300], fp32_contents: vec![] };
        let tensor = Tensor { name: "text".into(), shape: vec![1, 300], contents: Some(contents), ..Tensor::default() };
        // A tensor, its name, its shape of three bytes, its contents, and what is in them.
        assert_eq!(encoded(&InferRequest { inputs: vec![tensor], ..InferRequest::default() }), 1 + 1 + 4 + 1 + 300);
        let empty = InferRequest {
            model_name: "m".into(),
            inputs: vec![Tensor::default(); 1000],
            outputs: vec![WantedOutput::default(); 1000],
            raw_input_contents: vec![vec![]; 1000],
            ..InferRequest::default()
        };
        assert_eq!(encoded(&empty), 3001);
    }

    /// What the decoder goes on after.
    #[test]
    fn a_group_hides_nothing() {
        let group = [0xa3, 0x06, 0x08, 0x01, 0xa4, 0x06];
        let message = [&group[..], &[0x2a, 0x00].repeat(1000)].concat();
        assert_eq!(InferRequest::decode(&message[..]).unwrap().inputs.len(), 1000);
        assert_eq!(fields(&message), 1003);
    }

    #[test]
    fn what_is_no_message_ends_the_count() {
        for (bytes, count) in [
            (&b"\x2a\x00\x2a\x05\x0a"[..], 1),
            (b"\x2a\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1),
            (b"\x2a\x00\x16", 1),
            (b"\x08\x01\x11\0\0\0\0\0\0\0\0\x15\0\0\0\0", 3),
            (b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0),
        ] {
            assert_eq!(fields(bytes), count, "{bytes:?}");
        }
    }
}
