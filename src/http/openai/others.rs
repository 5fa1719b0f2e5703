//! Fields of requests that are no part of what is known here: those that a client would miss if they had no effect are refused by name.
//!
//! They may hold anything, of any size: of their values it is kept what is looked at, and of any other field nothing.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// What clients of OpenAI's and of other servers would miss if it had no effect. Any other field is taken and has none.
const UNSUPPORTED: [&str; 34] = [
    "allowed_token_ids",
    "audio",
    "bad_words",
    "chat_template",
    "documents",
    "dry_multiplier",
    "ebnf",
    "echo",
    "format",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "json_schema",
    "logits_processors",
    "min_tokens",
    "mirostat",
    "prediction",
    "prompt_logprobs",
    "regex",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "stop_token_ids",
    "structured_outputs",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "web_search_options",
    "xtc_probability",
];

/// What other servers call what is called otherwise here.
const OTHER_NAMES: [(&str, &str); 8] = [
    ("max_length", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("n_predict", "max_tokens"),
    ("n_probs", "logprobs"),
    ("num_predict", "max_tokens"),
    ("options", "its fields by themselves"),
    ("repeat_penalty", "repetition_penalty"),
    ("stop_sequences", "stop"),
];

const SKIP_SPECIALS: &str = "skip_special_tokens";
const MODALITIES: &str = "modalities";

/// What was sent of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::http) struct Others(Vec<(&'static str, Sent)>);

/// A value, as far as it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Null,
    Flag(bool),
    Number { zero: bool },
    Word { idle: bool, text: bool },
    List { empty: bool, texts: bool },
    Object { empty: bool },
}

impl Sent {
    /// Whether it asks for anything: clients send what they have no wish for as well.
    fn asks(self) -> bool {
        match self {
            Sent::Null | Sent::Flag(false) => false,
            Sent::Flag(true) => true,
            Sent::Number { zero: idle } | Sent::Word { idle, .. } => !idle,
            Sent::List { empty, .. } | Sent::Object { empty } => !empty,
        }
    }
}

impl Others {
    /// # Errors
    /// `BadRequest` with the first that asks for what is not done here.
    pub(super) fn refuse(&self) -> Result<()> {
        for field in UNSUPPORTED {
            // An empty schema asks for JSON, too.
            let is_schema = |sent| field.ends_with("json") && matches!(sent, Sent::Object { .. });
            if self.sent(field).is_some_and(|sent| sent.asks() || is_schema(sent)) {
                return Err(unsupported(field));
            }
        }
        for (field, here) in OTHER_NAMES {
            if self.sent(field).is_some_and(Sent::asks) {
                return Err(Error::bad_param(field, format!("{field} means nothing here; what is known is {here}")));
            }
        }
        if self.sent(SKIP_SPECIALS) == Some(Sent::Flag(false)) {
            let message = "skip_special_tokens is always true: special tokens are never in what is written";
            return Err(Error::bad_param(SKIP_SPECIALS, message));
        }
        match self.sent(MODALITIES) {
            None | Some(Sent::Null | Sent::List { texts: true, .. }) => Ok(()),
            Some(_) => Err(unsupported(MODALITIES)),
        }
    }

    /// Of a route that knows this field.
    pub(super) fn forget(&mut self, field: &str) {
        self.0.retain(|(name, _)| *name != field);
    }

    fn sent(&self, field: &str) -> Option<Sent> {
        self.0.iter().find(|(name, _)| *name == field).map(|(_, sent)| *sent)
    }
}

pub(super) fn unsupported(field: &'static str) -> Error {
    Error::bad_param(field, format!("{field} is not supported"))
}

/// The name of a field that is looked at.
fn looked_at(field: &str) -> Option<&'static str> {
    let other_names = OTHER_NAMES.iter().map(|(name, _)| *name);
    let mut names = UNSUPPORTED.into_iter().chain(other_names).chain([SKIP_SPECIALS, MODALITIES]);
    names.find(|name| *name == field)
}

