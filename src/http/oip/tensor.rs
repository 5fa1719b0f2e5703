//! Tensors, whichever way they come: as JSON, as bytes behind it, or in a protobuf message.
//!
//! Source: the Open Inference Protocol, version 2, and its binary tensor data extension. Pure: it knows neither models
//! nor HTTP. Clients are not believed: every length is held against what is there before anything is allocated for it.

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

const BYTES: &str = "BYTES";

/// The protocol's other types.
const NUMBERS: [&str; 13] =
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16"];

/// A request that is nothing but the one element of its only input.
pub(super) fn raw(name: &str, element: Vec<u8>) -> Asked {
    let input = Input { name: name.to_owned(), elements: vec![element], json: false };
    Asked { id: None, parameters: Map::new(), inputs: vec![input], outputs: None, binary: false }
}

pub(super) fn bad(message: String) -> Error {
    Error::bad_param("inputs", message)
}

pub(super) fn flag(parameters: &Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match parameters.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(Error::bad_param("parameters", format!("{name} is true or false, found {other}"))),
    }
}

/// An output that a client names.
pub(super) fn wanted(name: String, parameters: &Map<String, Value>) -> Result<Wanted> {
    // It would change what the output is.
    if parameters.get("classification").is_some_and(|count| count.as_u64() != Some(0)) {
        return Err(Error::bad_param("outputs", "the classification extension is not supported; ask for 'label'"));
    }
    Ok(Wanted { name, binary: flag(parameters, "binary_data")? })
}

/// What an input says of itself, before its values are looked at.
#[derive(Debug)]
pub(super) struct Head<'a> {
    name: &'a str,
    count: usize,
}

impl<'a> Head<'a> {
    /// # Errors
    /// `BadRequest` for a type that no model takes, for what is no shape, and for values that are elsewhere.
    pub(super) fn new(
        name: &'a str,
        datatype: &str,
        shape: &[i64],
        parameters: &Map<String, Value>,
    ) -> Result<Head<'a>> {
        match datatype {
            BYTES => {}
            known if NUMBERS.contains(&known) => {
                return Err(bad(format!("input '{name}' is {datatype}; the inputs of models here are {BYTES}")));
            }
            unknown => return Err(bad(format!("input '{name}': '{unknown}' is no datatype of the protocol"))),
        }
        for unsupported in ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"] {
            if parameters.contains_key(unsupported) {
                return Err(bad(format!("input '{name}': shared memory is not supported")));
            }
        }
        let mut sizes = shape.iter().map(|size| usize::try_from(*size).ok());
        let count = sizes.try_fold(1usize, |count, size| count.checked_mul(size?));
        let count = count.ok_or_else(|| bad(format!("input '{name}': {shape:?} is no shape")))?;
        Ok(Head { name, count })
    }

    /// Elements that each come with four bytes of their length before them, little-endian.
    pub(super) fn split(&self, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let name = self.name;
        // An element takes four bytes at least, so no more are made room for than there can be.
        let mut elements = Vec::with_capacity(self.count.min(bytes.len() / 4));
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some((element, rest)) = rest.split_at_checked(length) else {
                return Err(bad(format!("input '{name}': element {} reaches beyond its bytes", elements.len())));
            };
            elements.push(element.to_vec());
            bytes = rest;
        }
        match bytes.is_empty() {
            true => self.counted(elements),
            false => Err(bad(format!("input '{name}' ends within an element's length"))),
        }
    }

    /// These, if they are as many as the shape says.
    pub(super) fn counted(&self, elements: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let (name, count, came) = (self.name, self.count, elements.len());
        match came == count {
            true => Ok(elements),
            false => Err(bad(format!("input '{name}': its shape is of {count} elements, {came} came"))),
        }
    }
}

impl Values {
    pub(super) fn datatype(&self) -> &'static str {
        match self {
            Values::F32(_) => "FP32",
            Values::Bytes(_) => BYTES,
        }
    }

    /// Appends them as the binary extension has it.
    pub(super) fn append(&self, bytes: &mut Vec<u8>) {
        match self {
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
}
