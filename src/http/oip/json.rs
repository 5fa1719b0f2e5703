//! Requests and answers as JSON, with or without bytes behind it.
//!
//! Source: the Open Inference Protocol, version 2 (REST), and its binary tensor data extension. Pure, like `tensor`.

use std::collections::HashSet;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tensor::{Asked, Head, Input, Output, Values, bad, flag, wanted};
use crate::error::{Error, Result};

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
    let outputs = outputs
        .map(|all| all.into_iter().map(|one| wanted(one.name, &one.parameters)).collect::<Result<Vec<_>>>())
        .transpose()?;
    Ok(Asked { id, parameters, inputs: read, outputs, binary })
}

fn read_input(input: WireInput, binary: &mut &[u8]) -> Result<Input> {
    let WireInput { name, shape, datatype, parameters, data } = input;
    let head = Head::new(&name, &datatype, &shape, &parameters)?;
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
            head.split(own)?
        }
        (None, Some(data)) => head.counted(strings(&name, data)?)?,
    };
    Ok(Input { name, elements, json })
}

/// Strings, however they are nested.
fn strings(name: &str, data: Value) -> Result<Vec<Vec<u8>>> {
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
    Ok(elements)
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
        let datatype = values.datatype();
        let before = bytes.len();
        let data = match (values, binary) {
            (Values::F32(values), false) => Some(Data::F32(values)),
            (Values::Bytes(values), false) => Some(Data::Bytes(values)),
            (values, true) => {
                values.append(&mut bytes);
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
