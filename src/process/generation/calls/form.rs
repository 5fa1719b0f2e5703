//! In which form a model writes its calls.

/// What tells that a template has calls in another form, though it has the mark of one that is read: Qwen3-Coder's
/// (`<function=name>`), GLM's (`<arg_key>`), and that of Mistral's newer models (`name[ARGS]{…}`).
const OTHERS: [&str; 3] = ["<function=", "<arg_key>", "[ARGS]"];

/// The forms that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after the other. Of Hermes, Qwen2.5 and Qwen3.
    Hermes,
    /// `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`. Of Mistral's models up to v7 of their tokenizer.
    Mistral,
    /// The whole answer is `{"name": …, "parameters": {…}}`, perhaps after `<|python_tag|>`, or several of them. Of Llama 3.1 to 3.3.
    Llama,
}

impl CallForm {
    /// In words.
    pub const ALL: &str = "Hermes' and Qwen's (<tool_call> round JSON), Mistral's ([TOOL_CALLS] and a JSON list) and \
                           Llama 3's (the answer is JSON with name and parameters)";

    /// Of the text of a chat template.
    pub fn of(template: &str) -> Option<CallForm> {
        let has = |text: &str| template.contains(text);
        if OTHERS.into_iter().any(has) {
            None
        } else if has(CallForm::Hermes.opens()) {
            Some(CallForm::Hermes)
        } else if has(CallForm::Mistral.opens()) {
            Some(CallForm::Mistral)
        } else if has("<|start_header_id|>") && has("\"parameters\"") || has(CallForm::Llama.opens()) {
            Some(CallForm::Llama)
        } else {
            None
        }
    }

    /// The mark that a call begins with.
    pub(super) fn opens(self) -> &'static str {
        match self {
            CallForm::Hermes => "<tool_call>",
            CallForm::Mistral => "[TOOL_CALLS]",
            CallForm::Llama => "<|python_tag|>",
        }
    }

    pub(super) fn closes(self) -> &'static str {
        match self {
            CallForm::Hermes => "</tool_call>",
            CallForm::Mistral | CallForm::Llama => "",
        }
    }

    /// Whether the JSON of a call may begin so.
    pub(super) fn begins_with(self, c: char) -> bool {
        match self {
            CallForm::Hermes | CallForm::Llama => c == '{',
            CallForm::Mistral => c == '[',
        }
    }

    /// Whether an answer can be a call without a mark.
    pub(super) fn may_be_bare(self) -> bool {
        self == CallForm::Llama
    }

    /// The marks. In many tokenizers they are special tokens, which are no part of an answer's text otherwise.
    pub fn marks(self) -> impl Iterator<Item = &'static str> {
        [self.opens(), self.closes()].into_iter().filter(|mark| !mark.is_empty())
    }

    /// Whether a call's id has to be nine letters and digits: Mistral's templates refuse a chat with any other.
    pub fn has_short_ids(self) -> bool {
        self == CallForm::Mistral
    }
}
