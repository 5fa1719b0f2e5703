//! How much of a quantised weight is spelled out at once on a GPU, for products that take rows of numbers.

use candle_core::DType;

use crate::ops::matmul::PANEL;

/// Bytes: less than the caches of devices that are served, 40 and 50 MB, so that what was just spelled out is read from there.
const AT_ONCE: usize = 32 << 20;

/// Outputs of so many inputs each: whole panels.
pub(in crate::ops) fn spelled_outputs(inner: usize, dtype: DType) -> usize {
    (AT_ONCE / inner.saturating_mul(dtype.size_in_bytes()).max(1) / PANEL * PANEL).max(PANEL)
}

/// Bytes of them, for a weight of `[columns, inner]`.
pub(in crate::ops) fn spelled_bytes((columns, inner): (usize, usize), dtype: DType) -> u64 {
    let outputs = columns.min(spelled_outputs(inner, dtype)) as u64;
    outputs.saturating_mul(inner as u64).saturating_mul(dtype.size_in_bytes() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spelled_out_is_whole_panels_and_no_more_than_the_weight() {
        assert_eq!(spelled_bytes((4096, 4096), DType::BF16), 32 << 20);
        assert_eq!(spelled_bytes((128_256, 4096), DType::BF16), 32 << 20);
        assert_eq!(spelled_bytes((576, 1536), DType::F16), 576 * 1536 * 2);
        assert_eq!((spelled_outputs(14_336, DType::F16), spelled_outputs(14_336, DType::F32)), (1168, 576));
        // A panel is the least, however wide.
        assert_eq!(spelled_bytes((40, 1 << 24), DType::F32), 16 << 26);
        assert_eq!(spelled_bytes((3, 0), DType::F32), 0);
    }
}
