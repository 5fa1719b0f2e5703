//! Requests of strangers, and what comes back, held against the protocol.
//!
//! The first line of an input is a task and the header that says how much of the body is JSON, `embed 41`. In place of a
//! number it may be `cut`: then the JSON ends where the line `--` stands, which is taken out.

use std::collections::HashMap;

use axum::http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::infer::{self, wanted};
use super::tensor::{Asked, Output, Values};
use super::{JSON_BYTES, json as wire, json_bytes, read};
use crate::error::{Error, Result};
use crate::value::{self, LabelScore, RawInput, Task};

const CUT: &[u8] = b"\n--\n";

pub(crate) fn binary_tensors(data: &[u8]) -> Result<()> {
    let (task, header, body) = request(data).ok_or_else(|| Error::bad_request("not a line and a body"))?;
    let header = header.map(|header| HeaderValue::from_bytes(&header)).transpose();
    let header = header.map_err(|_| Error::bad_request("not the value of a header"))?;
    let headers: HeaderMap = header.into_iter().map(|header| (JSON_BYTES, header)).collect();
    answered(task, &headers, &body)
}

/// A task, the header where there is one, and the body.
fn request(data: &[u8]) -> Option<(Task, Option<Vec<u8>>, Vec<u8>)> {
    let at = data.iter().position(|byte| *byte == b'\n')?;
    let (line, body) = (&data[..at], &data[at + 1..]);
    let (name, header) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
    let task = serde_json::from_value(json!(std::str::from_utf8(name).ok()?)).ok()?;
    match header {
        [] => Some((task, None, body.to_vec())),
        b" cut" => {
            let at = body.windows(CUT.len()).position(|window| window == CUT)?;
            let bytes = [&body[..at], &body[at + CUT.len()..]].concat();
            Some((task, Some(at.to_string().into_bytes()), bytes))
        }
        [_, header @ ..] => Some((task, Some(header.to_vec()), body.to_vec())),
    }
}

/// As a request is: read, asked, and its answers written.
fn answered(task: Task, headers: &HeaderMap, body: &[u8]) -> Result<()> {
    let json = json_bytes(headers)?;
    let asked = read(body, json, task)?;
    adds_up(&asked, body, json);
    let elements: usize = asked.inputs.iter().map(|input| input.elements.len()).sum();
    let wanted = wanted(task, asked.outputs.as_deref(), asked.binary)?;
    let ask = infer::ask(task, asked.inputs, &asked.parameters)?;
    assert!((1..=elements).contains(&ask.inputs.len()), "{} of {elements} elements", ask.inputs.len());
    assert!(held(&ask.inputs) <= body.len(), "{} bytes of a body of {}", held(&ask.inputs), body.len());
    let outputs = infer::outputs(rows(task, ask.inputs.len()), &wanted).unwrap();
    let mut names: Vec<&str> = outputs.iter().map(|(output, _)| output.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "an output comes twice: {names:?}");
    comes_back(&outputs, asked.id.as_deref());
    Ok(())
}

/// What was read is what was sent: as many elements as the shape says, and every byte behind the JSON in one of them.
fn adds_up(asked: &Asked, body: &[u8], json: Option<usize>) {
    let (json, mut binary) = match json {
        None => (body, &[][..]),
        Some(0) => {
            let [input] = &asked.inputs[..] else { unreachable!("{} inputs", asked.inputs.len()) };
            return assert_eq!((&input.elements[..], input.json), (&[body.to_vec()][..], false));
        }
        Some(length) => body.split_at(length),
    };
    // Fields that nobody reads may hold what cannot be kept: a number or a nesting without end.
    let Ok(sent) = serde_json::from_slice::<Value>(json) else { return };
    let sent = sent["inputs"].as_array().unwrap();
    assert_eq!(asked.inputs.len(), sent.len());
    for (input, sent) in asked.inputs.iter().zip(sent) {
        assert_eq!(sent["name"], input.name.as_str());
        let shape = sent["shape"].as_array().unwrap().iter();
        let count: u64 = shape.map(|size| size.as_u64().unwrap()).product();
        assert_eq!(input.elements.len() as u64, count, "{}", input.name);
        for element in &input.elements {
            if !input.json {
                let (length, rest) = binary.split_first_chunk().unwrap();
                assert_eq!(u32::from_le_bytes(*length) as usize, element.len());
                binary = rest.strip_prefix(&element[..]).unwrap();
            }
        }
        if input.json {
            let mut texts = Vec::new();
            leaves(&sent["data"], &mut texts);
            assert_eq!(input.elements, texts);
        }
    }
    assert!(binary.is_empty(), "{} bytes are nobody's", binary.len());
}

