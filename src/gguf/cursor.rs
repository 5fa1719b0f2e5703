//! The next bytes of a header: never more than the file has, none that are not part of its digest.

use std::io::{BufReader, Read};

use super::shown;

/// Bytes asked of the file at a time.
const BUFFER: usize = 64 << 10;

pub(super) struct Cursor<R> {
    source: BufReader<R>,
    digest: blake3::Hasher,
    at: u64,
    file_len: u64,
    /// Where a header must have ended.
    limit: u64,
}

impl<R: Read> Cursor<R> {
    pub(super) fn new(source: R, file_len: u64, limit: u64) -> Self {
        let source = BufReader::with_capacity(BUFFER, source);
        Cursor { source, digest: blake3::Hasher::new(), at: 0, file_len, limit }
    }

    /// Bytes that a header may still have.
    pub(super) fn left(&self) -> u64 {
        self.file_len.min(self.limit).saturating_sub(self.at)
    }

    /// How far the header came, and the digest of all of it.
    pub(super) fn finish(self) -> (u64, blake3::Hash) {
        (self.at, self.digest.finalize())
    }

    /// Fails unless `count` things of at least `least` bytes each can still come.
    pub(super) fn possible(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => Err(self.short(what, &format!("{count} of them take at least {least} bytes each"))),
        }
    }

    /// Appends the next `count` bytes; nothing is reserved for what is not there.
    pub(super) fn append(&mut self, count: u64, to: &mut Vec<u8>, what: &str) -> Result<(), String> {
        if count > self.left() {
            return Err(self.short(what, &format!("it takes {count} bytes")));
        }
        let start = to.len();
        let read = (&mut self.source).take(count).read_to_end(to);
        let read = read.map_err(|error| format!("cannot read {what}: {error}"))?;
        if read as u64 != count {
            return Err(format!("cannot read {what}: the file ended early"));
        }
        self.digest.update(&to[start..]);
        self.at += count;
        Ok(())
    }

    pub(super) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        if (N as u64) > self.left() {
            return Err(self.short(what, &format!("it takes {N} bytes")));
        }
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(|error| format!("cannot read {what}: {error}"))?;
        self.digest.update(&bytes);
        self.at += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn string(&mut self, longest: u64, what: &str) -> Result<String, String> {
        let mut bytes = Vec::new();
        self.append_string(longest, &mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// The bytes of a string, whose UTF-8 is the caller's to check.
    pub(super) fn append_string(&mut self, longest: u64, to: &mut Vec<u8>, what: &str) -> Result<(), String> {
        let len = self.u64(what)?;
        if len > longest {
            return Err(format!("{what} claims {len} bytes, the limit is {longest}"));
        }
        self.append(len, to, what)
    }

    /// Passes over what is missing to the next multiple of `alignment`.
    pub(super) fn align(&mut self, alignment: u64) -> Result<(), String> {
        let what = "the padding before the tensors";
        let padding = self.at.next_multiple_of(alignment) - self.at;
        let mut bytes = Vec::new();
        self.append(padding, &mut bytes, what)
    }

    fn short(&self, what: &str, takes: &str) -> String {
        let (at, left) = (self.at, self.left());
        match self.file_len <= self.limit {
            true => format!("truncated at {what}: {takes}, and {left} follow byte {at}"),
            false => format!("its header is longer than {} bytes at {what}: {takes}", self.limit),
        }
    }
}

/// What an error calls a thing of a key.
pub(super) fn of_key(key: &str) -> String {
    format!("the value of {}", shown(key))
}
