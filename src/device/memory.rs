//! The memory of one generation: counted by itself, and measured to have come back.
//!
//! On a CPU it is an arena of the allocator. On a GPU it is a pool of its driver, beside an arena for what stays in the
//! process; only the pool is counted, since that is what a budget is for.

use super::{Arena, Opened};
use crate::error::Result;

/// Bytes, as the driver of a GPU counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Measured {
    /// Allocated of a generation's pool.
    pub used: u64,
    /// Held for that pool.
    pub reserved: u64,
    /// Free of the device, whoever uses the rest.
    pub free: u64,
}

/// What one memory takes. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Allocated.
    pub used: u64,
    /// Held for it, of what a budget is for. On a CPU what is allocated, since pages that are not used go back by themselves.
    pub held: u64,
}

impl std::ops::Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count { used: self.used + other.used, held: self.held + other.held }
    }
}

/// Whom memory is held for, as it is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Owner {
    /// `model@version`, or what all of them share.
    pub holder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A pool of a GPU. Bytes, as its driver counts them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pooled {
    #[serde(flatten)]
    pub owner: Owner,
    /// Allocated.
    pub used: u64,
    /// Held by the driver.
    pub reserved: u64,
}

#[derive(Debug)]
pub struct Memory {
    arena: Arena,
    #[cfg(feature = "cuda")]
    pool: Option<std::sync::Arc<super::cuda::Pool>>,
}

impl Memory {
    /// Empty, to hold about `bytes` of weights.
    pub fn acquire(opened: &Opened, bytes: u64, owner: Owner) -> Result<Memory> {
        match opened {
            Opened::Cpu => {
                // An arena has no name.
                let Owner { .. } = owner;
                Ok(Memory {
                    arena: Arena::acquire(bytes)?,
                    #[cfg(feature = "cuda")]
                    pool: None,
                })
            }
            #[cfg(feature = "cuda")]
            Opened::Cuda(cuda) => {
                let pool = super::cuda::Pool::new(cuda, owner)?;
                Ok(Memory { arena: Arena::acquire(0)?, pool: Some(pool) })
            }
        }
    }

    /// What weights on a GPU are allocated from.
    #[cfg(feature = "cuda")]
    pub fn pool(&self) -> Option<&std::sync::Arc<super::cuda::Pool>> {
        self.pool.as_ref()
    }

    /// Runs `work` with what this thread allocates in the process counted here.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.arena.enter(work)
    }

    /// What a GPU's driver says; none where there is no GPU.
    pub fn measured(&self) -> Result<Option<Measured>> {
        #[cfg(feature = "cuda")]
        if let Some(pool) = &self.pool {
            let (used, reserved, free) = (pool.used()?, pool.reserved()?, pool.cuda().memory()?.free);
            return Ok(Some(Measured { used, reserved, free }));
        }
        Ok(None)
    }

    /// What each takes, in one snapshot.
    pub fn counts<'a>(all: impl Iterator<Item = &'a Memory> + Clone) -> Result<Vec<Count>> {
        #[cfg(feature = "cuda")]
        if all.clone().any(|memory| memory.pool.is_some()) {
            return all.map(|memory| memory.pool.as_ref().map_or(Ok(Count::default()), |pool| pool.count())).collect();
        }
        let used = Arena::used_by(all.map(|memory| &memory.arena))?;
        Ok(used.into_iter().map(|used| Count { used, held: used }).collect())
    }

    /// Returns what is not used to the system, or to the driver. What was freed on a GPU must have been waited for.
    pub fn trim(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(pool) = &self.pool {
            pool.trim()?;
            pool.cuda().trim_graphs()?;
        }
        self.arena.trim()
    }
}
