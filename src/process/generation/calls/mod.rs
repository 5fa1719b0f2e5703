//! Calls of tools in the text of an answer, read as the text comes.
//!
//! Models write a call as text, each family in a form of its own, which its chat template shows. Here the text is parted into calls and
//! what is content. It knows text only. It must not know tokens: what is a call must not depend on how the text was cut into pieces.

mod form;
mod json;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::json::Nesting;

pub use form::CallForm;

/// A tool that is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// A JSON object, as the model wrote it but for white space.
    pub arguments: String,
}

/// What a piece of the text made certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// Content.
    pub text: String,
    pub calls: Vec<Call>,
}

/// What counts as a call.
#[derive(Debug, Clone)]
pub struct CallRules {
    pub form: CallForm,
    /// The tools that there are. What no mark says to be a call is one only where it names one of them.
    pub tools: Arc<[String]>,
    /// Calls after the first are left out.
    pub only_first: bool,
}

/// Reads the calls of one answer.
///
/// Text that may turn out to be a call is held back. What is no well-formed call in the end is content, as it was written. White space
/// before a call belongs to it, as that after it where nothing but a call or the end follows: templates write it themselves.
#[derive(Debug, Clone)]
pub struct CallReader {
    rules: CallRules,
    state: State,
    /// What is not passed on yet.
    held: String,
    /// The last mark is complete.
    marked: bool,
    /// Nothing but white space came so far.
    begins: bool,
    /// Nothing but white space came since a call.
    after_call: bool,
    /// A call was told.
    called: bool,
    read: Read,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Content. What is held is white space, and so many bytes of a mark.
    Content { matched: usize },
    /// A call is to begin, or another one: what is held is one whole of calls, from the mark on.
    Before { calls: Vec<Call> },
    /// Within JSON that begins at a byte of what is held.
    Within { from: usize, nesting: Nesting, calls: Vec<Call> },
    /// A call is complete, and so much of a mark is there that ends it or begins the next.
    Closing { begun: String, call: Call },
}

/// What becomes of a character.
enum Step {
    Taken,
    /// What is held is no call, and the character is yet to be read.
    Refused,
}

impl CallReader {
    pub fn new(rules: CallRules) -> CallReader {
        CallReader {
            rules,
            state: State::Content { matched: 0 },
            held: String::new(),
            marked: false,
            begins: true,
            after_call: false,
            called: false,
            read: Read::default(),
        }
    }

    pub fn form(&self) -> CallForm {
        self.rules.form
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, text: &str) -> Read {
        for c in text.chars() {
            self.take(c);
        }
        std::mem::take(&mut self.read)
    }

    /// The text has ended: what was held back is what it is.
    pub fn finish(&mut self) -> Read {
        match std::mem::replace(&mut self.state, State::Content { matched: 0 }) {
            // Only what stands after a call is none of the content.
            State::Content { matched: 0 } if self.after_call => self.held.clear(),
            State::Before { calls } if !calls.is_empty() => self.tell(calls),
            State::Closing { begun, call } if begun.is_empty() => self.tell(vec![call]),
            State::Content { .. } | State::Before { .. } | State::Within { .. } | State::Closing { .. } => self.pass(),
        }
        std::mem::take(&mut self.read)
    }

    fn take(&mut self, c: char) {
        let state = std::mem::replace(&mut self.state, State::Content { matched: 0 });
        let step = match state {
            State::Content { matched } => {
                self.content(matched, c);
                Step::Taken
            }
            State::Before { calls } => self.before(calls, c),
            State::Within { from, nesting, calls } => self.within((from, nesting), calls, c),
            State::Closing { begun, call } => self.closing(begun, call, c),
        };
        if let Step::Refused = step {
            self.pass();
            self.content(0, c);
        }
    }

    fn content(&mut self, matched: usize, c: char) {
        let mark = self.rules.form.opens();
        if mark[matched..].starts_with(c) {
            self.held.push(c);
            let matched = matched + c.len_utf8();
            self.marked = matched == mark.len();
            self.state = match self.marked {
                true => State::Before { calls: Vec::new() },
                false => State::Content { matched },
            };
            return;
        }
        // A mark's first character is nowhere else in it: what was matched is the beginning of no other.
        if matched > 0 {
            self.pass();
            return self.content(0, c);
        }
        if c.is_whitespace() {
            return self.held.push(c);
        }
        if self.begins && c == '{' && self.rules.form.may_be_bare() {
            self.marked = false;
            self.state = self.within_from(c, Vec::new());
            return;
        }
        self.pass();
        self.read.text.push(c);
    }

    fn before(&mut self, calls: Vec<Call>, c: char) -> Step {
        // Llama 3 puts a semicolon between its calls.
        let between = c.is_whitespace() || c == ';' && !calls.is_empty();
        if between {
            self.held.push(c);
            self.state = State::Before { calls };
        } else if self.rules.form.begins_with(c) {
            self.state = self.within_from(c, calls);
        } else {
            return Step::Refused;
        }
        Step::Taken
    }

    /// Within the JSON that this character begins.
    fn within_from(&mut self, c: char, calls: Vec<Call>) -> State {
        let from = self.held.len();
        self.held.push(c);
        let mut nesting = Nesting::default();
        nesting.take(c);
        State::Within { from, nesting, calls }
    }

    fn within(&mut self, (from, mut nesting): (usize, Nesting), mut calls: Vec<Call>, c: char) -> Step {
        self.held.push(c);
        nesting.take(c);
        if !nesting.is_over() {
            self.state = State::Within { from, nesting, calls };
            return Step::Taken;
        }
        let whole = json::compact(&self.held[from..]);
        match self.rules.form {
            CallForm::Hermes => match json::call(&whole) {
                Some(call) => self.state = State::Closing { begun: String::new(), call },
                None => self.pass(),
            },
            CallForm::Mistral => match json::calls(&whole) {
                Some(calls) => self.tell(calls),
                None => self.pass(),
            },
            CallForm::Llama => match json::call(&whole).filter(|call| self.marked || self.is_known(call)) {
                Some(call) => {
                    calls.push(call);
                    self.state = State::Before { calls };
                }
                None => self.pass(),
            },
        }
        Step::Taken
    }

    fn closing(&mut self, mut begun: String, call: Call, c: char) -> Step {
        let (opens, closes) = (self.rules.form.opens(), self.rules.form.closes());
        if !(begun.is_empty() && c.is_whitespace()) {
            begun.push(c);
        }
        if ![opens, closes].iter().any(|mark| mark.starts_with(&begun)) {
            return Step::Refused;
        }
        self.held.push(c);
        if begun == closes {
            self.tell(vec![call]);
        } else if begun == opens {
            // A model may forget to close a call before the next.
            self.tell(vec![call]);
            self.held.push_str(opens);
            self.state = State::Before { calls: Vec::new() };
        } else {
            self.state = State::Closing { begun, call };
        }
        Step::Taken
    }

    fn is_known(&self, call: &Call) -> bool {
        self.rules.tools.contains(&call.name)
    }

    /// What is held is content.
    fn pass(&mut self) {
        self.begins = false;
        self.after_call = false;
        self.read.text.push_str(&self.held);
        self.held.clear();
    }

    /// What is held are calls.
    fn tell(&mut self, calls: Vec<Call>) {
        self.begins = false;
        self.after_call = true;
        self.held.clear();
        let most = match self.rules.only_first {
            true => usize::from(!std::mem::replace(&mut self.called, true)),
            false => usize::MAX,
        };
        self.read.calls.extend(calls.into_iter().take(most));
    }
}
