//! What an admission comes to for an answer that takes long.
//!
//! A text may be written for minutes after its route was replaced. It keeps the generation that writes it, and nobody else: what
//! it could have gone on with, or would have been compared with, may be freed meanwhile.

use std::sync::{Arc, Weak};

use super::shadow::Shadow;
use super::tally::{Arm, Tally};
use super::{Admission, Choice, Counting};
use crate::generation::Generation;

#[derive(Debug)]
pub(super) struct Lasting {
    generation: Arc<Generation>,
    failover: Weak<Generation>,
    tally: Option<(Arc<Tally>, Arm)>,
    shadow: Weak<Shadow>,
    name: Option<u64>,
    is_named: bool,
}

impl From<Admission> for Lasting {
    fn from(admission: Admission) -> Lasting {
        let shadow = admission.route.shadow.as_ref().filter(|_| admission.choice == Choice::Live);
        Lasting {
            generation: Arc::clone(admission.generation()),
            failover: admission.failover().map_or_else(Weak::new, Arc::downgrade),
            tally: admission.tally().map(|(tally, arm)| (Arc::clone(tally), arm)),
            shadow: shadow.map_or_else(Weak::new, Arc::downgrade),
            name: admission.name,
            is_named: admission.is_named(),
        }
    }
}

impl Lasting {
    /// Who was admitted to.
    pub(super) fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    pub(super) fn is_named(&self) -> bool {
        self.is_named
    }

    /// Where an answer goes on that this generation fails (promise 7), for as long as that one is resident.
    pub(super) fn failover(&self) -> Option<Arc<Generation>> {
        self.failover.upgrade()
    }

    /// Where the answer is to be handed, if it is one of the sample.
    pub(super) fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.upgrade().filter(|shadow| shadow.takes())
    }

    pub(super) fn counting(&self) -> Counting<'_> {
        let tally = self.tally.as_ref().map(|(tally, arm)| (tally.as_ref(), *arm));
        Counting { generation: &self.generation, is_named: self.is_named, tally, name: self.name }
    }
}
