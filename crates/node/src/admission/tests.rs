//! The ledger by itself, and the queue over a machine that is made up.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn memory(bytes: u64) -> Committed {
    Committed { memory_bytes: bytes, ..Committed::default() }
}

fn reading(total: u64, available: u64) -> Reading {
    Reading {
        memory_total: Some(total),
        memory_available: Some(available),
        memory_stalled: None,
        disk_total: Some(100 * GIB),
        disk_free: Some(50 * GIB),
        disk_reserve: Some(GIB),
    }
}

fn ledger(total: u64, available: u64) -> Ledger {
    let mut ledger = Ledger::new(4, Some(0));
    ledger.measured(reading(total, available));
    ledger
}

#[test]
fn what_never_fits_is_said_at_once() {
    let mut ledger = ledger(8 * GIB, 8 * GIB);
    let refused = ledger.enter("a", memory(9 * GIB)).unwrap_err();
    assert_eq!((refused.what, refused.has as u64), (WaitsFor::Memory, 8 * GIB));
    let disk = Committed { disk_bytes: 101 * GIB, ..Committed::default() };
    assert_eq!(ledger.enter("a", disk).unwrap_err().what, WaitsFor::Disk);
    let cpus = Committed { cpus: 4.5, ..Committed::default() };
    assert_eq!(ledger.enter("a", cpus).unwrap_err().what, WaitsFor::Cpus);
    assert_eq!(ledger.queued(), 0);
    assert!(ledger.enter("a", memory(8 * GIB)).is_ok());
}

#[test]
fn the_first_holds_up_the_others_and_places_move_up() {
    let mut ledger = ledger(8 * GIB, 8 * GIB);
    let first = ledger.enter("big", memory(6 * GIB)).unwrap();
    assert_eq!(ledger.next(), Some((first, memory(6 * GIB))));
    ledger.enter("large", memory(4 * GIB)).unwrap();
    ledger.enter("small", memory(GIB)).unwrap();
    assert_eq!(ledger.next(), None);
    assert_eq!(ledger.place("small"), Some(QueuePlace { position: 2, waits_for: WaitsFor::Memory }));
    assert!(ledger.withdraw_id("large").is_some());
    assert_eq!(ledger.place("small").unwrap().position, 1);
    assert!(ledger.next().is_some());
    ledger.give_back(memory(6 * GIB));
    ledger.give_back(memory(GIB));
    assert_eq!(ledger.show().0.committed_bytes, 0);
}

#[test]
fn what_others_use_counts_and_what_was_let_in_since_too() {
    let mut ledger = ledger(8 * GIB, 3 * GIB);
    ledger.enter("a", memory(2 * GIB)).unwrap();
    ledger.enter("b", memory(2 * GIB)).unwrap();
    assert!(ledger.next().is_some());
    assert_eq!(ledger.next(), None);
    assert_eq!(ledger.place("b").unwrap().waits_for, WaitsFor::MemoryInUse);
    // The first turned out to use little.
    ledger.measured(reading(8 * GIB, 3 * GIB));
    assert!(ledger.next().is_some());
}

#[test]
fn stalls_hold_up_starts_only_where_memory_is_low() {
    let mut ledger = ledger(8 * GIB, 4 * GIB);
    let stalled = |available| Reading { memory_stalled: Some(50.0), ..reading(8 * GIB, available) };
    ledger.enter("a", memory(0)).unwrap();
    ledger.measured(stalled(GIB / 2));
    assert_eq!(ledger.next(), None);
    ledger.measured(stalled(4 * GIB));
    assert!(ledger.next().is_some());
}

#[test]
fn disk_in_use_is_waited_for_until_it_is_full() {
    let mut ledger = ledger(8 * GIB, 8 * GIB);
    let low = |free| Reading { disk_free: Some(free), ..reading(8 * GIB, 8 * GIB) };
    ledger.enter("a", Committed { disk_bytes: GIB, ..Committed::default() }).unwrap();
    ledger.measured(low(GIB - 1));
    assert_eq!(ledger.next(), None);
    assert_eq!(ledger.place("a").unwrap().waits_for, WaitsFor::DiskInUse);
    assert_eq!(ledger.disk_is_full(), None);
    ledger.measured(low(1 << 20));
    assert_eq!(ledger.disk_is_full(), Some((1 << 20, GIB)));
}

#[test]
fn the_default_reserve_is_a_part_of_the_machine() {
    let mut ledger = Ledger::new(2, None);
    ledger.measured(reading(24 * GIB, 24 * GIB));
    let (memory, disk, ..) = ledger.show();
    assert_eq!(memory.reserved_bytes, 24 * GIB / 20);
    // The disk engine's, shown and not taken off a second time.
    assert_eq!((disk.reserved_bytes, disk.free_bytes), (GIB, Some(100 * GIB)));
    let all = Committed { disk_bytes: 50 * GIB, ..Committed::default() };
    ledger.enter("a", all).unwrap();
    assert!(ledger.next().is_some());
    ledger.measured(reading(512 << 20, 512 << 20));
    assert_eq!(ledger.show().0.reserved_bytes, 128 << 20);
}

#[test]
fn a_machine_that_cannot_tell_holds_nobody_up() {
    let mut ledger = Ledger::new(2, None);
    ledger.enter("a", memory(1 << 50)).unwrap();
    assert!(ledger.next().is_some());
}

