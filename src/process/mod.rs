//! The CPU side of one generation: raw inputs to numbers before the forward pass, rows to answers after it.
//!
//! It knows a version's `Spec`, its tokenizer and its image preprocessor. It must not know tensors, devices, queues
//! or HTTP. Everything here is plain synchronous code that may take milliseconds (a long text, a large image):
//! callers on an async runtime run it on a blocking pool.

mod ascii;
mod finish;
pub mod generation;
mod image;
pub mod sampling;
mod settings;
mod text;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use crate::error::{Error, Result};
use crate::model::Input;
use crate::repository::{Limits, Spec};
use crate::value::{Output, RawInput, Task};

pub use finish::FinishOptions;
pub use generation::{
    Call, CallForm, CallReader, Detokenizer, Message, Read, RenderOptions, Specials, StopStrings, TextDecoder,
};
pub use sampling::{Choice, MOST_LOGPROBS, Sampler, SamplingOptions};
pub use writer::{RawPrompt, Writer};

/// How a request wants its inputs prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Cut an input that is longer than the version takes, rather than refuse it.
    pub truncate: bool,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        PrepareOptions { truncate: true }
    }
}

/// A PNG file of one grey pixel.
const EXAMPLE_IMAGE: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00, 0x00, 0x00,
    0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x3a, 0x7e, 0x9b, 0x55, 0x00, 0x00, 0x00, 0x0a, 0x49,
    0x44, 0x41, 0x54, 0x78, 0xda, 0x63, 0x68, 0x00, 0x00, 0x00, 0x82, 0x00, 0x81, 0xda, 0x45, 0x08, 0x3b, 0x00, 0x00,
    0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

/// A version's tokenizer or image preprocessor, and the head that reads its rows. Immutable and shared by threads.
#[derive(Debug)]
pub struct Processor {
    task: Task,
    inputs: Inputs,
    head: finish::Head,
}

#[derive(Debug)]
enum Inputs {
    // boxed: a tokenizer is large, and there is one of these a generation
    Text(Box<text::TextProcessor>),
    Prompt(Box<Writer>),
    Image(image::ImageProcessor),
}

impl Processor {
    /// Reads what the version needs: `tokenizer.json` (required for text) and `tokenizer_config.json`, or the
    /// `preprocessor_config.json` in `spec`. Nothing is read later.
    ///
    /// # Errors
    /// `Unloadable`, naming file and setting: a missing file, a tokenizer whose ids do not fit the model, limits that
    /// leave no room for a single token, a processor feature that is not implemented, a task that has no head here.
    pub fn load(spec: &Spec, limits: &Limits) -> Result<Processor> {
        let head = finish::Head::load(spec)?;
        let inputs = match spec.task {
            Task::Embed | Task::Classify | Task::Rerank => {
                Inputs::Text(Box::new(text::TextProcessor::load(spec, limits)?))
            }
            Task::ImageClassify => Inputs::Image(image::ImageProcessor::load(spec, limits)?),
            Task::Generate => Inputs::Prompt(Box::new(Writer::load(spec, limits)?)),
        };
        Ok(Processor { task: spec.task, inputs, head })
    }

    /// Texts that are written are no longer than this in tokens, prompt and continuation together.
    pub fn shorten(&mut self, longest: usize) {
        if let Inputs::Prompt(writer) = &mut self.inputs {
            writer.shorten(longest);
        }
    }

