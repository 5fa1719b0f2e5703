//! Tensors on the wire: as JSON, or as bytes behind it.
//!
//! Source: the Open Inference Protocol, version 2, and its binary tensor data extension. Pure: it knows neither models
//! nor HTTP. Clients are not believed: every length is held against what is there before anything is allocated for it.

use std::collections::HashSet;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) id: Option<String>,
    pub(super) parameters: Map<String, Value>,
    pub(super) inputs: Vec<Input>,
    /// None when none is named: all of them.
    pub(super) outputs: Option<Vec<Wanted>>,
    /// Whether outputs come as bytes that do not say it themselves.
    pub(super) binary: bool,
}

/// Text or files: the only kind of tensor that a model here takes.
#[derive(Debug, PartialEq)]
pub(super) struct Input {
    pub(super) name: String,
    /// As many as its shape says.
    pub(super) elements: Vec<Vec<u8>>,
    /// They came as strings of JSON.
    pub(super) json: bool,
}

#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) binary: Option<bool>,
}

/// An output's values, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    F32(Vec<f32>),
    Bytes(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    pub(super) name: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

/// The types of the protocol, with the bytes of an element; BYTES have none.
const DATATYPES: [(&str, Option<usize>); 14] = [
    ("BOOL", Some(1)),
    ("UINT8", Some(1)),
    ("UINT16", Some(2)),
    ("UINT32", Some(4)),
    ("UINT64", Some(8)),
    ("INT8", Some(1)),
    ("INT16", Some(2)),
    ("INT32", Some(4)),
    ("INT64", Some(8)),
    ("FP16", Some(2)),
    ("FP32", Some(4)),
    ("FP64", Some(8)),
    ("BF16", Some(2)),
    ("BYTES", None),
];

#[derive(Deserialize)]
struct WireRequest {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<WireInput>,
    outputs: Option<Vec<WireWanted>>,
}

#[derive(Deserialize)]
struct WireInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct WireWanted {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Reads a request: `json`, and the bytes behind it in the order of the inputs.
pub(super) fn read(json: &[u8], mut binary: &[u8]) -> Result<Asked> {
    let WireRequest { id, parameters, inputs, outputs } = crate::http::body::json(json)?;
    let mut seen = HashSet::new();
    let mut read = Vec::with_capacity(inputs.len());
    for input in inputs {
        if !seen.insert(input.name.clone()) {
            return Err(bad(format!("input '{}' is there twice", input.name)));
        }
        read.push(read_input(input, &mut binary)?);
    }
    if !binary.is_empty() {
        return Err(bad(format!("{} bytes are behind the last input's", binary.len())));
    }
    let binary = flag(&parameters, "binary_data_output")?.unwrap_or(false);
    let outputs = outputs.map(|all| all.into_iter().map(wanted).collect::<Result<Vec<_>>>()).transpose()?;
    Ok(Asked { id, parameters, inputs: read, outputs, binary })
}

/// A request that is nothing but the one element of its only input.
pub(super) fn raw(name: &str, element: Vec<u8>) -> Asked {
    let input = Input { name: name.to_owned(), elements: vec![element], json: false };
    Asked { id: None, parameters: Map::new(), inputs: vec![input], outputs: None, binary: false }
}

fn bad(message: String) -> Error {
    Error::bad_param("inputs", message)
}

fn flag(parameters: &Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match parameters.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(Error::bad_param("parameters", format!("{name} is true or false, found {other}"))),
    }
}

fn wanted(WireWanted { name, parameters }: WireWanted) -> Result<Wanted> {
    // It would change what the output is.
    if parameters.get("classification").is_some_and(|count| count.as_u64() != Some(0)) {
        return Err(Error::bad_param("outputs", "the classification extension is not supported; ask for 'label'"));
    }
    Ok(Wanted { name, binary: flag(&parameters, "binary_data")? })
}

fn read_input(input: WireInput, binary: &mut &[u8]) -> Result<Input> {
    let WireInput { name, shape, datatype, parameters, data } = input;
    let Some((_, width)) = DATATYPES.iter().find(|(known, _)| *known == datatype) else {
        return Err(bad(format!("input '{name}': '{datatype}' is no datatype of the protocol")));
    };
    let count = elements(&name, &shape)?;
    for unsupported in ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"] {
        if parameters.contains_key(unsupported) {
            return Err(bad(format!("input '{name}': shared memory is not supported")));
        }
    }
    let size = match parameters.get("binary_data_size") {
        None => None,
        Some(size) => match size.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Some(size),
            None => return Err(bad(format!("input '{name}': binary_data_size is a number of bytes, found {size}"))),
        },
    };
    let json = size.is_none();
    let elements = match (size, data) {
        (Some(_), Some(_)) => return Err(bad(format!("input '{name}' has both data and binary_data_size"))),
        (None, None) => return Err(bad(format!("input '{name}' has neither data nor binary_data_size"))),
        (Some(size), None) => {
            let Some((own, rest)) = binary.split_at_checked(size) else {
                let (behind, what) = (binary.len(), "bytes are left behind the JSON");
                return Err(bad(format!("input '{name}': binary_data_size is {size}, {behind} {what}")));
            };
            *binary = rest;
            match width {
                None => split(&name, own, count)?,
                Some(width) if width.checked_mul(count) == Some(size) => Vec::new(),
                Some(width) => {
                    let reason = format!("{count} values of {datatype} take {width} bytes each, {size} are given");
                    return Err(bad(format!("input '{name}': {reason}")));
                }
            }
        }
        (None, Some(data)) => match width {
            None => strings(&name, data, count)?,
            Some(_) => Vec::new(),
        },
    };
    if width.is_some() {
        return Err(bad(format!("input '{name}' is {datatype}; the inputs of models here are BYTES")));
    }
    Ok(Input { name, elements, json })
}

