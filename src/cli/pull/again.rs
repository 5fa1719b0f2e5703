//! Asking the hub again for what may come yet: a connection that broke, and a hub that has too much to do.

use std::time::Duration;

use super::fetch::Progress;
use crate::error::{Error, Result};

/// How often one thing is asked for before it is given up for now: with the pauses between, a quarter of a minute of a hub that says
/// no time of its own.
const ATTEMPTS: u32 = 6;
/// A pause that somebody who waits is told of.
const LONG: Duration = Duration::from_secs(1);

/// Why what was asked of the hub did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may come yet: after how long, where the hub says.
    Passing(Box<Error>, Option<Duration>),
    Final(Error),
}

/// How long to wait after which attempt, from 1, where the hub asks for so much.
pub(super) type Pause<'a> = &'a dyn Fn(u32, Option<Duration>) -> Duration;

#[derive(Clone, Copy)]
pub(super) struct Again<'a> {
    pub(super) pause: Pause<'a>,
    pub(super) progress: &'a Progress,
}

impl Again<'_> {
    pub(super) async fn until_it_comes<T>(&self, mut ask: impl AsyncFnMut() -> Result<T, Trouble>) -> Result<T> {
        let mut attempt = 1;
        loop {
            match ask().await {
                Ok(come) => return Ok(come),
                Err(Trouble::Passing(error, asked)) if attempt < ATTEMPTS => {
                    let pause = (self.pause)(attempt, asked);
                    if pause >= LONG {
                        self.progress.waits(&error, pause);
                    }
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                Err(Trouble::Passing(error, _)) => return Err(*error),
                Err(Trouble::Final(error)) => return Err(error),
            }
        }
    }
}