proptest! {
    /// Whatever comes and goes: never more is set aside than there is, nobody passes another, and the sums come out even.
    #[test]
    fn commitments_never_exceed_the_machine(events in proptest::collection::vec((0u8..4, 0u64..12), 0..200)) {
        let mut ledger = ledger(8 * GIB, 8 * GIB);
        let (mut held, mut waiting, mut served) = (Vec::new(), VecDeque::new(), 0);
        for (event, size) in events {
            match event {
                0 | 1 => match ledger.enter(&format!("s{size}"), memory(size * GIB)) {
                    Ok(ticket) => waiting.push_back(ticket),
                    Err(_) => prop_assert!(size > 8),
                },
                2 => if let Some(had) = held.pop() { ledger.give_back(had) },
                _ => if let Some(ticket) = waiting.pop_back() { prop_assert!(ledger.withdraw(ticket)) },
            }
            while let Some((ticket, had)) = ledger.next() {
                prop_assert_eq!(waiting.pop_front(), Some(ticket));
                ledger.started(None);
                held.push(had);
                served += 1;
            }
            let sum: u64 = held.iter().map(|had: &Committed| had.memory_bytes).sum();
            prop_assert_eq!(ledger.show().0.committed_bytes, sum);
            prop_assert!(sum <= 8 * GIB);
            prop_assert_eq!(ledger.queued() as usize, waiting.len());
        }
        let _ = served;
    }
}

use std::collections::VecDeque;

/// A machine whose free memory a test sets.
struct Made(Arc<AtomicU64>);

impl Meter for Made {
    fn read(&self) -> Reading {
        reading(8 * GIB, self.0.load(Ordering::SeqCst))
    }
}

fn admission() -> (Arc<Admission>, Arc<AtomicU64>) {
    let available = Arc::new(AtomicU64::new(8 * GIB));
    let ledger = Ledger::new(2, Some(0));
    (Admission::new(ledger, Box::new(Made(available.clone()))), available)
}

#[tokio::test]
async fn a_place_is_given_back_by_whoever_goes_away() {
    let (admission, _) = admission();
    let first = admission.admit("a", memory(8 * GIB), None, || panic!("there is room")).await.unwrap();
    let second = {
        let admission = admission.clone();
        tokio::spawn(async move { admission.admit("b", memory(8 * GIB), None, || ()).await.map(drop) })
    };
    while admission.place("b").is_none() {
        tokio::task::yield_now().await;
    }
    let third = {
        let admission = admission.clone();
        tokio::spawn(async move { admission.admit("c", memory(GIB), None, || ()).await.map(drop) })
    };
    while admission.place("c").is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(admission.place("c").unwrap().position, 2);
    second.abort();
    let _ = second.await;
    assert_eq!(admission.place("c").unwrap().position, 1);
    first.permit.succeeded();
    drop(first.grant);
    assert_eq!(third.await.unwrap(), Ok(()));
    assert_eq!(admission.show().0.committed_bytes, 0);
    assert_eq!(admission.show().3.running, 0);
}

#[tokio::test]
async fn who_will_not_wait_is_told_what_for() {
    let (admission, _) = admission();
    let _first = admission.admit("a", memory(8 * GIB), None, || ()).await.unwrap();
    let refused = admission.admit("b", memory(GIB), Some(Duration::ZERO), || ()).await.map(drop);
    assert_eq!(refused, Err(Refusal::NoRoom { waits_for: WaitsFor::Memory, position: 1 }));
    let refused = admission.admit("b", memory(GIB), Some(Duration::from_millis(1)), || ()).await.map(drop);
    assert!(matches!(refused, Err(Refusal::NoRoom { .. })));
    assert_eq!(admission.place("b"), None);
}

#[tokio::test]
async fn who_is_deleted_in_the_queue_learns_it() {
    let (admission, _) = admission();
    let _first = admission.admit("a", memory(8 * GIB), None, || ()).await.unwrap();
    let waiting = {
        let admission = admission.clone();
        tokio::spawn(async move { admission.admit("b", memory(GIB), None, || ()).await.map(drop) })
    };
    while admission.place("b").is_none() {
        tokio::task::yield_now().await;
    }
    assert!(admission.withdraw("b"));
    assert!(!admission.withdraw("b"));
    assert_eq!(waiting.await.unwrap(), Err(Refusal::Withdrawn));
}

#[tokio::test]
async fn memory_that_others_free_lets_the_queue_move() {
    let (admission, available) = admission();
    available.store(0, Ordering::SeqCst);
    tokio::time::sleep(FRESH).await;
    let keeper = {
        let admission = admission.clone();
        tokio::spawn(async move {
            loop {
                admission.look_again().await;
            }
        })
    };
    let waiting = {
        let admission = admission.clone();
        tokio::spawn(async move { admission.admit("b", memory(GIB), None, || ()).await.map(drop) })
    };
    while admission.place("b").is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(admission.place("b").unwrap().waits_for, WaitsFor::MemoryInUse);
    available.store(8 * GIB, Ordering::SeqCst);
    assert_eq!(waiting.await.unwrap(), Ok(()));
    keeper.abort();
}
