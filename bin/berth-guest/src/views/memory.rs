//! Memory as the sandbox's own control group counts it, in the form of /proc/meminfo.
//!
//! Every line is either what the group counts, or the machine's own where that is what the sandbox has (swap that is
//! not limited, the size of huge pages). A line that the group cannot know is left out: nothing is made up, but for
//! `Buffers`, which is 0 because groups count block devices' pages as `Cached`, and `free` and psutil want the line.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use berth_sys::notify::Memory;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Longest kernel file that is read; a longer one is an error, not half an answer.
const FILE_MAX: usize = 1 << 20;

/// The memory group of the sandbox's processes.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    /// Its directory.
    pub(crate) dir: OwnedFd,
    /// Whether it is of version 2.
    pub(crate) v2: bool,
    /// Its limit, in bytes.
    pub(crate) limit: u64,
}

/// What a group and the machine count, in bytes. Absent: not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) usage: u64,
    /// Pages of files, those in memory file systems included.
    file: u64,
    shmem: u64,
    active_file: u64,
    inactive_file: u64,
    active_anon: u64,
    inactive_anon: u64,
    unevictable: u64,
    anon: u64,
    mapped: u64,
    dirty: u64,
    writeback: u64,
    swap_cached: Option<u64>,
    slab_reclaimable: Option<u64>,
    slab_unreclaimable: Option<u64>,
    kernel_stack: Option<u64>,
    page_tables: Option<u64>,
    percpu: Option<u64>,
    swap_total: u64,
    swap_free: u64,
    /// Of the machine.
    huge_page: Option<u64>,
}

/// The texts that [`Counts`] are made of.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    /// The machine's own /proc/meminfo.
    pub(crate) machine: String,
    /// `memory.current` or `memory.usage_in_bytes`.
    pub(crate) usage: String,
    /// `memory.stat`.
    pub(crate) stat: String,
    /// `memory.swap.max`, or `memory.memsw.limit_in_bytes`; empty where swap is not accounted.
    pub(crate) swap_limit: String,
    /// `memory.swap.current`; of version 2 only.
    pub(crate) swap_usage: String,
}

impl MemoryGroup {
    /// Reads the group; `machine` is the machine's own /proc/meminfo.
    pub(crate) fn read(&self, machine: &OwnedFd) -> Result<Counts, Errno> {
        let mandatory = |name: &str| self.file(name).and_then(|text| text.ok_or(Errno::NOENT));
        let [usage, swap_limit] = if self.v2 {
            ["memory.current", "memory.swap.max"]
        } else {
            ["memory.usage_in_bytes", "memory.memsw.limit_in_bytes"]
        };
        let texts = Texts {
            machine: whole(machine)?,
            usage: mandatory(usage)?,
            stat: mandatory("memory.stat")?,
            swap_limit: self.file(swap_limit)?.unwrap_or_default(),
            swap_usage: if self.v2 {
                self.file("memory.swap.current")?.unwrap_or_default()
            } else {
                String::new()
            },
        };
        counts(&texts, self.limit, self.v2).ok_or(Errno::INVAL)
    }