impl<'de> Deserialize<'de> for Others {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsOthers;
        impl<'de> Visitor<'de> for AsOthers {
            type Value = Others;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Others, A::Error> {
                let mut others = Others::default();
                while let Some(field) = map.next_key::<String>()? {
                    match looked_at(&field) {
                        Some(name) => {
                            let sent = map.next_value()?;
                            // The last holds, as everywhere in JSON.
                            others.forget(name);
                            others.0.push((name, sent));
                        }
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(others)
            }
        }
        deserializer.deserialize_map(AsOthers)
    }
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsSent;
        impl<'de> Visitor<'de> for AsSent {
            type Value = Sent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Sent, E> {
                Ok(Sent::Null)
            }

            fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Sent, E> {
                Ok(Sent::Flag(flag))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Sent, E> {
                Ok(Sent::Number { zero: number == 0 })
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Sent, E> {
                Ok(Sent::Number { zero: number == 0 })
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Sent, E> {
                Ok(Sent::Number { zero: number == 0.0 })
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Sent, E> {
                // Of a call: that none is made, or that the model may choose where there are none.
                Ok(Sent::Word { idle: matches!(word, "" | "none" | "auto"), text: word == "text" })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sent, A::Error> {
                let (mut empty, mut texts) = (true, true);
                while let Some(one) = list.next_element()? {
                    empty = false;
                    texts &= matches!(one, Sent::Word { text: true, .. });
                }
                Ok(Sent::List { empty, texts })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sent, A::Error> {
                let mut empty = true;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    empty = false;
                }
                Ok(Sent::Object { empty })
            }
        }
        deserializer.deserialize_any(AsSent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Option<String> {
        let others: Others = serde_json::from_str(body).unwrap();
        match others.refuse() {
            Ok(()) => None,
            Err(Error::BadRequest { param, .. }) => param,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_would_be_missed_is_refused_by_name_and_what_asks_for_nothing_is_not() {
        for field in UNSUPPORTED.into_iter().chain(OTHER_NAMES.map(|(name, _)| name)) {
            for asks in ["true", "1", "-0.5", "\"word\"", "[null]", "{\"a\": []}"] {
                let body = format!("{{\"{field}\": {asks}}}");
                assert_eq!(refused(&body).as_deref(), Some(field), "{body}");
            }
            for idle in ["null", "false", "0", "0.0", "\"\"", "\"none\"", "\"auto\"", "[]"] {
                let body = format!("{{\"{field}\": {idle}}}");
                assert_eq!(refused(&body), None, "{body}");
            }
        }
        for (body, field) in [
            (r#"{"guided_json": {}}"#, Some("guided_json")),
            (r#"{"structured_outputs": {}}"#, None),
            (r#"{"skip_special_tokens": false}"#, Some("skip_special_tokens")),
            (r#"{"skip_special_tokens": true}"#, None),
            (r#"{"modalities": ["text"]}"#, None),
            (r#"{"modalities": null}"#, None),
            (r#"{"modalities": ["text", "audio"]}"#, Some("modalities")),
            (r#"{"modalities": "text"}"#, Some("modalities")),
            (r#"{"echo": false, "echo": true}"#, Some("echo")),
            (r#"{"echo": true, "echo": false}"#, None),
            (r#"{"user": "u", "zz": [[[{"a": 1}]]]}"#, None),
        ] {
            assert_eq!(refused(body).as_deref(), field, "{body}");
        }
    }

    #[test]
    fn nothing_is_kept_of_what_is_not_looked_at() {
        let body = format!(
            r#"{{"zz": [{}], "messages": [{{"a": [1, 2]}}], "grammar": "{}"}}"#,
            "0,".repeat(999) + "0",
            "x".repeat(999)
        );
        let others: Others = serde_json::from_str(&body).unwrap();
        assert_eq!(others, Others(vec![("grammar", Sent::Word { idle: false, text: false })]));
    }
}
