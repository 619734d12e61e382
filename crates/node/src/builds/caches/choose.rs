//! Which directory of an id a step gets. Pure.

use std::collections::BTreeSet;

use berth_build::runner::Sharing;

/// One directory of an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) id: String,
    /// From 0.
    pub(super) number: u32,
}

/// What decides whether a step can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) number: u32,
    pub(super) users: u32,
    /// Whether its users let nobody else in.
    pub(super) alone: bool,
    /// Whether it is more than being made.
    pub(super) is_made: bool,
}

/// A step that waits, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    /// Lower is earlier.
    pub(super) ticket: u64,
    /// The ids that it wants alone, and waits for.
    pub(super) alone: BTreeSet<String>,
}

/// What a step gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The one of that number.
    Old(u32),
    /// A new one of that number.
    New(u32),
    /// Nothing now.
    Wait,
}

/// Chooses among the directories of `id`, which come by number, for the step with this ticket.
pub(super) fn choose(
    sharing: Sharing,
    id: &str,
    instances: impl Iterator<Item = Instance>,
    ticket: u64,
    waiting: &[Waiter],
) -> Choice {
    let all: Vec<Instance> = instances.collect();
    let next = (0..).find(|number| all.iter().all(|instance| instance.number != *number)).unwrap_or(u32::MAX);
    let free = |instance: &&Instance| instance.is_made && instance.users == 0;
    match sharing {
        // All who want it alone mean the same one.
        Sharing::Locked => {
            let is_next = !waiting.iter().any(|other| other.ticket < ticket && other.alone.contains(id));
            match all.first() {
                None if is_next => Choice::New(next),
                Some(first) if is_next && free(&first) => Choice::Old(first.number),
                _ => Choice::Wait,
            }
        }
        Sharing::Private => {
            all.iter().find(free).map_or(Choice::New(next), |found| Choice::Old(found.number))
        }
        Sharing::Shared => {
            let open = |instance: &&Instance| instance.is_made && (instance.users == 0 || !instance.alone);
            match all.iter().find(open) {
                Some(found) => Choice::Old(found.number),
                // One that is being made for sharing is waited for: a second would have what the first has not.
                None if all.iter().any(|instance| !instance.is_made && !instance.alone) => Choice::Wait,
                None => Choice::New(next),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Instance = Instance { number: 0, users: 0, alone: false, is_made: true };

    fn of(sharing: Sharing, instances: &[Instance]) -> Choice {
        choose(sharing, "x", instances.iter().copied(), 1, &[])
    }

    #[test]
    fn the_first_of_an_id_is_made_and_the_next_find_it() {
        for sharing in [Sharing::Shared, Sharing::Private, Sharing::Locked] {
            assert_eq!(of(sharing, &[]), Choice::New(0));
            assert_eq!(of(sharing, &[IDLE]), Choice::Old(0));
        }
    }

    #[test]
    fn one_that_is_in_use_is_shared_doubled_or_waited_for() {
        let shared = Instance { users: 2, ..IDLE };
        assert_eq!(of(Sharing::Shared, &[shared]), Choice::Old(0));
        assert_eq!(of(Sharing::Private, &[shared]), Choice::New(1));
        assert_eq!(of(Sharing::Locked, &[shared]), Choice::Wait);
        let taken = Instance { users: 1, alone: true, ..IDLE };
        assert_eq!(of(Sharing::Shared, &[taken]), Choice::New(1));
        assert_eq!(of(Sharing::Private, &[taken, Instance { number: 1, ..IDLE }]), Choice::Old(1));
        assert_eq!(of(Sharing::Locked, &[taken, Instance { number: 1, ..IDLE }]), Choice::Wait);
    }

    #[test]
    fn one_that_is_being_made_for_all_is_waited_for() {
        let being_made = Instance { users: 1, is_made: false, ..IDLE };
        assert_eq!(of(Sharing::Shared, &[being_made]), Choice::Wait);
        assert_eq!(of(Sharing::Private, &[being_made]), Choice::New(1));
        assert_eq!(of(Sharing::Shared, &[Instance { alone: true, ..being_made }]), Choice::New(1));
    }

    #[test]
    fn numbers_that_became_free_are_used_again() {
        let taken = Instance { number: 1, users: 1, alone: true, is_made: true };
        assert_eq!(of(Sharing::Private, &[taken]), Choice::New(0));
    }

    #[test]
    fn who_came_first_is_locked_in_first() {
        let earlier = Waiter { ticket: 0, alone: BTreeSet::from(["x".to_owned()]) };
        let ask = |sharing, waiter: &Waiter| {
            choose(sharing, "x", [IDLE].into_iter(), 1, std::slice::from_ref(waiter))
        };
        assert_eq!(ask(Sharing::Locked, &earlier), Choice::Wait);
        assert_eq!(ask(Sharing::Shared, &earlier), Choice::Old(0));
        assert_eq!(ask(Sharing::Locked, &Waiter { ticket: 2, ..earlier.clone() }), Choice::Old(0));
        let other = Waiter { alone: BTreeSet::from(["y".to_owned()]), ..earlier };
        assert_eq!(ask(Sharing::Locked, &other), Choice::Old(0));
    }
}
