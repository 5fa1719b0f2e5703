//! SmolLM2-135M-Instruct, and a tiny model of its family.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::fetched::{Fetched, RULES};
use super::{Site, fixture, root};

static MODEL: Fetched = Fetched::new("smollm2", "SmolLM2");

pub(crate) fn is_here() -> bool {
    MODEL.is_here()
}

impl Site {
    /// Adds `smollm2` with `q4_1` live, and `f16`.
    pub(crate) fn add_smollm2(&self) {
        self.model("smollm2", &format!("task = 'generate'\nlive = 'q4_1'\n{RULES}"));
        let (from, to) = (root().join("models/smollm2"), self.models().join("smollm2"));
        for version in ["q4_1", "f16"] {
            symlink(fs::canonicalize(from.join(version)).unwrap(), to.join(version)).unwrap();
        }
    }

    /// Adds a model that writes nonsense quickly: `a` live, a GGUF file, and `b`, the same in Hugging Face's layout, rounded; and
    /// `c`, the file again.
    pub(crate) fn add_writer(&self, name: &str) {
        self.model(name, &format!("task = 'generate'\nlive = 'a'\n{RULES}"));
        let [a, b, c] = ["a", "b", "c"].map(|version| self.models().join(name).join(version));
        for place in [&a, &c] {
            fs::create_dir_all(place).unwrap();
            fs::copy(fixture("gguf/tiny.gguf"), place.join("tiny.gguf")).unwrap();
        }
        let mut convert = Command::new(env!("CARGO_BIN_EXE_cutover"));
        let converted = convert.arg("convert").arg(&a).arg(&b).args(["--dtype", "f16"]).output().unwrap();
        assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    }
}
