//! The first layer: what a token or an image patch becomes before any block.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, bail};

use super::cpu::{Reading, Rows, for_row_blocks, output};
use super::layer_norm::LayerNorm;
use super::tensor::Tensor;

/// The tables that a token's embedding is summed from, and the norm of the sum.
#[derive(Debug, Clone)]
pub struct TokenTables {
    /// `[vocabulary, width]`
    pub words: Tensor,
    /// `[positions, width]`
    pub positions: Tensor,
    /// `[types, width]`; a model without segment types has none and ignores them
    pub types: Option<Tensor>,
    pub norm: LayerNorm,
}

/// `norm(words[id] + positions[position] + types[type])` for each token.
///
/// `index`: u32 `[3, tokens]`, rows ids, positions and types, one upload for the batch. An index beyond its table
/// is an error here; a device kernel cannot say so, therefore callers check on the host first.
pub fn embed_tokens(index: &Tensor, tables: &TokenTables) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(index) = index {
        return super::cuda::embed_tokens(index, tables).map(Tensor::Cuda);
    }
    index.apply1(tables)
}

impl CustomOp1 for TokenTables {
    fn name(&self) -> &'static str {
        "embed-tokens"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let index = Rows::<u32>::of(storage, layout, "token indices")?;
        if index.count != 3 {
            bail!("token indices have shape {:?}, expected [3, tokens]", layout.dims());
        }
        let [ids, positions, types] = [0, 1, 2].map(|row| index.row(row));
        let words = Reading::of(&self.words, "the word embeddings")?;
        let words = words.rows()?;
        let mut out = vec![0f32; ids.len() * words.width];
        gather(&mut out, words, ids)?;
        gather(&mut out, Reading::of(&self.positions, "the position embeddings")?.rows()?, positions)?;
        if let Some(table) = &self.types {
            gather(&mut out, Reading::of(table, "the type embeddings")?.rows()?, types)?;
        }
        let parameters = self.norm.read()?;
        let norm = parameters.of_width(words.width)?;
        for_row_blocks(&mut out, words.width, |_, block| norm.apply(block));
        Ok(output(out, (ids.len(), words.width)))
    }
}

/// Adds `table[index]` to each row.
fn gather(out: &mut [f32], table: Rows<'_>, index: &[u32]) -> Result<()> {
    let width = table.width;
    if out.len() != index.len() * width {
        bail!("an embedding table is {width} wide, the others are {}", out.len() / index.len().max(1));
    }
    if let Some(beyond) = index.iter().find(|&&i| i as usize >= table.count) {
        bail!("index {beyond} is beyond a table of {} rows", table.count);
    }
    for_row_blocks(out, width, |first, block| {
        for (row, &i) in block.chunks_exact_mut(width).zip(&index[first..]) {
            row.iter_mut().zip(table.row(i as usize)).for_each(|(x, y)| *x += y);
        }
    });
    Ok(())
}

/// Puts a class token before each image's patches and adds the positions.
///
/// `patches`: `[images * p, width]`; `class`: `[width]`; `positions`: `[p + 1, width]`. The packed batch
/// `[images * (p + 1), width]` comes back.
pub fn embed_patches(patches: &Tensor, class: &Tensor, positions: &Tensor) -> Result<Tensor> {
    match patches {
        #[cfg(feature = "cuda")]
        Tensor::Cuda(patches) => {
            let (class, positions) = (class.on_gpu("a class token")?, positions.on_gpu("position embeddings")?);
            super::cuda::embed_patches(patches, class, positions).map(Tensor::Cuda)
        }
        Tensor::Host(_) => patches.apply3((class, positions), &EmbedPatches),
    }
}

struct EmbedPatches;