    /// `None` where the kernel does not offer it.
    fn file(&self, name: &str) -> Result<Option<String>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => whole(&file).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// A kernel file from its beginning, whatever was read of it before.
pub(crate) fn whole(file: &OwnedFd) -> Result<String, Errno> {
    let mut bytes = Vec::new();
    loop {
        let at = bytes.len();
        bytes.resize(at + 8192, 0);
        let len = rustix::io::pread(file, &mut bytes[at..], at as u64)?;
        bytes.truncate(at + len);
        if bytes.len() > FILE_MAX {
            return Err(Errno::FBIG);
        }
        if len == 0 {
            return String::from_utf8(bytes).map_err(|_| Errno::ILSEQ);
        }
    }
}

/// `None` when a text is not what the kernel writes.
pub(crate) fn counts(texts: &Texts, limit: u64, v2: bool) -> Option<Counts> {
    let machine = |name| machine_line(&texts.machine, name);
    let keyed = |key| keyed(&texts.stat, key);
    // Version 1 counts the group itself apart from all below it; the latter is what its limit is about.
    let [file, shmem, mapped, dirty] = if v2 {
        ["file", "shmem", "file_mapped", "file_dirty"]
    } else {
        ["total_cache", "total_shmem", "total_mapped_file", "total_dirty"]
    };
    let [active_file, inactive_file, active_anon, inactive_anon] = if v2 {
        ["active_file", "inactive_file", "active_anon", "inactive_anon"]
    } else {
        ["total_active_file", "total_inactive_file", "total_active_anon", "total_inactive_anon"]
    };
    let [anon, writeback, unevictable, swap_cached] = if v2 {
        ["anon", "file_writeback", "unevictable", "swapcached"]
    } else {
        ["total_rss", "total_writeback", "total_unevictable", "total_swapcached"]
    };
    let (swap_total, swap_free) = swap(texts, limit, v2)?;
    Some(Counts {
        total: limit.min(machine("MemTotal")?),
        usage: number(&texts.usage)?,
        file: keyed(file)?,
        shmem: keyed(shmem).unwrap_or(0),
        active_file: keyed(active_file)?,
        inactive_file: keyed(inactive_file)?,
        active_anon: keyed(active_anon)?,
        inactive_anon: keyed(inactive_anon)?,
        unevictable: keyed(unevictable).unwrap_or(0),
        anon: keyed(anon)?,
        mapped: keyed(mapped).unwrap_or(0),
        dirty: keyed(dirty).unwrap_or(0),
        writeback: keyed(writeback).unwrap_or(0),
        swap_cached: keyed(swap_cached),
        slab_reclaimable: keyed("slab_reclaimable").filter(|_| v2),
        slab_unreclaimable: keyed("slab_unreclaimable").filter(|_| v2),
        kernel_stack: keyed("kernel_stack").filter(|_| v2),
        page_tables: keyed("pagetables").filter(|_| v2),
        percpu: keyed("percpu").filter(|_| v2),
        swap_total,
        swap_free,
        huge_page: machine("Hugepagesize"),
    })
}

/// Swap space in all and unused: the machine's where the group's is not limited.
fn swap(texts: &Texts, limit: u64, v2: bool) -> Option<(u64, u64)> {
    let machine = |name| machine_line(&texts.machine, name);
    let (total, free) = (machine("SwapTotal")?, machine("SwapFree")?);
    let text = texts.swap_limit.trim();
    if text.is_empty() || text == "max" {
        return Some((total, free));
    }
    let (most, used) = if v2 {
        (number(text)?, number(&texts.swap_usage)?)
    } else {
        // Version 1 limits the sum of memory and swap.
        (number(text)?.saturating_sub(limit), keyed(&texts.stat, "total_swap").unwrap_or(0))
    };
    if most >= total {
        return Some((total, free));
    }
    Some((most, most.saturating_sub(used).min(free)))
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).and_then(number)
}

/// In bytes.
fn machine_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

impl Counts {
    pub(crate) fn free(&self) -> u64 {
        self.total.saturating_sub(self.usage)
    }

    /// What could be had without swapping: unused, or given back when it is wanted.
    fn available(&self) -> u64 {
        let given_back = self.active_file + self.inactive_file + self.slab_reclaimable.unwrap_or(0);
        self.free().saturating_add(given_back).min(self.total)
    }

    /// For sysinfo(2).
    pub(crate) fn figures(&self) -> Memory {
        Memory {
            total: self.total,
            free: self.free(),
            shared: self.shmem,
            swap_total: self.swap_total,
            swap_free: self.swap_free,
        }
    }

