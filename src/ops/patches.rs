//! Images cut into patches: the first step of a model that projects each of them.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::cpu::{Rows, for_row_blocks, output};
use super::tensor::{Device, Tensor};

/// How images are cut. What does not fill a patch is left out, as a strided convolution does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub channels: usize,
    /// Height and width, in pixels.
    pub image: [usize; 2],
    /// The same of a patch; at least one pixel each, and no more than the image's.
    pub patch: [usize; 2],
}

impl Grid {
    /// Patches down and across.
    pub fn sides(&self) -> [usize; 2] {
        [self.image[0] / self.patch[0], self.image[1] / self.patch[1]]
    }

    /// Patches of an image.
    pub fn count(&self) -> usize {
        self.sides().iter().product()
    }

    /// Numbers that an image is.
    pub fn image_values(&self) -> usize {
        self.channels * self.image[0] * self.image[1]
    }

    /// Numbers that a patch is.
    pub fn patch_values(&self) -> usize {
        self.channels * self.patch[0] * self.patch[1]
    }
}

/// Every patch as a row of its pixels, channel by channel and line by line, in the format that a model computes with on `device`.
///
/// `pixels`: f32 `[images, channels * height * width]`. `[images * patches, channels * tall * wide]` comes back: patches row by
/// row.
pub fn patches(pixels: &Tensor, grid: &Grid, device: &Device) -> Result<Tensor> {
    let _ = device;
    match pixels.dims() {
        [_, values] if *values == grid.image_values() => {}
        found => bail!("pixels of shape {found:?}, images have {} values", grid.image_values()),
    }
    #[cfg(feature = "cuda")]
    if let (Tensor::Cuda(pixels), Device::Cuda(place)) = (pixels, device) {
        return super::cuda::patches(pixels, grid, place).map(Tensor::Cuda);
    }
    pixels.apply1(grid)
}

impl CustomOp1 for Grid {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let pixels = Rows::<f32>::of(storage, layout, "pixels")?;
        let ([_, width], [tall, wide], [_, across]) = (self.image, self.patch, self.sides());
        let (rows, values) = (pixels.count * self.count(), self.patch_values());
        let mut out = vec![0f32; rows * values];
        for_row_blocks(&mut out, values, |first, block| {
            for (i, patch) in block.chunks_exact_mut(values).enumerate() {
                let (image, place) = ((first + i) / self.count(), (first + i) % self.count());
                let (top, left) = (place / across * tall, place % across * wide);
                for (line, to) in patch.chunks_exact_mut(wide).enumerate() {
                    let (channel, y) = (line / tall, line % tall);
                    let start = (channel * self.image[0] + top + y) * width + left;
                    to.copy_from_slice(&pixels.row(image)[start..start + wide]);
                }
            }
        });
        Ok(output(out, (rows, values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_its_pixels_channel_by_channel() {
        // two channels of 3 x 5, patches of 1 x 2: the last column fills none
        let grid = Grid { channels: 2, image: [3, 5], patch: [1, 2] };
        let pixels: Vec<f32> = (0..60).map(|value| value as f32).collect();
        let pixels = Tensor::from_vec(pixels, (2, 30), &Device::Cpu).unwrap();
        let rows = patches(&pixels, &grid, &Device::Cpu).unwrap();
        assert_eq!(rows.dims(), [12, 4]);
        let values = rows.to_values().unwrap();
        let row = |index: usize| &values[index * 4..][..4];
        assert_eq!(row(0), [0., 1., 15., 16.]);
        assert_eq!(row(1), [2., 3., 17., 18.]);
        assert_eq!(row(5), [12., 13., 27., 28.]);
        assert_eq!(row(6), [30., 31., 45., 46.]);
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let grid = Grid { channels: 1, image: [4, 4], patch: [2, 2] };
        let pixels = Tensor::from_vec(vec![0f32; 15], (1, 15), &Device::Cpu).unwrap();
        assert!(patches(&pixels, &grid, &Device::Cpu).is_err());
    }
}