impl CustomOp3 for EmbedPatches {
    fn name(&self) -> &'static str {
        "embed-patches"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let patches = Rows::<f32>::of(s1, l1, "patches")?;
        let class = Rows::<f32>::of(s2, l2, "a class token")?;
        let positions = Rows::<f32>::of(s3, l3, "position embeddings")?;
        let width = patches.width;
        let Some(each) = positions.count.checked_sub(1).filter(|each| *each > 0 && patches.count.is_multiple_of(*each))
        else {
            bail!("{} patches do not fill images of {} positions", patches.count, positions.count);
        };
        if class.count != 1 || class.width != width || positions.width != width {
            bail!("patches are {width} wide, the class token {}, the positions {}", class.width, positions.width);
        }
        let rows = patches.count / each * (each + 1);
        let mut out = vec![0f32; rows * width];
        for_row_blocks(&mut out, width, |first, block| {
            for (i, row) in block.chunks_exact_mut(width).enumerate() {
                let (image, position) = ((first + i) / (each + 1), (first + i) % (each + 1));
                let content = if position == 0 { class.row(0) } else { patches.row(image * each + position - 1) };
                let terms = content.iter().zip(positions.row(position));
                row.iter_mut().zip(terms).for_each(|(x, (a, b))| *x = a + b);
            }
        });
        Ok(output(out, (rows, width)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{assert_close, matrix, values, vector};
    use crate::ops::{Device, layer_norm};

    fn tables(width: usize, types: bool) -> TokenTables {
        TokenTables {
            words: matrix(19, width, 1),
            positions: matrix(11, width, 2),
            types: types.then(|| matrix(2, width, 3)),
            norm: LayerNorm { weight: vector(width, 4), bias: vector(width, 5), eps: 1e-12 },
        }
    }

    fn index(rows: [Vec<u32>; 3]) -> Tensor {
        let tokens = rows[0].len();
        Tensor::from_vec(rows.concat(), (3, tokens), &Device::Cpu).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_token_is_the_normalised_sum_of_its_rows(
            tokens in prop::collection::vec((0u32..19, 0u32..11, 0u32..2), 1..200), width in 2usize..300, types: bool,
        ) {
            let tables = tables(width, types);
            let at = |table: &Tensor, row: u32| values(&table.narrow_rows(row as usize, 1).unwrap());
            let sums = tokens.iter().flat_map(|&(word, position, kind)| {
                let mut sum = at(&tables.words, word);
                sum.iter_mut().zip(at(&tables.positions, position)).for_each(|(x, y)| *x += y);
                if let Some(types) = &tables.types {
                    sum.iter_mut().zip(at(types, kind)).for_each(|(x, y)| *x += y);
                }
                sum.into_iter().map(|x| x as f32).collect::<Vec<_>>()
            });
            let sums = Tensor::from_vec(sums.collect::<Vec<_>>(), (tokens.len(), width), &Device::Cpu).unwrap();
            let want = values(&layer_norm(&sums, &tables.norm).unwrap());
            let rows = [0, 1, 2].map(|i| tokens.iter().map(|t| [t.0, t.1, t.2][i]).collect());
            assert_close(&embed_tokens(&index(rows), &tables).unwrap(), &want, 2e-5);
        }
    }

    #[test]
    fn an_index_beyond_a_table_is_an_error() {
        let tables = tables(8, true);
        for beyond in [[19, 0, 0], [0, 11, 0], [0, 0, 2]] {
            let rows = beyond.map(|i| vec![0, i]);
            assert!(embed_tokens(&index(rows), &tables).unwrap_err().to_string().contains("beyond"), "{beyond:?}");
        }
    }

    #[test]
    fn every_image_gets_a_class_token_and_its_own_patches() {
        let (patches, class, positions) = (matrix(6, 5, 1), vector(5, 2), matrix(4, 5, 3));
        let out = embed_patches(&patches, &class, &positions).unwrap();
        let (p, c, e) = (values(&patches), values(&class), values(&positions));
        let content = [&c[..], &p[..15], &c[..], &p[15..]].concat();
        let want: Vec<f64> = content.iter().zip(e.iter().cycle()).map(|(a, b)| a + b).collect();
        assert_close(&out, &want, 1e-6);
        assert!(embed_patches(&matrix(5, 5, 1), &class, &positions).is_err());
        assert!(embed_patches(&patches, &vector(4, 2), &positions).is_err());
    }

    /// `Reading::vector` guards parameters; make sure a matrix is not mistaken for one.
    #[test]
    fn a_matrix_is_not_a_vector() {
        assert!(Reading::of(&matrix(2, 3, 1), "x").unwrap().vector(6).is_err());
        assert_eq!(Reading::of(&vector(6, 1), "x").unwrap().vector(6).unwrap().len(), 6);
    }
}
