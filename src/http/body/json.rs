//! Bodies that are JSON objects: how much may be in one, and errors that say what was expected.
//!
//! What a value is read into may take hundreds of times the bytes that it is written in: an object of one field of no name is
//! seven bytes, and several hundred in memory. So values are counted before any is read.

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Values of one body, keys included. An honest one holds some thousands.
pub(in crate::http) const MOST_VALUES: u64 = 1 << 18;

/// Parses a JSON object; the error says where it broke, and in which field.
pub(in crate::http) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    Object::of(bytes)?.read()
}

/// Parses JSON where no body at all means the default.
pub(in crate::http) fn json_or_default<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T> {
    // White space is no JSON: a body of it was meant to be something.
    if bytes.is_empty() { Ok(T::default()) } else { json(bytes) }
}

/// A body that is a JSON object, as far as its first byte says, of no more values than may be. It can be read more than once: for
/// each reader the fields that it knows, while those of the others are skipped and not held.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct Object<'a>(&'a str);

impl<'a> Object<'a> {
    pub(in crate::http) fn of(bytes: &'a [u8]) -> Result<Self> {
        Self::counted(bytes, |values| values.numbers + values.others)
    }

    /// The same of a request that may hold any number of token ids. Its reader keeps no number that is not of its type.
    pub(in crate::http) fn with_ids(bytes: &'a [u8]) -> Result<Self> {
        Self::counted(bytes, |values| values.others)
    }

    fn counted(bytes: &'a [u8], count: impl FnOnce(Values) -> u64) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|e| no_text(bytes, e.valid_up_to()))?;
        // Without this an array would be taken for the fields in their order.
        if !text.trim_start().starts_with('{') {
            return Err(Error::bad_request("the body is not a JSON object"));
        }
        // Each takes a byte at least.
        if bytes.len() as u64 > MOST_VALUES {
            let got = count(Values::of(bytes));
            if got > MOST_VALUES {
                return Err(Error::TooLarge { what: "number of JSON values", got, limit: MOST_VALUES });
            }
        }
        Ok(Object(text))
    }

    pub(in crate::http) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::http) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(self.0).map_err(|error| match placed::<T>(self.0) {
            Some((field, error)) => Error::bad_param(&field, format!("{field}: {error}")),
            None => Error::bad_request(format!("the body is not what was expected: {error}")),
        })
    }
}

/// How many values a JSON text holds. Of what is none it says something, and no less than a parser reads until it finds that out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Values {
    numbers: u64,
    /// Keys among them.
    others: u64,
}

impl Values {
    fn of(text: &[u8]) -> Values {
        let mut values = Values::default();
        let mut bytes = text.iter();
        let mut within_number = false;
        while let Some(byte) = bytes.next() {
            let is_number = match byte {
                b'-' | b'0'..=b'9' => true,
                b'+' | b'.' | b'e' | b'E' => within_number,
                _ => false,
            };
            values.numbers += u64::from(is_number && !within_number);
            within_number = is_number;
            match byte {
                b'"' => {
                    values.others += 1;
                    while let Some(byte) = bytes.next() {
                        match byte {
                            b'"' => break,
                            b'\\' => bytes.next(),
                            _ => continue,
                        };
                    }
                }
                // The letters that words begin with stand nowhere else in them.
                b'[' | b'{' | b't' | b'f' | b'n' => values.others += 1,
                _ => {}
            }
        }
        values
    }
}

/// The field whose value is none of its type, and what it is instead.
fn placed<T: DeserializeOwned>(text: &str) -> Option<(String, serde_json::Error)> {
    /// Names may be whatever a client sends.
    const LONGEST: usize = 128;
    let mut reader = serde_json::Deserializer::from_str(text);
    let error = serde_path_to_error::deserialize::<_, T>(&mut reader).err()?;
    let field = error.path().to_string();
    let is_value = error.inner().is_data() && field != "." && field.len() <= LONGEST;
    is_value.then(|| (field, error.into_inner()))
}

