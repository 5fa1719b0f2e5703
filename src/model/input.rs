//! What a forward pass takes: prepared inputs, plain numbers, one of them a request's input.
//!
//! Written by `process`, packed into tensors by the architectures. It must not know tensors, tokenizers or images.

/// One sequence of token ids, special tokens included, not padded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Every id is below the model's `vocab_size`.
    pub ids: Vec<u32>,
    /// Which of two texts a token belongs to (0 or 1); as long as `ids`, every one below `type_vocab_size`.
    pub type_ids: Vec<u32>,
}

impl Tokens {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// One image, resized, scaled and normalised as the version's preprocessor says.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// `[channels, height, width]`, row by row.
    pub data: Vec<f32>,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

/// One prepared input of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Tokens(Tokens),
    Pixels(Pixels),
}

impl Input {
    /// What the input weighs in a batch, in tokens. An image weighs as many as the model cuts it into
    /// (its patches and the class token), which only the model knows.
    pub fn cost(&self, tokens_per_image: usize) -> usize {
        match self {
            Input::Tokens(tokens) => tokens.len(),
            Input::Pixels(_) => tokens_per_image,
        }
    }
}
