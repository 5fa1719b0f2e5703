//! Messages of a chat as clients send them, and as templates take them.
//!
//! Source: OpenAI API reference, "Chat completions", `messages`. It must not know templates.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::super::control::Spellings;
use crate::error::{Error, Result};

const CALLS: &str = "tool_calls";
/// Who calls.
const ASSISTANT: &str = "assistant";

/// The longest name of a role.
const LONGEST_ROLE: usize = 64;

/// One message. Fields that are not named here go to the template as they are, but those that are null: `name`, `tool_call_id`,
/// `tool_calls`, `reasoning_content`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    pub role: String,
    /// Absent is not the same as null, which a template may ask for.
    #[serde(default, deserialize_with = "present")]
    pub content: Option<Content>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
    Null,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Content>, D::Error> {
    Content::deserialize(deserializer).map(Some)
}

/// A part of a message's content; only those of the type `text` are taken.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: Some(Content::Text(content.into())), rest: Map::new() }
    }

    /// Whether it calls tools and says nothing beside.
    pub(super) fn only_calls(&self) -> bool {
        matches!(self.content, None | Some(Content::Null))
            && self.rest.get(CALLS).is_some_and(|calls| !is_nothing(calls))
    }

    /// The same, but that one which only calls tools says an empty text.
    pub(super) fn spoken(&self) -> Message {
        match self.only_calls() {
            true => Message { content: Some(Content::Text(String::new())), ..self.clone() },
            false => self.clone(),
        }
    }

    /// The text of its content: that of its parts line by line, as vLLM joins them.
    ///
    /// # Errors
    /// `BadRequest` for a part that is not text, by its name. `at` is the place of the message.
    pub(super) fn text(&self, at: usize) -> Result<Option<String>> {
        let parts = match &self.content {
            None | Some(Content::Null) => return Ok(None),
            Some(Content::Text(text)) => return Ok(Some(text.clone())),
            Some(Content::Parts(parts)) => parts,
        };
        let mut texts = Vec::with_capacity(parts.len());
        for (place, part) in parts.iter().enumerate() {
            texts.push(match (part.kind.as_str(), &part.text) {
                ("text", Some(text)) => text.as_str(),
                ("text", None) => return Err(refused(at, format!("part {place} of its content has no text"))),
                (kind, _) => {
                    let reason = format!("part {place} of its content is of the type '{kind}'; only text is taken");
                    return Err(refused(at, reason));
                }
            });
        }
        Ok(Some(texts.join("\n")))
    }

    /// Whether it calls tools with arguments that are text.
    pub(super) fn writes_arguments(&self) -> bool {
        let calls = self.rest.get(CALLS).filter(|_| self.role == ASSISTANT).and_then(Value::as_array);
        let text = |call: &Value| call.pointer("/function/arguments").is_some_and(Value::is_string);
        calls.is_some_and(|calls| calls.iter().any(text))
    }

    /// The message for the template, with its client's strings marked.
    pub(super) fn marked(&self, at: usize, spellings: &Spellings, arguments: Arguments) -> Result<Map<String, Value>> {
        self.check_role(at)?;
        let text = self.text(at)?;
        if text.is_none() && !self.only_calls() {
            return Err(refused(at, format!("it has no content (its role is '{}')", self.role)));
        }
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(self.role.clone()));
        if self.content.is_some() {
            let content = text.map_or(Value::Null, |text| Value::String(spellings.mark(&text).into_owned()));
            fields.insert("content".to_owned(), content);
        }
        for (key, value) in &self.rest {
            // Of what is null, or calls nothing, templates often ask no more than whether it is there.
            if value.is_null() || key == CALLS && is_nothing(value) {
                continue;
            }
            let value = match key == CALLS && self.role == ASSISTANT && arguments == Arguments::Opened {
                true => &opened(value),
                false => value,
            };
            fields.insert(key.clone(), spellings.mark_value(value));
        }
        Ok(fields)
    }

    pub(super) fn unknown_role(&self, at: usize, known: &[&str]) -> Error {
        let role: String = self.role.chars().take(LONGEST_ROLE).collect();
        refused(
            at,
            format!("its role {role:?} is none of {}, and the chat template does not name it", known.join(", ")),
        )
    }

    /// A role becomes part of what the template writes, so it is a plain word. Which words there are is the template's.
    fn check_role(&self, at: usize) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if self.role.is_empty() || self.role.len() > LONGEST_ROLE || !self.role.chars().all(plain) {
            let role: String = self.role.chars().take(LONGEST_ROLE).collect();
            let reason =
                format!("its role {role:?} is not a word of 1 to {LONGEST_ROLE} letters, digits, '_', '-', '.'");
            return Err(refused(at, reason));
        }
        Ok(())
    }
}

/// How a template sees the arguments of calls that are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// As the objects that they are.
    Opened,
    Written,
}

fn is_nothing(calls: &Value) -> bool {
    calls.is_null() || calls.as_array().is_some_and(Vec::is_empty)
}

/// Calls with their arguments as objects. OpenAI's interface has them as text, of which templates would make the JSON of a string.
fn opened(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let object = match arguments.as_str().map(str::trim) {
            None => continue,
            Some("") => Ok(Map::new()),
            Some(text) => serde_json::from_str(text),
        };
        // What is no object stays as it was written.
        if let Ok(object) = object {
            *arguments = Value::Object(object);
        }
    }
    calls
}

fn refused(at: usize, reason: String) -> Error {
    Error::bad_param("messages", format!("message {at}: {reason}"))
}
