//! What the machine has at this moment.

use std::sync::Arc;

use berth_disk::Engine;

/// What was measured. A field is absent where the machine cannot tell; nothing is held up for want of it then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Memory of the machine, or of the control group that all of this is in, in bytes.
    pub(crate) memory_total: Option<u64>,
    /// Memory that could be had without swapping, in bytes.
    pub(crate) memory_available: Option<u64>,
    /// Share of the last ten seconds in which some process stalled for memory, in percent.
    pub(crate) memory_stalled: Option<f64>,
    /// Room for sandboxes and images, used or not, as large as it can grow, in bytes.
    pub(crate) disk_total: Option<u64>,
    /// What of it can be written now, in bytes.
    pub(crate) disk_free: Option<u64>,
    /// What the disk engine leaves to others, in bytes: part of neither.
    pub(crate) disk_reserve: Option<u64>,
}

/// Measures. Called at most every 50 ms, with the ledger locked: it is to take microseconds.
pub(crate) trait Meter: Send + Sync {
    fn read(&self) -> Reading;
}

/// This machine, by its `/proc` and the disk engine.
pub(crate) struct HostMeter {
    disk: Arc<dyn Engine>,
    /// A limit on everything here, where this is not a whole machine.
    memory_limit: Option<u64>,
}

impl HostMeter {
    pub(crate) fn new(disk: Arc<dyn Engine>) -> HostMeter {
        HostMeter { disk, memory_limit: memory_limit() }
    }
}

impl Meter for HostMeter {
    fn read(&self) -> Reading {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let room = self.disk.capacity().ok();
        let total = field(&meminfo, "MemTotal:");
        let limit = |value: u64| self.memory_limit.map_or(value, |limit| value.min(limit));
        Reading {
            memory_total: total.map(limit),
            memory_available: field(&meminfo, "MemAvailable:").map(limit),
            memory_stalled: std::fs::read_to_string("/proc/pressure/memory")
                .ok()
                .and_then(|text| stalled(&text)),
            disk_total: room.map(|room| room.total),
            disk_free: room.map(|room| room.free),
            disk_reserve: room.map(|room| room.reserve),
        }
    }
}

/// The limit of the root of the memory hierarchy that is to be seen here: in a container, the container's.
fn memory_limit() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].iter().find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse().ok()
    })
}

/// A line of `/proc/meminfo`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// `avg10` of the line `some` of a pressure file.
fn stalled(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let meminfo = "MemTotal:       24606144 kB\nMemFree:  1 kB\nMemAvailable:   100 kB\n";
        assert_eq!(field(meminfo, "MemTotal:"), Some(24_606_144 << 10));
        assert_eq!(field(meminfo, "MemAvailable:"), Some(100 << 10));
        assert_eq!(field(meminfo, "SwapTotal:"), None);
        assert_eq!(field("MemTotal: many kB", "MemTotal:"), None);
        let pressure = "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(stalled(pressure), Some(12.5));
        assert_eq!(stalled("full avg10=1.00"), None);
    }
}
