//! Placeholder: see `repository`.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Limits {
    pub max_inputs: usize,
    pub max_tokens: Option<usize>,
    pub max_body_bytes: u64,
    pub queue: usize,
    pub deadline: Duration,
    pub max_image_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_inputs: 2048,
            max_tokens: None,
            max_body_bytes: 32 << 20,
            queue: 1024,
            deadline: Duration::from_secs(30),
            max_image_pixels: 50_000_000,
        }
    }
}
