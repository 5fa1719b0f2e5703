//! From a block's projections to what attention takes: queries that are normalised and turned, keys likewise and put into their
//! blocks, and values beside them.

use candle_core::{Result, bail};

use super::super::cpu::{Reading, Rows, for_row_blocks, require_f32, threads};
use super::super::rms_norm::{Norm, RmsNorm, normalize};
use super::super::rotary::turn;
use super::super::simd::wide;
use super::super::tensor::{Device, Tensor};
use super::Runs;
use super::cache::KvCache;

/// Keys and values of so many numbers are written by several threads.
const PARALLEL_VALUES: usize = 64 * 1024;

/// Normalises every head of the queries and keys where there are `norms` for them (of a query's head, of a key's), turns them by
/// their positions, and puts keys and values into the blocks of a layer. The queries come back: `[rows, heads * head_dim]`.
///
/// `q`: `[rows, heads * head_dim]`; `k`, `v`: `[rows, kv heads * head_dim]`; rows possibly strided, and on a GPU columns of
/// one product.
pub fn place_heads(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    norms: Option<(&RmsNorm, &RmsNorm)>,
    runs: &Runs<'_>,
    (cache, layer): (&mut KvCache, usize),
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Tensor::Cuda(q), Some(held)) = (q, cache.on_gpu()) {
        let (k, v) = (k.on_gpu("keys")?, v.on_gpu("values")?);
        let cache = (held, cache.spec(), layer);
        return super::super::cuda::place_heads((q, k, v), norms, runs.planned()?, cache).map(Tensor::Cuda);
    }
    for (tensor, what) in [(q, "queries"), (k, "keys"), (v, "values")] {
        require_f32(tensor, what)?;
    }
    let (q, k, v) = (Reading::of(q, "queries")?, Reading::of(k, "keys")?, Reading::of(v, "values")?);
    let (q, k, v) = (q.rows()?, k.rows()?, v.rows()?);
    let norms = norms.map(|(q, k)| Ok::<_, candle_core::Error>((q.read()?, k.read()?))).transpose()?;
    let d = runs.turns.head_dim();
    let (q_norm, k_norm) = match &norms {
        Some((q, k)) => (Some(q.of_width(d)?), Some(k.of_width(d)?)),
        None => (None, None),
    };
    let spec = *cache.spec();
    if [q.count, k.count, v.count] != [runs.total(); 3] {
        bail!("{} queries, {} keys and {} values for {} rows", q.count, k.count, v.count, runs.total());
    }
    if (k.width, v.width) != (spec.heads * d, spec.heads * d) || q.width == 0 || !q.width.is_multiple_of(d) {
        bail!("rows of {}, {} and {} do not fit {} heads of {d}", q.width, k.width, v.width, spec.heads);
    }
    write(&(k, v, k_norm), runs, (cache, layer))?;
    let mut out = vec![0f32; q.count * q.width];
    for_row_blocks(&mut out, q.width, |first, block| {
        for (i, row) in block.chunks_exact_mut(q.width).enumerate() {
            row.copy_from_slice(q.row(first + i));
            finish_heads(row, q_norm, runs.turns.row(first + i));
        }
    });
    Tensor::from_vec(out, (q.count, q.width), &Device::Cpu)
}

fn write(
    (k, v, norm): &(Rows<'_>, Rows<'_>, Option<Norm<'_>>),
    runs: &Runs<'_>,
    (cache, layer): (&mut KvCache, usize),
) -> Result<()> {
    let d = cache.spec().head_dim;
    let apart = threads() > 1 && k.count * k.width >= PARALLEL_VALUES;
    cache.write_heads((layer, apart), |number, head| {
        let mut key = vec![0f32; d];
        for (first, run) in runs.placed() {
            for (i, position) in run.positions().enumerate() {
                let columns = number * d..(number + 1) * d;
                key.copy_from_slice(&k.row(first + i)[columns.clone()]);
                finish_heads(&mut key, *norm, runs.turns.row(first + i));
                let (block, slot) = (run.blocks[position / super::PANEL], position % super::PANEL);
                head.put((block, slot), &key, &v.row(first + i)[columns]);
            }
        }
    })
}

wide! {
    /// Normalises and turns every head of a row in place.
    fn finish_heads<FMA>(row: &mut [f32], norm: Option<Norm<'_>>, turns: (&[f32], &[f32])) {
        for head in row.chunks_exact_mut(2 * turns.0.len()) {
            if let Some(norm) = norm {
                normalize(head, norm);
            }
            turn::<FMA>(head, turns);
        }
    }
}