    /// For /proc/meminfo, in the kernel's order and columns.
    pub(crate) fn meminfo(&self) -> String {
        let slab = self.slab_reclaimable.zip(self.slab_unreclaimable).map(|(one, other)| one + other);
        let lines = [
            ("MemTotal", Some(self.total)),
            ("MemFree", Some(self.free())),
            ("MemAvailable", Some(self.available())),
            ("Buffers", Some(0)),
            ("Cached", Some(self.file)),
            ("SwapCached", self.swap_cached),
            ("Active", Some(self.active_anon + self.active_file)),
            ("Inactive", Some(self.inactive_anon + self.inactive_file)),
            ("Active(anon)", Some(self.active_anon)),
            ("Inactive(anon)", Some(self.inactive_anon)),
            ("Active(file)", Some(self.active_file)),
            ("Inactive(file)", Some(self.inactive_file)),
            ("Unevictable", Some(self.unevictable)),
            ("SwapTotal", Some(self.swap_total)),
            ("SwapFree", Some(self.swap_free)),
            ("Dirty", Some(self.dirty)),
            ("Writeback", Some(self.writeback)),
            ("AnonPages", Some(self.anon)),
            ("Mapped", Some(self.mapped)),
            ("Shmem", Some(self.shmem)),
            ("KReclaimable", self.slab_reclaimable),
            ("Slab", slab),
            ("SReclaimable", self.slab_reclaimable),
            ("SUnreclaim", self.slab_unreclaimable),
            ("KernelStack", self.kernel_stack),
            ("PageTables", self.page_tables),
            ("Percpu", self.percpu),
            ("Hugepagesize", self.huge_page),
        ];
        let mut text = String::new();
        for (name, bytes) in lines {
            let Some(bytes) = bytes else { continue };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes / 1024);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "MemTotal:       24684092 kB\nMemFree:         2469312 kB\nSwapTotal:       4194304 kB\n\
                           SwapFree:        4000000 kB\nHugepagesize:       2048 kB\n";
    const V1: &str = "cache 1\nrss 2\ntotal_cache 37904384\ntotal_rss 104857600\ntotal_shmem 9068544\n\
                      total_mapped_file 7577600\ntotal_dirty 94208\ntotal_writeback 0\ntotal_swap 1048576\n\
                      total_swapcached 0\ntotal_inactive_anon 103325696\ntotal_active_anon 1531904\n\
                      total_inactive_file 24645632\ntotal_active_file 4190208\ntotal_unevictable 0\n";
    const V2: &str = "anon 104857600\nfile 37904384\nkernel 5000000\nkernel_stack 65536\npagetables 131072\n\
                      sec_pagetables 0\npercpu 8192\nsock 0\nshmem 9068544\nfile_mapped 7577600\nfile_dirty 94208\n\
                      file_writeback 0\nswapcached 0\ninactive_anon 103325696\nactive_anon 1531904\n\
                      inactive_file 24645632\nactive_file 4190208\nunevictable 0\nslab_reclaimable 2097152\n\
                      slab_unreclaimable 1048576\nslab 3145728\n";

    fn texts(usage: &str, stat: &str, swap_limit: &str, swap_usage: &str) -> Texts {
        let own = str::to_owned;
        Texts {
            machine: own(MACHINE),
            usage: own(usage),
            stat: own(stat),
            swap_limit: own(swap_limit),
            swap_usage: own(swap_usage),
        }
    }

    #[test]
    fn version_1_becomes_meminfo() {
        let texts = texts("150000000\n", V1, "1075838976\n", "");
        insta::assert_snapshot!(counts(&texts, 1 << 30, false).unwrap().meminfo());
    }

    #[test]
    fn version_2_becomes_meminfo() {
        let texts = texts("150000000\n", V2, "0\n", "0\n");
        insta::assert_snapshot!(counts(&texts, 1 << 30, true).unwrap().meminfo());
    }

    #[test]
    fn what_is_not_limited_is_the_machines() {
        let mut texts = texts("150000000\n", V2, "max\n", "0\n");
        let counted = counts(&texts, u64::MAX / 2, true).unwrap();
        assert_eq!(counted.total, 24_684_092 << 10);
        assert_eq!((counted.swap_total, counted.swap_free), (4_194_304 << 10, 4_000_000 << 10));
        texts.swap_limit.clear();
        assert_eq!(counts(&texts, 1 << 30, true).unwrap().swap_total, 4_194_304 << 10);
    }

    #[test]
    fn more_in_use_than_the_limit_is_nothing_free() {
        let texts = texts("2000000000\n", V2, "0\n", "0\n");
        let counted = counts(&texts, 1 << 30, true).unwrap();
        assert_eq!(counted.figures().free, 0);
        assert!(counted.available() < 1 << 30);
    }

    #[test]
    fn texts_of_another_kind_are_no_counts() {
        for text in ["", "x", "anon -1\n"] {
            assert_eq!(counts(&texts("1\n", text, "0\n", "0\n"), 1 << 30, true), None);
        }
    }
}
