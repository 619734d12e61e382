//! Slots that an earlier daemon made, and slots that are left to a later one.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Answer, Door, Keeper, Phase, Reply, Shared};
use crate::error::Error;
use crate::kept::{KeptIds, KeptSlot, Unfit};
use crate::maker::UserNamespace;
use crate::making::{Lease, Made};
use crate::slot::Slot;
use crate::worker::Taken;

/// A slot that somebody takes over, once the keeper has looked at its link.
pub(super) struct Adoption {
    kept: KeptSlot,
    made: Made,
    reply: Reply<Slot>,
    door: Arc<Door>,
}

impl Door {
    /// Takes over `kept`, which is nobody else's from now on.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        kept: KeptSlot,
        netns: OwnedFd,
        user: Option<UserNamespace>,
    ) -> Result<Taken, Error> {
        let lease = self.claim(&kept)?;
        let given = user.as_ref().map(KeptIds::of);
        let made = Made { netns, user, lease };
        if given != kept.ids {
            self.0.discard(vec![made]);
            let source = Unfit::Ids { kept: kept.ids, given };
            return Err(Error::Adopt { kept: Box::new(kept), source });
        }
        if made.lease.is_none() {
            return Ok(Taken::Ready(self.slot(made)));
        }
        let (reply, slot) = oneshot::channel();
        self.0.queue(Adoption { kept, made, reply, door: Arc::clone(self) });
        Ok(Taken::Waiting(slot))
    }

    /// Gives up `kept`, if it is still to be taken over.
    pub(crate) fn abandon(&self, kept: &KeptSlot) {
        if let Ok(Some(lease)) = self.claim(kept) {
            self.0.doom(lease.number, None);
        }
    }

    /// Ends the network without what is in use. Nothing is answered where it has ended already.
    pub(crate) fn leave(&self) -> Answer<()> {
        self.0.leave();
        let (reply, answer) = oneshot::channel();
        self.shut_down(reply);
        answer
    }

    /// The lease of a slot that is kept, which is not kept any more; none of a slot without a link.
    fn claim(&self, kept: &KeptSlot) -> Result<Option<Lease>, Error> {
        let mut state = self.0.lock();
        if state.phase != Phase::Open {
            return Err(Error::Stopped);
        }
        let Some(link) = &kept.link else { return Ok(None) };
        if state.kept.get(&link.number) == Some(kept) {
            state.kept.remove(&link.number);
            return Ok(Some(link.lease()));
        }
        let unfit = state.unfit.iter().find(|(unfit, _)| unfit == kept);
        let source = unfit.map_or(Unfit::Unknown, |(_, why)| why.clone());
        Err(Error::Adopt { kept: Box::new(kept.clone()), source })
    }
}

impl Shared {
    /// What is in use stays when the network ends, if it has not begun to end.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.leaves |= state.phase == Phase::Open;
    }

    fn queue(&self, adoption: Adoption) {
        let mut state = self.lock();
        let refused = if state.phase == Phase::Open {
            state.adoptions.push(adoption);
            None
        } else {
            Some(adoption)
        };
        drop(state);
        // Whoever waits hears that the network has stopped; its door must not be dropped under the lock.
        drop(refused);
        self.chores.notify_one();
    }
}

impl Keeper {
    pub(super) fn adopt(&mut self, adoption: Adoption) {
        let Adoption { kept, made, reply, door } = adoption;
        let checked = match &made.lease {
            Some(lease) => self.host.check_peer(&lease.link, made.netns.as_fd()),
            None => Ok(Ok(())),
        };
        let refused = match checked {
            Ok(Ok(())) => {
                drop(reply.send(Ok(door.slot(made))));
                return;
            }
            Ok(Err(source)) => Error::Adopt { kept: Box::new(kept), source },
            Err(error) => error,
        };
        self.shared.discard(vec![made]);
        drop(reply.send(Err(refused)));
    }
}