fn no_text(bytes: &[u8], at: usize) -> Error {
    let image = [(b"\x89PNG\r\n".as_slice(), "image/png"), (b"\xff\xd8\xff", "image/jpeg")];
    Error::bad_request(match image.iter().find(|(begins, _)| bytes.starts_with(begins)) {
        Some((_, kind)) => {
            format!("the body is an image, not JSON; where one is taken it comes with 'content-type: {kind}'")
        }
        None => format!("the body is not UTF-8 (at byte {at})"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn only_no_body_at_all_means_the_default() {
        let read = |body: &[u8]| json_or_default::<std::collections::HashMap<String, u32>>(body);
        assert!(read(b"").unwrap().is_empty() && read(b"{}").unwrap().is_empty());
        assert_eq!(read(b" {\"a\": 1}\n").unwrap()["a"], 1);
        for body in [b"\t".as_slice(), b" \n", b"null", b"[]"] {
            assert!(read(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_told_with_its_field() {
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code, reason = "what is read is not looked at")]
        struct Part {
            heat: Option<f32>,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code, reason = "what is read is not looked at")]
        struct Whole {
            names: Vec<String>,
        }
        let told = |body: &str| {
            let object = Object::of(body.as_bytes()).unwrap();
            match (object.read::<Whole>(), object.read::<Part>()) {
                (Err(Error::BadRequest { message, param }), _) | (_, Err(Error::BadRequest { message, param })) => {
                    (param, message)
                }
                other => panic!("{other:?}"),
            }
        };
        let (param, message) = told(r#"{"names": ["a", 7]}"#);
        assert_eq!(param.as_deref(), Some("names[1]"));
        assert_eq!(message, "names[1]: invalid type: integer `7`, expected a string at line 1 column 17");
        let (param, message) = told(r#"{"heat": "hot", "names": []}"#);
        assert_eq!(param.as_deref(), Some("heat"));
        assert_eq!(message, "heat: invalid type: string \"hot\", expected f32 at line 1 column 14");
        // What is no JSON breaks somewhere, and what is missing is in no field.
        for body in [r#"{"names": ["a", "#, r#"{"heat": 1}"#] {
            let (param, message) = told(body);
            assert!(param.is_none() && message.starts_with("the body is not what was expected: "), "{message}");
        }
        let long = format!(r#"{{"{}": 1}}"#, "x".repeat(1000));
        let error = json::<std::collections::HashMap<String, String>>(long.as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 200 && error.contains("invalid type"), "{error}");
    }

    #[test]
    fn an_image_where_json_was_expected_is_told_from_noise() {
        let told = |body: &[u8]| json::<serde_json::Value>(body).unwrap_err().to_string();
        assert!(told(b"\x89PNG\r\n\x1a\n").ends_with("'content-type: image/png'"));
        assert!(told(b"\xff\xd8\xff\xe0").ends_with("'content-type: image/jpeg'"));
        assert_eq!(told(b"{\xff}"), "the body is not UTF-8 (at byte 1)");
    }

    #[test]
    fn values_are_counted_before_any_is_read() {
        let many = MOST_VALUES as usize;
        let refused = |body: String, ids: bool| {
            let object = if ids { Object::with_ids(body.as_bytes()) } else { Object::of(body.as_bytes()) };
            match object {
                Ok(_) => None,
                Err(Error::TooLarge { what: "number of JSON values", got, limit: MOST_VALUES }) => Some(got),
                Err(error) => panic!("{error}"),
            }
        };
        // The object and its key are two.
        let list = |one: &str, count: usize| format!(r#"{{"a":[{}]}}"#, vec![one; count].join(","));
        assert_eq!(refused(list("17", many - 3), false), None);
        assert_eq!(refused(list("17", many - 2), false), Some(MOST_VALUES + 1));
        // Token ids may be as many as the body's bytes allow; what else there is may not.
        assert_eq!(refused(list("17", 4 * many), true), None);
        assert_eq!(refused(list(r#""\"[1,1]""#, many), true), Some(MOST_VALUES + 3));
        assert_eq!(refused(list(r#"{"":0}"#, many), true), Some(2 * MOST_VALUES + 3));
        // However long, a text is one.
        assert_eq!(refused(format!(r#"{{"a":"{}"}}"#, r#"[1,\\\"2]"#.repeat(many)), false), None);
    }

    proptest! {
        /// As many as a parser finds.
        #[test]
        fn the_count_of_values_is_right(value in values()) {
            fn count(value: &Value) -> Values {
                let inside: Vec<Values> = match value {
                    Value::Number(_) => return Values { numbers: 1, others: 0 },
                    Value::Array(all) => all.iter().map(count).collect(),
                    Value::Object(all) => all.values().map(count).chain([Values { numbers: 0, others: all.len() as u64 }]).collect(),
                    _ => vec![],
                };
                let sum = |of: fn(&Values) -> u64| inside.iter().map(of).sum::<u64>();
                Values { numbers: sum(|v| v.numbers), others: 1 + sum(|v| v.others) }
            }
            prop_assert_eq!(Values::of(value.to_string().as_bytes()), count(&value));
            prop_assert_eq!(Values::of(serde_json::to_string_pretty(&value).unwrap().as_bytes()), count(&value));
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            r#"[a-z"\\\[{0-9é]{0,8}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(r#"[a-z"\\1]{0,4}"#, inner, 0..6)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }
}
