//! A Python with a client's packages, made once below `target`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{root, skipped};

/// An environment of this name with what `tests/clients/{requirements}` pins; the error is what pip or python said.
fn python(name: &str, requirements: &str) -> Result<PathBuf, String> {
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
        .args(["-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "-r"])
        .arg(requirements))?;
    fs::write(done, wanted).unwrap();
    Ok(python)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(output) } else { Err(said()) }
}

/// What a client's script below `tests/clients` prints, given `input`; none where its packages, `requirements`, cannot be
/// had. A client that is not content fails the test.
pub(crate) async fn client_says(
    (name, requirements): (&'static str, &'static str),
    (script, arguments): (&str, &[&str]),
    input: String,
) -> Option<String> {
    let mut client = match tokio::task::spawn_blocking(move || python(name, requirements)).await.unwrap() {
        Ok(python) => Command::new(python),
        Err(why) => {
            skipped(&format!("what {requirements} pins could not be installed: {why}"));
            return None;
        }
    };
    client.arg(root().join("tests/clients").join(script)).args(arguments);
    let run = move || {
        let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A client that reads nothing is gone by then, perhaps; what it says tells more.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the client was not content:\n{said}{errors}");
    Some(said)
}