/// Bytes of texts and files, each counted once wherever it is held.
fn held(inputs: &[RawInput]) -> usize {
    let parts = inputs.iter().flat_map(|input| match input {
        RawInput::Pair(a, b) => vec![a.as_bytes(), b.as_bytes()],
        RawInput::Text(text) => vec![text.as_bytes()],
        RawInput::Image(file) => vec![&file[..]],
        RawInput::Tokens(_) => vec![],
    });
    let places: HashMap<*const u8, usize> = parts.map(|bytes| (bytes.as_ptr(), bytes.len())).collect();
    places.values().sum()
}

fn leaves<'a>(data: &'a Value, into: &mut Vec<&'a [u8]>) {
    match data {
        Value::Array(items) => items.iter().for_each(|item| leaves(item, into)),
        Value::String(text) => into.push(text.as_bytes()),
        other => unreachable!("{other} was taken for an element"),
    }
}

/// What a model with this task could answer.
fn rows(task: Task, count: usize) -> Vec<value::Output> {
    let number = |row: usize, at: usize| (row as f32).mul_add(0.37, at as f32 / 3.0) - 1.0;
    let row = |row| match task {
        Task::Rerank => value::Output::Score { score: number(row, 0) },
        Task::Classify | Task::ImageClassify => {
            let labels = ["é", "", "b"].into_iter().enumerate();
            let labels = labels.map(|(at, label)| LabelScore { label: label.into(), score: number(row, at) });
            value::Output::Labels { labels: labels.collect() }
        }
        Task::Embed | Task::Generate => {
            value::Output::Embedding { embedding: (0..4).map(|at| number(row, at)).collect() }
        }
    };
    (0..count).map(row).collect()
}

/// A client that reads what is written finds these outputs.
fn comes_back(outputs: &[(Output, bool)], id: Option<&str>) {
    let written = wire::write((id, "model", "v1"), outputs).unwrap();
    let (json, mut binary) = written.body.split_at(written.json.unwrap_or(written.body.len()));
    let told: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(told.get("id").and_then(Value::as_str), id);
    let told = told["outputs"].as_array().unwrap();
    assert_eq!(told.len(), outputs.len());
    for ((Output { name, shape, values }, as_bytes), told) in outputs.iter().zip(told) {
        assert_eq!((&told["name"], &told["shape"]), (&json!(name), &json!(shape)));
        let count: usize = shape.iter().product();
        let size = told["parameters"]["binary_data_size"].as_u64();
        assert_eq!((size.is_some(), told.get("data").is_some()), (*as_bytes, !*as_bytes));
        let (own, rest) = binary.split_at(size.unwrap_or(0) as usize);
        binary = rest;
        match (values, as_bytes) {
            (Values::F32(values), true) => {
                assert_eq!(own, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
                assert_eq!(values.len(), count);
            }
            (Values::F32(values), false) => {
                assert_eq!(&serde_json::from_value::<Vec<f32>>(told["data"].clone()).unwrap(), values);
                assert_eq!(values.len(), count);
            }
            (Values::Bytes(values), true) => {
                let framed = |text: &String| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
                assert_eq!(own, values.iter().flat_map(framed).collect::<Vec<_>>());
                assert_eq!(values.len(), count);
            }
            (Values::Bytes(values), false) => {
                assert_eq!(told["data"], json!(values));
                assert_eq!(values.len(), count);
            }
        }
    }
    assert!(binary.is_empty());
}
