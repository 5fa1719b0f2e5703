//! A call's values: typed, or as bytes behind the message's fields. Pure.
//!
//! Source: the protocol's gRPC specification, `ModelInferRequest` and `ModelInferResponse`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::http::oip::messages::{
    Contents, InferRequest, InferResponse, Parameter, ParameterValue, Tensor, WantedOutput,
};
use crate::http::oip::tensor::{Asked, Head, Input, Output, Values, bad, wanted};

pub(super) fn read(message: InferRequest) -> Result<Asked> {
    let InferRequest { id, parameters, inputs, outputs, raw_input_contents, .. } = message;
    let (raw, count) = (raw_input_contents.len(), inputs.len());
    if raw != 0 && raw != count {
        return Err(bad(format!("{raw} raw_input_contents for {count} inputs")));
    }
    let mut bytes = raw_input_contents.into_iter();
    let mut seen = HashSet::new();
    let mut read = Vec::with_capacity(count);
    for Tensor { name, datatype, shape, parameters, contents } in inputs {
        if !seen.insert(name.clone()) {
            return Err(bad(format!("input '{name}' is there twice")));
        }
        let head = Head::new(&name, &datatype, &shape, &values(parameters)?)?;
        // An empty one is as good as none.
        let contents = contents.filter(|contents| *contents != Contents::default());
        let elements = match (bytes.next(), contents) {
            (Some(_), Some(_)) => return Err(bad(format!("input '{name}' has both contents and raw_input_contents"))),
            (Some(bytes), None) => head.split(&bytes)?,
            (None, contents) => head.counted(contents.unwrap_or_default().bytes_contents)?,
        };
        read.push(Input { name, elements, json: false });
    }
    let one = |WantedOutput { name, parameters }| wanted(name, &values(parameters)?);
    Ok(Asked {
        id: Some(id).filter(|id| !id.is_empty()),
        parameters: values(parameters)?,
        inputs: read,
        outputs: Some(outputs)
            .filter(|outputs| !outputs.is_empty())
            .map(|outputs| outputs.into_iter().map(one).collect())
            .transpose()?,
        // An answer comes as its request did.
        binary: raw != 0,
    })
}

/// Parameters as JSON, as the rest of the protocol has them.
fn values(all: HashMap<String, Parameter>) -> Result<Map<String, Value>> {
    let one = |(name, parameter): (String, Parameter)| {
        let value = match parameter.value {
            None => Value::Null,
            Some(ParameterValue::Bool(value)) => value.into(),
            Some(ParameterValue::Int64(value)) => value.into(),
            Some(ParameterValue::Uint64(value)) => value.into(),
            Some(ParameterValue::String(value)) => value.into(),
            Some(ParameterValue::Double(value)) => match serde_json::Number::from_f64(value) {
                Some(number) => number.into(),
                None => return Err(Error::bad_param("parameters", format!("{name} is {value}"))),
            },
        };
        Ok((name, value))
    };
    all.into_iter().map(one).collect()
}

/// Outputs, all of them raw if the first one is.
pub(super) fn write(id: Option<String>, stamp: &Stamp, outputs: Vec<(Output, bool)>) -> InferResponse {
    let raw = outputs.first().is_some_and(|(_, raw)| *raw);
    let mut response = InferResponse {
        model_name: stamp.model.to_string(),
        model_version: stamp.version.to_string(),
        id: id.unwrap_or_default(),
        ..InferResponse::default()
    };
    for (Output { name, shape, values }, _) in outputs {
        let datatype = values.datatype();
        let contents = match raw {
            true => {
                let mut bytes = Vec::new();
                values.append(&mut bytes);
                response.raw_output_contents.push(bytes);
                None
            }
            false => Some(typed(values)),
        };
        response.outputs.push(Tensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: shape.into_iter().map(|size| i64::try_from(size).unwrap_or(i64::MAX)).collect(),
            contents,
            ..Tensor::default()
        });
    }
    response
}