    /// Tokenizes a text or prepares an image.
    ///
    /// A text that is longer than `max_tokens` is cut as Hugging Face cuts it (of two texts the longer one first), or
    /// refused when `options.truncate` is false. An empty text is allowed: it is its special tokens.
    ///
    /// # Errors
    /// `BadRequest` for what the task does not take, for token ids outside the vocabulary, for an image that cannot
    /// be read; `TooLarge` for an image that is bigger than the limits allow, told from its header.
    pub fn prepare(&self, input: &RawInput, options: &PrepareOptions) -> Result<Input> {
        match (&self.inputs, self.task, input) {
            (Inputs::Text(text), Task::Embed | Task::Classify, RawInput::Text(a)) => text.single(a, options),
            (Inputs::Text(text), Task::Embed | Task::Classify, RawInput::Tokens(ids)) => text.literal(ids, options),
            (Inputs::Text(text), Task::Classify | Task::Rerank, RawInput::Pair(a, b)) => text.pair(a, b, options),
            // To be judged, not continued: how likely it is.
            (Inputs::Prompt(writer), _, RawInput::Text(text)) => writer.scored(&RawPrompt::Text(text.clone())),
            (Inputs::Prompt(writer), _, RawInput::Tokens(ids)) => writer.scored(&RawPrompt::Tokens(ids.clone())),
            (Inputs::Prompt(writer), _, RawInput::Pair(prompt, after)) => writer.pair(prompt, after),
            (Inputs::Image(image), Task::ImageClassify, RawInput::Image(bytes)) => {
                Ok(Input::Pixels(image.prepare(bytes)?))
            }
            _ => Err(Error::bad_request(format!(
                "this model's task is {}: it takes {}, not {}",
                self.task,
                taken_by(self.task),
                name_of(input)
            ))),
        }
    }

    /// An input of the right kind, for first forward passes where there is no golden case to borrow one from.
    pub fn example(&self) -> Result<Input> {
        let text = || "a sentence to begin with".to_owned();
        let input = match self.task {
            Task::Rerank => RawInput::Pair(text().into(), text()),
            Task::Embed | Task::Classify | Task::Generate => RawInput::Text(text()),
            Task::ImageClassify => RawInput::Image(EXAMPLE_IMAGE.to_vec()),
        };
        self.prepare(&input, &PrepareOptions::default())
    }

    /// Reads one row of the forward pass as the task's answer.
    ///
    /// # Errors
    /// `BadRequest` for options that this version cannot satisfy; `NonFinite` for a row that holds NaN or infinity;
    /// `Internal` for a row of the wrong width.
    pub fn finish(&self, row: Vec<f32>, options: &FinishOptions) -> Result<Output> {
        self.head.finish(row, options)
    }

    /// Of a version that writes.
    ///
    /// # Errors
    /// `BadRequest` for any other: its task has no text to give.
    pub fn writer(&self) -> Result<&Writer> {
        match &self.inputs {
            Inputs::Prompt(writer) => Ok(writer),
            _ => Err(Error::bad_request(format!("this model's task is {}: it writes no text", self.task))),
        }
    }

    /// Of the tokenizer, where that does not follow from the bytes of one file.
    /// Which chats its template takes, of a version that writes ([`Contract::chats`](crate::repository::Contract::chats)).
    pub fn chats(&self) -> Option<Vec<String>> {
        match &self.inputs {
            Inputs::Prompt(writer) => Some(writer.chats()),
            _ => None,
        }
    }

    pub fn tokenizer_digest(&self) -> Option<&str> {
        match &self.inputs {
            Inputs::Prompt(writer) => Some(writer.digest()),
            _ => None,
        }
    }

    /// How texts are cut into tokens, and how many tokens there are; `None` where inputs are not text.
    pub fn tokenizer(&self) -> Option<(&'static str, usize)> {
        match &self.inputs {
            Inputs::Text(text) => Some(text.kind()),
            Inputs::Prompt(writer) => Some(text::kind_of(writer.tokenizer())),
            Inputs::Image(_) => None,
        }
    }

    /// The longest input in tokens, special tokens included; `None` where inputs are not text.
    pub fn max_tokens(&self) -> Option<usize> {
        match &self.inputs {
            Inputs::Text(text) => Some(text.max_tokens()),
            Inputs::Prompt(writer) => Some(writer.context()),
            Inputs::Image(_) => None,
        }
    }
}

fn taken_by(task: Task) -> &'static str {
    match task {
        Task::Embed => "a text or token ids",
        Task::Classify => "a text, a pair of texts or token ids",
        Task::Rerank => "a pair of texts",
        Task::ImageClassify => "an image",
        Task::Generate => "a text",
    }
}

fn name_of(input: &RawInput) -> &'static str {
    match input {
        RawInput::Text(_) => "a text",
        RawInput::Pair(..) => "a pair of texts",
        RawInput::Tokens(_) => "token ids",
        RawInput::Image(_) => "an image",
    }
}
