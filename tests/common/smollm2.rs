//! SmolLM2-135M-Instruct, fetched on first use by the script that ships with the repository, and a tiny model of its family.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::OnceLock;

use super::{Site, fixture, root, skipped};

/// For tests: no verdict on timings, and a window that ends when a test says so.
const RULES: &str = "[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n\
                     [observe]\nwindow = '1h'\ngolden_every = '1h'\nmax_p99_ratio = 1000\n";

/// Whether both versions are in `models/smollm2`, brought there when they are not. Where they cannot be had, the test
/// that asks is skipped, and that is said.
pub(crate) fn is_here() -> bool {
    static HERE: OnceLock<Result<(), String>> = OnceLock::new();
    match HERE.get_or_init(fetch) {
        Ok(()) => true,
        Err(why) => {
            skipped(&format!("SmolLM2 could not be fetched (try 'models/fetch smollm2' yourself): {why}"));
            false
        }
    }
}

/// The script takes a lock of its own and leaves alone what is there and right.
fn fetch() -> Result<(), String> {
    let mut command = Command::new("python3");
    command.arg(root().join("models/fetch")).args(["smollm2", "--cutover", env!("CARGO_BIN_EXE_cutover")]);
    let output = command.output().map_err(|e| format!("python3 could not be run: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
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