fn typed(values: Values) -> Contents {
    match values {
        Values::F32(values) => Contents { fp32_contents: values, ..Contents::default() },
        Values::Bytes(values) => {
            let bytes_contents = values.into_iter().map(String::into_bytes).collect();
            Contents { bytes_contents, ..Contents::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn input(shape: &[i64], elements: &[&[u8]]) -> Tensor {
        let bytes_contents = elements.iter().map(|element| element.to_vec()).collect();
        let contents = Some(Contents { bytes_contents, ..Contents::default() });
        Tensor { name: "text".into(), datatype: "BYTES".into(), shape: shape.to_vec(), contents, ..Tensor::default() }
    }

    fn request(inputs: Vec<Tensor>, raw_input_contents: Vec<Vec<u8>>) -> InferRequest {
        InferRequest { inputs, raw_input_contents, ..InferRequest::default() }
    }

    #[test]
    fn values_come_typed_or_raw_and_not_both() {
        let typed = read(request(vec![input(&[2, 1], &[b"a", b"b"])], vec![])).unwrap();
        assert_eq!((typed.inputs[0].elements.len(), typed.binary), (2, false));
        let bare = Tensor { contents: None, ..input(&[1], &[]) };
        let raw = read(request(vec![bare.clone()], vec![b"\x01\0\0\0a".to_vec()])).unwrap();
        assert_eq!((&raw.inputs[0].elements[..], raw.binary), (&[b"a".to_vec()][..], true));
        let refused = |request: InferRequest, says: &str| {
            let error = read(request).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let some = || b"\x01\0\0\0a".to_vec();
        refused(request(vec![input(&[1], &[b"a"])], vec![some()]), "both");
        refused(request(vec![bare.clone()], vec![some(), some()]), "2 raw_input_contents for 1");
        refused(request(vec![bare.clone(), bare.clone()], vec![some(), some()]), "twice");
        refused(request(vec![bare], vec![]), "1 elements, 0 came");
        refused(request(vec![input(&[-1], &[])], vec![]), "no shape");
        let numbers = Tensor { datatype: "FP32".into(), ..input(&[1], &[]) };
        refused(request(vec![numbers], vec![]), "are BYTES");
    }

    #[test]
    fn parameters_are_what_they_are_in_json() {
        let parameter = |value| Parameter { value: Some(value) };
        let given = HashMap::from([
            ("timeout".to_owned(), parameter(ParameterValue::Uint64(5))),
            ("normalize".to_owned(), parameter(ParameterValue::Bool(false))),
            ("nothing".to_owned(), Parameter { value: None }),
        ]);
        let map = values(given).unwrap();
        assert_eq!((&map["timeout"], &map["normalize"], &map["nothing"]), (&5.into(), &false.into(), &Value::Null));
        let nan = HashMap::from([("x".to_owned(), parameter(ParameterValue::Double(f64::NAN)))]);
        assert!(values(nan).is_err());
    }

    #[test]
    fn an_answer_comes_as_its_request_did() {
        let stamp = Stamp { model: "m".into(), version: "1".into(), generation: crate::generation::GenerationId(1) };
        let score = |raw| (Output { name: "score", shape: vec![2], values: Values::F32(vec![0.5, -2.0]) }, raw);
        let raw = write(Some("7".into()), &stamp, vec![score(true)]);
        assert_eq!(raw.raw_output_contents, [[0.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat()]);
        assert!(raw.outputs[0].contents.is_none() && raw.id == "7");
        let typed = write(None, &stamp, vec![score(false)]);
        assert_eq!(typed.outputs[0].contents.as_ref().unwrap().fp32_contents, [0.5, -2.0]);
        assert_eq!((typed.raw_output_contents.len(), &typed.outputs[0].shape[..]), (0, &[2i64][..]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = InferRequest::decode(&bytes[..]) {
                let _ = read(message);
            }
        }
    }
}
