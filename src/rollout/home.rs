//! What a version is to live on, and how much of it: the cache of one that writes is as large as two generations leave room for.
//!
//! It must not know what is reserved at the moment: a version takes the same whenever it is loaded.

use crate::device::Kind;
use crate::error::Result;
use crate::repository::{Mode, ModelConfig, Repository, Spec};
use crate::value::Task;
use crate::weights::{CacheFootprint, Footprint};

/// Of a device's capacity, what models that write are planned for; the rest is for all others.
const PLANNED: (u64, u64) = (9, 10);

/// No cache is made smaller than for so many tokens: a version that cannot have them is refused with the sum.
const LEAST_TOKENS: usize = 2048;

/// What a version is to live on.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    pub kind: Kind,
    /// Bytes that a generation is planned for, where that is known.
    part: Option<u64>,
}

impl Home {
    /// Beside nothing, and nothing follows.
    pub fn alone(kind: Kind) -> Home {
        Home { kind, part: None }
    }

    /// Of a model of a server, which shares the device with the other models that write; half of its share where two
    /// generations are to be there at once.
    ///
    /// # Errors
    /// A repository that cannot be read.
    pub(super) fn of((kind, capacity): (Kind, u64), repository: &Repository, config: &ModelConfig) -> Result<Home> {
        let writes = |config: &ModelConfig| config.task == Task::Generate;
        // One of which no version is here yet takes nothing.
        let entries = repository.scan()?.into_iter().filter(|entry| !entry.versions.is_empty());
        let writers = entries.filter(|entry| entry.config.as_ref().is_ok_and(writes)).count();
        let generations = match config.rollout.mode {
            Mode::Beside => 2,
            Mode::Replace => 1,
        };
        let planned = capacity / PLANNED.1 * PLANNED.0;
        Ok(Home { kind, part: Some(planned / (writers.max(1) as u64 * generations)) })
    }

    /// Gives the cache of a version that writes its size, where `model.toml` does not.
    pub(super) fn furnish(&self, spec: &mut Spec, footprint: &mut Footprint) {
        let (Some(part), Some(cache), None) = (self.part, footprint.cache, spec.cache_tokens) else { return };
        let rest = footprint.total().saturating_sub(cache.bytes());
        let Some(room) = part.checked_sub(rest) else { return };
        let furnished = CacheFootprint { blocks: blocks(self.kind, room, &cache), ..cache };
        if furnished.tokens() < cache.longest {
            tracing::info!(
                version = spec.reference(),
                "its context is {} tokens, not {}: so many a generation has room for in {part} bytes; [generate] \
                 cache_tokens says otherwise",
                furnished.tokens(),
                cache.longest
            );
        }
        footprint.workspace = footprint.workspace.saturating_sub(cache.bytes()).saturating_add(furnished.bytes());
        footprint.cache = Some(furnished);
        spec.cache_tokens = Some(furnished.tokens());
    }
}

/// Blocks of a cache that has room for so many bytes. Memory of a GPU lies idle where it is not a cache's, up to what all sequences
/// together can fill; that of a CPU is other processes' as well.
fn blocks(kind: Kind, room: u64, cache: &CacheFootprint) -> usize {
    let fit = usize::try_from(room / cache.bytes_per_block.max(1)).unwrap_or(usize::MAX);
    let most = match kind {
        Kind::Cpu => cache.blocks,
        Kind::Cuda => {
            let full = cache.sequences.saturating_mul(cache.longest.div_ceil(cache.block_tokens));
            full.max(cache.blocks)
        }
    };
    fit.clamp(LEAST_TOKENS.div_ceil(cache.block_tokens).min(most), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1,024 blocks of 1 MiB, for 8 sequences of 32,768 tokens.
    const CACHE: CacheFootprint =
        CacheFootprint { bytes_per_block: 1 << 20, block_tokens: 32, blocks: 1024, longest: 32_768, sequences: 8 };

    #[test]
    fn a_cache_is_what_two_generations_leave_room_for() {
        let of = |kind, mib: u64| blocks(kind, mib << 20, &CACHE);
        // Less than the least; between; more than is of use.
        assert_eq!([0, 500, 1024, 5000, 100_000].map(|mib| of(Kind::Cpu, mib)), [64, 500, 1024, 1024, 1024]);
        assert_eq!([0, 500, 1024, 5000, 100_000].map(|mib| of(Kind::Cuda, mib)), [64, 500, 1024, 5000, 8192]);
        // A model of few tokens needs no more than it can fill.
        let short = CacheFootprint { blocks: 4, longest: 128, ..CACHE };
        assert_eq!([0, 2, 100].map(|mib| blocks(Kind::Cuda, mib << 20, &short)), [32, 32, 32]);
        assert_eq!([0, 2, 100].map(|mib| blocks(Kind::Cpu, mib << 20, &short)), [4, 4, 4]);
    }

    #[test]
    fn models_that_write_share_what_is_planned_and_only_those_that_are_here() {
        let (dir, capacity) = (tempfile::tempdir().unwrap(), 3600);
        let model = |name: &str, lines: &str, versions: &[&str]| {
            let home = dir.path().join(name);
            std::fs::create_dir_all(&home).unwrap();
            std::fs::write(home.join("model.toml"), lines).unwrap();
            for version in versions {
                std::fs::create_dir(home.join(version)).unwrap();
                std::fs::write(home.join(version).join("config.json"), "{}").unwrap();
            }
        };
        let part = |name: &str| {
            let repository = Repository::open(dir.path()).unwrap();
            let config = repository.model(name).unwrap().config.unwrap();
            Home::of((Kind::Cpu, capacity), &repository, &config).unwrap().part
        };
        model("chat", "task = 'generate'\n", &["v1", "v2"]);
        model("declared", "task = 'generate'\n", &[]);
        model("words", "task = 'embed'\n", &["v1"]);
        assert_eq!(part("chat"), Some(1620), "two generations of one model in nine tenths");
        model("other", "task = 'generate'\n[rollout]\nmode = 'replace'\n", &["v1"]);
        assert_eq!((part("chat"), part("other")), (Some(810), Some(1620)));
    }
}