fn elements(name: &str, shape: &[i64]) -> Result<usize> {
    let mut sizes = shape.iter().map(|size| usize::try_from(*size).ok());
    let count = sizes.try_fold(1usize, |count, size| count.checked_mul(size?));
    count.ok_or_else(|| bad(format!("input '{name}': {shape:?} is no shape")))
}

/// Elements that each come with four bytes of their length before them, little-endian.
fn split(name: &str, mut bytes: &[u8], count: usize) -> Result<Vec<Vec<u8>>> {
    // An element takes four bytes at least, so no more are made room for than there can be.
    let mut elements = Vec::with_capacity(count.min(bytes.len() / 4));
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((element, rest)) = rest.split_at_checked(length) else {
            return Err(bad(format!("input '{name}': element {} reaches beyond its bytes", elements.len())));
        };
        elements.push(element.to_vec());
        bytes = rest;
    }
    match (bytes.is_empty(), elements.len() == count) {
        (true, true) => Ok(elements),
        (true, false) => Err(bad(format!("input '{name}': its shape is of {count} elements, {} came", elements.len()))),
        (false, _) => Err(bad(format!("input '{name}' ends within an element's length"))),
    }
}

/// Strings, however they are nested.
fn strings(name: &str, data: Value, count: usize) -> Result<Vec<Vec<u8>>> {
    fn flatten(name: &str, data: Value, into: &mut Vec<Vec<u8>>) -> Result<()> {
        match data {
            Value::String(text) => into.push(text.into_bytes()),
            Value::Array(items) => items.into_iter().try_for_each(|item| flatten(name, item, into))?,
            other => return Err(bad(format!("input '{name}': BYTES in JSON are strings, found {other}"))),
        }
        Ok(())
    }
    let mut elements = Vec::new();
    match data {
        Value::Array(_) => flatten(name, data, &mut elements)?,
        _ => return Err(bad(format!("input '{name}': data is a list"))),
    }
    match elements.len() == count {
        true => Ok(elements),
        false => Err(bad(format!("input '{name}': its shape is of {count} elements, {} came", elements.len()))),
    }
}

