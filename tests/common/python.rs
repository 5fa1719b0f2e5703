//! A Python with a client's packages, made once below `target`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::root;

/// An environment of this name with what `tests/clients/{requirements}` pins; the error is what pip or python said.
pub(crate) fn python(name: &str, requirements: &str) -> Result<PathBuf, String> {
    let requirements = root().join("tests/clients").join(requirements);
    let wanted = fs::read_to_string(&requirements).unwrap();
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&home).unwrap();
    // Several runs at once make it once.
    let lock = File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    let (done, python) = (home.join("installed"), home.join("venv/bin/python"));
    if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home.join("venv")))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(requirements))?;
    fs::write(done, wanted).unwrap();
    Ok(python)
}

pub(crate) fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(output) } else { Err(said()) }
}
