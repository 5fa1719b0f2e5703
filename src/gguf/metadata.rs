//! Metadata: keys and typed values, as the file has them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::Read;

use super::cursor::{Cursor, of_key};
use super::shown;

/// As the format says.
const LONGEST_KEY: u64 = 65_535;
/// A key of one byte, a type, and a value of one byte.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
/// A few dozen are usual.
const MOST_PAIRS: u64 = 65_536;

/// One value; whole numbers of every width are read into the widest.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Strings(Strings),
    Numbers(Numbers),
}

/// An array of strings in one piece of memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Strings {
    text: String,
    ends: Vec<u32>,
}

impl Strings {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.text.get(start..end)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// An array of numbers or booleans, as its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Numbers {
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.size().max(1)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn each<T>(&self, read: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
        let size = self.kind.size().max(1);
        self.bytes.chunks_exact(size).map(|bytes| self.kind.number(bytes).and_then(&read)).collect()
    }

    /// None where one of them is no whole number, or too large.
    pub fn integers(&self) -> Option<Vec<i64>> {
        self.each(|value| value.i64())
    }

    /// None where one of them is no f32.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        self.each(|value| if let Value::F32(number) = value { Some(number) } else { None })
    }
}

impl Value {
    fn i64(&self) -> Option<i64> {
        match self {
            Value::Unsigned(number) => i64::try_from(*number).ok(),
            Value::Signed(number) => Some(*number),
            _ => None,
        }
    }

    /// As an error says it, never long.
    fn describe(&self) -> String {
        match self {
            Value::Unsigned(number) => number.to_string(),
            Value::Signed(number) => number.to_string(),
            Value::F32(number) => number.to_string(),
            Value::F64(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::String(text) => shown(text),
            Value::Strings(strings) => format!("an array of {} strings", strings.len()),
            Value::Numbers(numbers) => format!("an array of {} numbers", numbers.len()),
        }
    }
}

/// Every pair of a file, by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn read<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<Metadata, String> {
        if count > MOST_PAIRS {
            return Err(format!("it claims {count} metadata pairs, the limit is {MOST_PAIRS}"));
        }
        cursor.possible(count, LEAST_PAIR, "its metadata")?;
        let mut pairs = BTreeMap::new();
        for number in 1..=count {
            let key = cursor.string(LONGEST_KEY, &format!("metadata key {number}"))?;
            match pairs.entry(key) {
                Entry::Vacant(free) => {
                    let value = Value::read(cursor, free.key())?;
                    free.insert(value);
                }
                Entry::Occupied(pair) => return Err(format!("the key {} is there twice", shown(pair.key()))),
            }
        }
        Ok(Metadata(pairs))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A value of the expected type, or none where the key is absent; every reader below is like it.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || format!("{key}: expected {expected}, found {}", value.describe());
        read(value).map(Some).ok_or_else(wrong)
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>, String> {
        self.typed(key, "a string", |value| if let Value::String(text) = value { Some(text.as_str()) } else { None })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    pub fn usize(&self, key: &str) -> Result<Option<usize>, String> {
        self.typed(key, "a whole number", |value| value.i64().and_then(|number| usize::try_from(number).ok()))
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>, String> {
        self.typed(key, "a token id", |value| value.i64().and_then(|number| u32::try_from(number).ok()))
    }

    /// A finite number; of an f32 the shortest decimal that is that f32, so that 1e-5 is 1e-5 and not 9.99999974e-6.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, String> {
        let read = |value: &Value| match value {
            Value::F32(number) => number.to_string().parse().ok(),
            Value::F64(number) => Some(*number),
            _ => None,
        };
        self.typed(key, "a finite number", |value| read(value).filter(|number: &f64| number.is_finite()))
    }

    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, String> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    pub fn numbers(&self, key: &str) -> Result<Option<&Numbers>, String> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Numbers(numbers) => Some(numbers),
            _ => None,
        })
    }
}

/// What the format calls a value type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// In the order of the numbers that stand for them.
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    fn read<R: Read>(cursor: &mut Cursor<R>, what: &str) -> Result<Kind, String> {
        let number = cursor.u32(what)?;
        let kind = Self::ALL.get(number as usize).copied();
        kind.ok_or_else(|| format!("{what} is of the type {number}, which the format does not have"))
    }

    /// Bytes of one; zero for what has none of its own.
    fn size(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::String | Kind::Array => 0,
        }
    }

    /// From as many bytes as one has; none where they are no value of it.
    fn number(self, bytes: &[u8]) -> Option<Value> {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let [b0, b1, b2, b3, ..] = wide;
        let (unsigned, four) = (u64::from_le_bytes(wide), [b0, b1, b2, b3]);
        Some(match self {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(unsigned),
            Kind::I8 => Value::Signed(i64::from(b0 as i8)),
            Kind::I16 => Value::Signed(i64::from(i16::from_le_bytes([b0, b1]))),
            Kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(four))),
            Kind::I64 => Value::Signed(i64::from_le_bytes(wide)),
            Kind::F32 => Value::F32(f32::from_le_bytes(four)),
            Kind::F64 => Value::F64(f64::from_le_bytes(wide)),
            Kind::Bool if b0 <= 1 => Value::Bool(b0 == 1),
            Kind::Bool | Kind::String | Kind::Array => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Value {
    fn read<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, String> {
        let what = of_key(key);
        match Kind::read(cursor, &what)? {
            Kind::String => cursor.string(u64::MAX, &what).map(Value::String),
            Kind::Array => Self::array(cursor, &what),
            kind => {
                let mut bytes = Vec::new();
                cursor.append(kind.size() as u64, &mut bytes, &what)?;
                kind.number(&bytes).ok_or_else(|| format!("{what} is no {kind}"))
            }
        }
    }

    fn array<R: Read>(cursor: &mut Cursor<R>, what: &str) -> Result<Value, String> {
        let kind = Kind::read(cursor, what)?;
        let count = cursor.u64(what)?;
        match kind {
            // As ggml's own reader.
            Kind::Array => Err(format!("{what} is an array of arrays, which is not read")),
            Kind::String => {
                // Each has its length before it.
                cursor.possible(count, 8, what)?;
                let (mut bytes, mut ends) = (Vec::new(), Vec::new());
                for _ in 0..count {
                    cursor.append_string(u64::MAX, &mut bytes, what)?;
                    // A header is far shorter than 4 GiB.
                    ends.push(u32::try_from(bytes.len()).map_err(|_| format!("{what} is too long"))?);
                }
                let text = String::from_utf8(bytes).map_err(|_| format!("{what} holds text that is not UTF-8"))?;
                // Each of them, not only all together.
                match ends.iter().all(|end| text.is_char_boundary(*end as usize)) {
                    true => Ok(Value::Strings(Strings { text, ends })),
                    false => Err(format!("{what} holds text that is not UTF-8")),
                }
            }
            kind => {
                cursor.possible(count, kind.size() as u64, what)?;
                let mut bytes = Vec::new();
                cursor.append(count * kind.size() as u64, &mut bytes, what)?;
                Ok(Value::Numbers(Numbers { kind, bytes }))
            }
        }
    }
}