/// A file in a string of JSON.
pub(super) fn from_base64(name: &str, text: &[u8]) -> Result<Vec<u8>> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|error| bad(format!("input '{name}': in JSON, files are base64: {error}")))
}

#[derive(Serialize)]
struct WireResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'a str,
    outputs: Vec<WireOutput<'a>>,
}

#[derive(Serialize)]
struct WireOutput<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    F32(&'a [f32]),
    Bytes(&'a [String]),
}

/// A body, and how many bytes of it are JSON, where bytes follow.
pub(super) struct Written {
    pub(super) body: Vec<u8>,
    pub(super) json: Option<usize>,
}

/// Writes a response with these outputs, each with whether it comes as bytes.
///
/// `of`: the request's id, the model, the version.
pub(super) fn write(of: (Option<&str>, &str, &str), outputs: &[(Output, bool)]) -> Result<Written> {
    let (id, model_name, model_version) = of;
    let mut bytes = Vec::new();
    let mut told = Vec::with_capacity(outputs.len());
    for (Output { name, shape, values }, binary) in outputs {
        let datatype = match values {
            Values::F32(_) => "FP32",
            Values::Bytes(_) => "BYTES",
        };
        let before = bytes.len();
        let data = match (values, binary) {
            (Values::F32(values), false) => Some(Data::F32(values)),
            (Values::Bytes(values), false) => Some(Data::Bytes(values)),
            (values, true) => {
                append(values, &mut bytes);
                None
            }
        };
        let parameters = binary.then(|| BinarySize { binary_data_size: bytes.len() - before });
        told.push(WireOutput { name, datatype, shape, parameters, data });
    }
    let response = WireResponse { id, model_name, model_version, outputs: told };
    let mut body = serde_json::to_vec(&response).map_err(Error::internal)?;
    let json = outputs.iter().any(|(_, binary)| *binary).then_some(body.len());
    body.append(&mut bytes);
    Ok(Written { body, json })
}

fn append(values: &Values, bytes: &mut Vec<u8>) {
    match values {
        Values::F32(values) => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
        Values::Bytes(values) => {
            for value in values {
                // A label is no longer than its file was.
                bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
                bytes.extend_from_slice(value.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn elements_of(all: &[&str]) -> Vec<Vec<u8>> {
        all.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn behind(all: &[Vec<u8>]) -> Vec<u8> {
        all.iter().flat_map(|element| [&(element.len() as u32).to_le_bytes()[..], element].concat()).collect()
    }

    #[track_caller]
    fn refused(request: &Value, binary: &[u8], says: &str) {
        let error = read(request.to_string().as_bytes(), binary).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn strings_may_be_flat_or_nested() {
        for (shape, data) in [(json!([2]), json!(["a", "b"])), (json!([2, 1]), json!([["a"], ["b"]]))] {
            let request = json!({ "inputs": [{ "name": "text", "shape": shape, "datatype": "BYTES", "data": data }] });
            let asked = read(request.to_string().as_bytes(), &[]).unwrap();
            assert_eq!(asked.inputs[0].elements, elements_of(&["a", "b"]));
            assert_eq!((asked.outputs, asked.binary), (None, false));
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused_with_its_reason() {
        let with = |changes: Value| {
            let mut input = json!({ "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"] });
            for (key, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => drop(input.as_object_mut().unwrap().remove(key)),
                    value => input[key] = value.clone(),
                }
            }
            json!({ "inputs": [input] })
        };
        let binary = |size: Value| with(json!({ "data": null, "parameters": { "binary_data_size": size } }));
        refused(&with(json!({ "shape": [-1] })), &[], "no shape");
        refused(&with(json!({ "shape": [i64::MAX, i64::MAX] })), &[], "no shape");
        refused(&with(json!({ "shape": [2] })), &[], "2 elements, 1 came");
        refused(&with(json!({ "datatype": "STRING" })), &[], "no datatype");
        refused(&with(json!({ "datatype": "FP32", "data": [1.0] })), &[], "are BYTES");
        refused(&with(json!({ "data": null })), &[], "neither");
        refused(&with(json!({ "parameters": { "binary_data_size": 5 } })), b"\x01\0\0\0a", "both");
        refused(&with(json!({ "data": [1] })), &[], "strings");
        refused(&with(json!({ "data": "a" })), &[], "a list");
        refused(&with(json!({})), b"x", "behind the last");
        refused(&binary(json!(6)), b"\x01\0\0\0a", "5 bytes are left");
        refused(&binary(json!(-1)), b"", "number of bytes");
        refused(&binary(json!(5)), b"\xff\xff\xff\xffa", "beyond its bytes");
        refused(&binary(json!(3)), b"\x01\0\0", "within an element's length");
        refused(&binary(json!(0)), b"", "1 elements, 0 came");
        let twice = json!({ "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"] });
        refused(&json!({ "inputs": [twice, twice] }), &[], "twice");
        refused(&json!({ "inputs": [], "parameters": { "binary_data_output": 1 } }), &[], "true or false");
        let classified = json!([{ "name": "label", "parameters": { "classification": 2 } }]);
        refused(&json!({ "inputs": [], "outputs": classified }), &[], "classification");
    }

    #[test]
    fn a_shape_that_lies_makes_no_room() {
        let input = json!({ "name": "text", "shape": [1u64 << 40], "datatype": "BYTES", "parameters": { "binary_data_size": 4 } });
        refused(&json!({ "inputs": [input] }), &[0; 4], "1 came");
    }

    #[test]
    fn numbers_are_as_short_as_they_can_be_and_bytes_follow_the_json() {
        let outputs = |binary: [bool; 2]| {
            let score = Output { name: "score", shape: vec![2], values: Values::F32(vec![0.1, -2.0]) };
            let label =
                Output { name: "label", shape: vec![2], values: Values::Bytes(vec!["é".into(), String::new()]) };
            [(score, binary[0]), (label, binary[1])]
        };
        let plain = write((None, "m", "1"), &outputs([false, false])).unwrap();
        assert_eq!(plain.json, None);
        let text = String::from_utf8(plain.body).unwrap();
        assert!(text.contains(r#""shape":[2],"data":[0.1,-2.0]"#) && !text.contains("\"id\""), "{text}");
        let mixed = write((Some("7"), "m", "1"), &outputs([true, true])).unwrap();
        let (json, bytes) = mixed.body.split_at(mixed.json.unwrap());
        let told: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(told["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(told["outputs"][1]["parameters"]["binary_data_size"], 10);
        assert_eq!(bytes[..4], 0.1f32.to_le_bytes());
        assert_eq!(&bytes[8..], b"\x02\0\0\0\xc3\xa9\0\0\0\0");
    }

    proptest! {
        #[test]
        fn elements_come_back_and_truncation_is_an_error(
            elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6), cut in 0usize..100,
        ) {
            let bytes = behind(&elements);
            let input = |size: usize| json!({
                "name": "x", "shape": [elements.len()], "datatype": "BYTES", "parameters": { "binary_data_size": size },
            });
            let request = |size| json!({ "inputs": [input(size)] }).to_string();
            let asked = read(request(bytes.len()).as_bytes(), &bytes).unwrap();
            prop_assert_eq!(&asked.inputs[0].elements, &elements);
            let cut = cut.min(bytes.len());
            prop_assert_eq!(read(request(cut).as_bytes(), &bytes[..cut]).is_ok(), cut == bytes.len());
            prop_assert_eq!(read(request(bytes.len()).as_bytes(), &bytes[..cut]).is_ok(), cut == bytes.len());
        }

        #[test]
        fn no_bytes_make_it_panic(json in prop::collection::vec(any::<u8>(), 0..60), binary in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&json, &binary);
            let input = json!({ "name": "x", "shape": [3], "datatype": "BYTES", "parameters": { "binary_data_size": binary.len() } });
            let _ = read(json!({ "inputs": [input] }).to_string().as_bytes(), &binary);
        }
    }
}
