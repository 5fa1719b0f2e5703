//! Compiles the kernels of a GPU build: `kernels/*.cu`, for every architecture that is served (`kernels/build`).
//!
//! Without the feature `cuda` there is nothing to do.

#![allow(clippy::disallowed_methods, reason = "cargo tells a build script everything through the environment")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["CUDA_HOME", "CUDA_PATH", "NVCC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("the kernels were not built: {reason}");
            eprintln!(
                "(feature `cuda` needs nvcc of CUDA 13; `.ci/cuda-toolchain` brings one and prints its CUDA_HOME)"
            );
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let set = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let (root, out) = (set("CARGO_MANIFEST_DIR")?, set("OUT_DIR")?);
    let mut command = Command::new(root.join("kernels/build"));
    command.arg(&out);
    // What the script brought is found without being told.
    let brought = root.join("target/cuda-toolkit/nvidia/cu13");
    if env::var_os("CUDA_HOME").is_none() && env::var_os("CUDA_PATH").is_none() && is_toolkit(&brought) {
        command.env("CUDA_HOME", brought);
    }
    let output = command.output().map_err(|error| format!("kernels/build does not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Err(format!("kernels/build failed\n{}{}", told[0], told[1]))
}

fn is_toolkit(folder: &Path) -> bool {
    folder.join("bin/nvcc").is_file()
}
