//! Where it was measured.

use std::path::Path;

/// What figures depend on. What cannot be told is told so: nothing else depends on it.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    pub(super) memory_mib: u64,
    /// Which control groups limit memory.
    pub(super) cgroups: &'static str,
    /// Processes that wanted to run in the minute before.
    pub(super) load: f64,
}

impl Machine {
    /// This one.
    pub(super) fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: cpu.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or_default() / 1024,
            cgroups: cgroups(Path::new("/sys/fs/cgroup")),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(f64::NAN),
        }
    }

    /// Whether others compete for its cores.
    #[expect(clippy::cast_precision_loss, reason = "nobody has so many cores")]
    pub(super) fn busy(&self) -> bool {
        self.load > self.cores as f64 / 4.0
    }

    /// What to say before measuring on it, where something is to be said.
    pub(super) fn warning(&self) -> Option<String> {
        self.busy().then(|| {
            format!("this machine is busy (load {:.1}): figures and ratios will not be right", self.load)
        })
    }
}

/// A line of `/proc/meminfo`, in KiB.
pub(super) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn cgroups(root: &Path) -> &'static str {
    let v2 = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    match (v2.split_whitespace().any(|controller| controller == "memory"), root.join("memory").is_dir()) {
        (true, _) => "v2",
        (false, true) => "v1",
        (false, false) => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_whole_names() {
        let text = "MemTotal:       24689732 kB\nMemFree:  7 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_689_732));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo(text, "HugePages_Total"), Some(0));
    }
}
