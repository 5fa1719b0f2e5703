//! One file from the hub to the disk: continued where it broke off, and held against the hub's digest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::again::{Again, Trouble};
use super::hub::{Digest, Hub, Listing, Remote};
use crate::cli::output::{human_bytes, note, printable};
use crate::error::{Error, Result};

/// How far it is: a bar on a terminal, a line a file elsewhere, nothing beside `--json`.
pub(super) struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    pub(super) fn new(json: bool) -> Progress {
        let template = "{spinner} {msg:<28} [{bar:28}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style.progress_chars("=> "));
        // A bar without a terminal hides itself.
        Progress { lines: !json && bar.is_hidden(), bar }
    }

    pub(super) fn of_bytes(&self, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(0);
    }

    fn begin(&self, file: &str, size: u64) {
        self.bar.set_message(printable(file));
        if self.lines {
            note(&format!("{file} {}", human_bytes(size)));
        }
    }

    pub(super) fn waits(&self, error: &Error, pause: Duration) {
        self.bar.suspend(|| note(&format!("{error}; trying again in {} s", pause.as_secs())));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Where files come from and go to.
pub(super) struct Fetch<'a> {
    pub(super) hub: &'a Hub,
    pub(super) listing: &'a Listing,
    pub(super) dir: &'a Path,
    pub(super) again: Again<'a>,
}

impl Fetch<'_> {
    /// Brings these files, each of them whole and as the hub has it.
    pub(super) async fn files(&self, names: &[String]) -> Result<()> {
        let sizes = names.iter().filter_map(|name| self.listing.files.get(name)).map(|file| file.size);
        self.again.progress.of_bytes(sizes.sum());
        for name in names {
            let remote = self.listing.files.get(name);
            let remote = remote.ok_or_else(|| Error::internal(format!("'{name}' was not listed")))?;
            self.file(name, remote).await?;
        }
        Ok(())
    }

    async fn file(&self, name: &str, remote: &Remote) -> Result<()> {
        let progress = self.again.progress;
        progress.begin(name, remote.size);
        let path = self.dir.join(name);
        let unwritten = |e: io::Error| Error::unloadable(name, format!("cannot be written: {e}"));
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(unwritten)?;
        let before = progress.bar.position();
        self.again.until_it_comes(async || self.transfer(name, remote, &path, before).await).await?;
        let found = digest_of(&path, remote).map_err(unwritten)?;
        if found == remote.digest {
            return Ok(());
        }
        fs::remove_file(&path).map_err(unwritten)?;
        let reason = format!(
            "has the {}, which is not the hub's ({}); it was thrown away, pulling again fetches it anew",
            shown(&found),
            shown(&remote.digest)
        );
        Err(Error::unloadable(name, reason))
    }

    /// Asks for what is missing of the file and appends it.
    async fn transfer(&self, name: &str, remote: &Remote, path: &Path, before: u64) -> Result<(), Trouble> {
        let unwritten = |e: io::Error| Trouble::Final(Error::unloadable(name, format!("cannot be written: {e}")));
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(unwritten)?;
        let mut have = file.metadata().map_err(unwritten)?.len();
        if have > remote.size {
            file.set_len(0).map_err(unwritten)?;
            have = 0;
        }
        self.again.progress.bar.set_position(before + have);
        if have == remote.size {
            return Ok(());
        }
        let response = self.hub.file(&self.listing.commit, name, have).await?;
        let continues = response.status() == StatusCode::PARTIAL_CONTENT
            && response.headers().get(CONTENT_RANGE).is_some_and(|range| starts_at(range.as_bytes(), have));
        let mut response = match response.status() {
            // Another part than was asked for: of no use, and asking for everything cannot go wrong in this way.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if !continues => {
                file.set_len(0).map_err(unwritten)?;
                let error = Error::unloadable(name, "the hub sent another part than was asked for");
                return Err(Trouble::Passing(error.into(), None));
            }
            _ => self.hub.accepted(response, name)?,
        };
        if !continues {
            file.set_len(0).map_err(unwritten)?;
            have = 0;
        }
        file.seek(SeekFrom::Start(have)).map_err(unwritten)?;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.hub.broken(&e))? {
            have += chunk.len() as u64;
            if have > remote.size {
                let reason = format!("the hub sent more than the {} bytes that it listed", remote.size);
                file.set_len(0).map_err(unwritten)?;
                return Err(Trouble::Final(Error::unloadable(name, reason)));
            }
            file.write_all(&chunk).map_err(unwritten)?;
            self.again.progress.bar.set_position(before + have);
        }
        if have < remote.size {
            let reason =
                format!("the transfer ended after {have} of {} bytes; pulling again goes on there", remote.size);
            return Err(Trouble::Passing(Error::unloadable(name, reason).into(), None));
        }
        file.sync_all().map_err(unwritten)
    }
}

/// `bytes 7-9/10` starts at 7.
fn starts_at(range: &[u8], from: u64) -> bool {
    let start = range.strip_prefix(b"bytes ").and_then(|rest| rest.split(|byte| *byte == b'-').next());
    start.and_then(|digits| std::str::from_utf8(digits).ok()?.trim().parse().ok()) == Some(from)
}

/// The digest of what is on the disk, of the same kind as the hub's.
fn digest_of(path: &PathBuf, remote: &Remote) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut context = match remote.digest {
        Digest::Sha256(_) => Context::new(&SHA256),
        Digest::GitBlob(_) => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", remote.size).as_bytes());
            context
        }
    };
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => context.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(match remote.digest {
        Digest::Sha256(_) => Digest::Sha256(hex),
        Digest::GitBlob(_) => Digest::GitBlob(hex),
    })
}

fn shown(digest: &Digest) -> String {
    match digest {
        Digest::Sha256(hex) => format!("sha256 {hex}"),
        Digest::GitBlob(hex) => format!("git blob id {hex}"),
    }
}
