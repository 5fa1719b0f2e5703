//! Calls of tools as OpenAI tells them.
//!
//! Source: OpenAI API reference, "Chat completions" and "Chat completions: streaming", `tool_calls`.

use serde_json::{Value, json};

use crate::http::request;
use crate::process::{Call, CallForm};
use crate::slot::EndReason;

/// Why an answer ended.
pub(super) fn word(reason: EndReason, called: bool) -> &'static str {
    match reason {
        EndReason::Stop if called => "tool_calls",
        EndReason::Stop => "stop",
        // Perhaps within another call.
        EndReason::Length => "length",
    }
}

/// Adds calls to a whole answer, which has no content where nothing is said beside them.
pub(super) fn add(choice: &mut Value, calls: &[Call], form: Option<CallForm>) {
    if calls.is_empty() {
        return;
    }
    let message = &mut choice["message"];
    if message["content"] == "" {
        message["content"] = Value::Null;
    }
    message["tool_calls"] = calls.iter().map(|call| told(call, form)).collect();
}

/// Calls in a stream, which follow so many others of their answer.
pub(super) fn delta(at: usize, before: usize, calls: &[Call], form: Option<CallForm>) -> Value {
    let numbered = calls.iter().zip(before..).map(|(call, index)| {
        let mut call = told(call, form);
        call["index"] = index.into();
        call
    });
    let delta = json!({ "tool_calls": numbered.collect::<Vec<_>>() });
    json!({ "index": at, "delta": delta, "logprobs": null, "finish_reason": null })
}

fn told(call: &Call, form: Option<CallForm>) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    json!({ "id": id(form), "type": "function", "function": function })
}

fn id(form: Option<CallForm>) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    if !form.is_some_and(CallForm::has_short_ids) {
        return format!("call_{}", request::fresh());
    }
    let mut random: u64 = rand::random();
    let letters = std::iter::repeat_with(|| {
        let letter = LETTERS[(random % 62) as usize];
        random /= 62;
        char::from(letter)
    });
    letters.take(9).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn call(name: &str) -> Call {
        Call { name: name.to_owned(), arguments: "{}".to_owned() }
    }

    #[test]
    fn an_answer_that_only_calls_has_no_content() {
        let said = |text: &str| json!({ "message": { "role": "assistant", "content": text }, "finish_reason": "x" });
        let (mut only, mut both, mut none) = (said(""), said("a"), said(""));
        add(&mut only, &[call("f"), call("g")], None);
        add(&mut both, &[call("f")], None);
        add(&mut none, &[], None);
        let message = &only["message"];
        assert_eq!((&message["content"], message["tool_calls"].as_array().unwrap().len()), (&Value::Null, 2));
        assert_eq!(message["tool_calls"][1]["function"], json!({ "name": "g", "arguments": "{}" }));
        assert_eq!((&both["message"]["content"], none), (&json!("a"), said("")));
    }

    #[test]
    fn calls_of_a_stream_are_numbered_on() {
        let delta = delta(3, 2, &[call("f"), call("g")], None);
        let calls = delta["delta"]["tool_calls"].as_array().unwrap();
        let indices: Vec<&Value> = calls.iter().map(|call| &call["index"]).collect();
        assert_eq!((&delta["index"], indices), (&json!(3), vec![&json!(2), &json!(3)]));
        assert_eq!((&calls[0]["type"], &calls[0]["function"]["name"]), (&json!("function"), &json!("f")));
    }

    #[test]
    fn ids_are_each_their_own_and_short_where_a_template_wants_them_so() {
        let ids: BTreeSet<String> = (0..100).map(|_| id(Some(CallForm::Hermes))).collect();
        assert!(ids.len() == 100 && ids.iter().all(|id| id.starts_with("call_")), "{ids:?}");
        let ids: BTreeSet<String> = (0..100).map(|_| id(Some(CallForm::Mistral))).collect();
        let short = |id: &String| id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric());
        assert!(ids.len() == 100 && ids.iter().all(short), "{ids:?}");
    }

    #[test]
    fn what_was_cut_short_is_told_so_whatever_was_called() {
        let words = [(EndReason::Stop, true), (EndReason::Stop, false), (EndReason::Length, true)];
        assert_eq!(words.map(|(reason, called)| word(reason, called)), ["tool_calls", "stop", "length"]);
    }
}
