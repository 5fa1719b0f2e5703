//! Version folders for this room's tests, written by the reference implementation of the format.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::{Index, Manifest};

/// A version folder `<temporary>/model/v1`.
pub(super) struct Folder {
    _root: TempDir,
    pub(super) dir: PathBuf,
}

pub(super) struct Given {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn given(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Given {
    Given { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

pub(super) fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Given {
    given(name, Dtype::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The file as the reference implementation writes it.
pub(super) fn serialised(tensors: &[Given]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        (tensor.name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A file with this header and this many zero bytes after it, right or wrong.
pub(super) fn with_header(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

impl Folder {
    pub(super) fn new() -> Self {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("model/v1");
        fs::create_dir_all(&dir).unwrap();
        Folder { _root: root, dir }
    }

    pub(super) fn with(tensors: &[Given]) -> Self {
        let folder = Folder::new();
        folder.write("model.safetensors", &serialised(tensors));
        folder
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn open(&self) -> Index {
        self.open_files(&["model.safetensors"]).unwrap()
    }

    pub(super) fn open_files(&self, names: &[&str]) -> crate::error::Result<Index> {
        Index::open(&self.dir, &names.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    pub(super) fn indexed(&self) -> (Index, Manifest) {
        let index = self.open();
        let manifest = Manifest::compute(&self.dir, &index).unwrap();
        (index, manifest)
    }

    /// Overwrites bytes in place, as a careless copy would.
    pub(super) fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(self.dir.join(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}
