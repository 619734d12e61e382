//! What control groups this machine has: a pure parser of the kernel's texts, and the reading of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;

/// Where the daemon puts itself in a delegated group.
pub(crate) const DAEMON_GROUP: &str = "berth/daemon";

/// What this machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Mounted hierarchies of version 1 that have a controller.
    pub v1: Vec<Hierarchy>,
    /// Version 2, if mounted.
    pub v2: Option<Unified>,
    /// Controllers that the kernel has but that are switched off (`cgroup_disable=`).
    pub disabled: Vec<String>,
}

/// A mounted hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Its controllers: several when they are mounted together.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
}

/// Version 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unified {
    /// Where Berth's groups go below: the mount point, or the daemon's own group when that is delegated.
    pub base: PathBuf,
    /// Whether `base` is a delegated group, in which the daemon itself lives.
    pub delegated: bool,
    /// Controllers that `base` can hand on.
    pub controllers: Vec<String>,
    /// Those of them that it hands on already.
    pub enabled: Vec<String>,
}

/// The kernel's texts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'a> {
    /// `/proc/self/mountinfo`.
    pub mountinfo: &'a str,
    /// `/proc/cgroups`.
    pub proc_cgroups: &'a str,
    /// `cgroup.controllers` of the version 2 base.
    pub controllers: &'a str,
    /// `cgroup.subtree_control` of the version 2 base.
    pub subtree_control: &'a str,
}

impl Facts {
    /// Of this machine.
    pub fn detect() -> Result<Self, Error> {
        let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
        let self_cgroup = read(Path::new("/proc/self/cgroup"))?;
        // Absent in kernels of version 2 alone.
        let proc_cgroups = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let mut controllers = String::new();
        let mut subtree_control = String::new();
        let mut delegated = None;
        if let Some(mount_point) = unified_mount(&mountinfo) {
            delegated = own_group(&self_cgroup)
                .map(|own| mount_point.join(own.trim_start_matches('/')))
                .filter(|dir| *dir != mount_point && is_delegated(dir));
            let base = delegated.as_ref().unwrap_or(&mount_point);
            controllers = read(&base.join("cgroup.controllers"))?;
            subtree_control = read(&base.join("cgroup.subtree_control"))?;
        }
        let texts = Texts {
            mountinfo: &mountinfo,
            proc_cgroups: &proc_cgroups,
            controllers: &controllers,
            subtree_control: &subtree_control,
        };
        Ok(Self::parse(texts, delegated))
    }

    /// From texts. `delegated` is the daemon's own group of version 2, when that is delegated to it.
    pub fn parse(texts: Texts<'_>, delegated: Option<PathBuf>) -> Self {
        let known = known_controllers(texts.proc_cgroups);
        let v2 = unified_mount(texts.mountinfo).map(|mount_point| Unified {
            delegated: delegated.is_some(),
            base: delegated.unwrap_or(mount_point),
            controllers: words(texts.controllers),
            enabled: words(texts.subtree_control),
        });
        let disabled = known.iter().filter(|(_, enabled)| !enabled).map(|(name, _)| name.clone()).collect();
        Self { v1: hierarchies(texts.mountinfo, &known), v2, disabled }
    }

    /// The hierarchy of version 1 that has `controller`.
    pub fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }
}

/// `None` when the group of version 2 is not named; the daemon's own leaf is taken off, so that asking again after it
/// has moved there gives the same answer.
fn own_group(self_cgroup: &str) -> Option<String> {
    let own = self_cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = own.strip_suffix(DAEMON_GROUP).unwrap_or(own);
    Some(own.trim_end_matches('/').to_owned())
}

/// systemd marks what it delegates.
fn is_delegated(dir: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        matches!(rustix::fs::getxattr(dir, *name, &mut value[..]), Ok(length) if value[..length] == *b"1")
    })
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Detect { path: path.to_owned(), source })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Name and whether it is enabled, of each line of /proc/cgroups.
fn known_controllers(proc_cgroups: &str) -> Vec<(String, bool)> {
    proc_cgroups
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.to_owned(), fields.nth(2)? == "1"))
        })
        .collect()
}

/// One line of mountinfo, as far as it matters here. proc_pid_mountinfo(5).
struct MountLine<'a> {
    root: &'a str,
    mount_point: PathBuf,
    file_system: &'a str,
    super_options: &'a str,
}

fn mount_lines(mountinfo: &str) -> impl Iterator<Item = MountLine<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let root = place.next()?;
        let mount_point = unescape(place.next()?);
        let mut fields = file_system.split(' ');
        let file_system = fields.next()?;
        let super_options = fields.nth(1)?;
        Some(MountLine { root, mount_point, file_system, super_options })
    })
}

fn unified_mount(mountinfo: &str) -> Option<PathBuf> {
    mount_lines(mountinfo).find(|line| line.file_system == "cgroup2").map(|line| line.mount_point)
}

fn hierarchies(mountinfo: &str, known: &[(String, bool)]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    // Whole hierarchies before parts of them that are mounted elsewhere, as in containers.
    let (whole, parts): (Vec<_>, Vec<_>) =
        mount_lines(mountinfo).filter(|line| line.file_system == "cgroup").partition(|line| line.root == "/");
    for line in whole.into_iter().chain(parts) {
        let controllers: Vec<String> = line
            .super_options
            .split(',')
            .filter(|option| known.iter().any(|(name, _)| name == option))
            .map(str::to_owned)
            .collect();
        let seen = found.iter().any(|hierarchy| hierarchy.controllers == controllers);
        if !controllers.is_empty() && !seen {
            found.push(Hierarchy { controllers, mount_point: line.mount_point });
        }
    }
    found
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to)).into()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const PROC_CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\ncpu\t1\t1\t1\n\
        cpuacct\t2\t1\t1\nblkio\t7\t1\t1\nmemory\t4\t15\t1\ndevices\t5\t1\t1\nfreezer\t6\t1\t1\nnet_cls\t0\t1\t1\n\
        perf_event\t0\t1\t0\nhugetlb\t0\t1\t1\npids\t8\t1\t1\n";

    pub(in crate::cgroup) fn hybrid() -> Facts {
        Facts::parse(
            Texts {
                mountinfo: include_str!("testdata/hybrid.mountinfo"),
                proc_cgroups: PROC_CGROUPS,
                controllers: "hugetlb\n",
                subtree_control: "\n",
            },
            None,
        )
    }

    pub(in crate::cgroup) fn classic() -> Facts {
        Facts::parse(
            Texts {
                mountinfo: include_str!("testdata/classic.mountinfo"),
                proc_cgroups: PROC_CGROUPS,
                ..Texts::default()
            },
            None,
        )
    }

    pub(in crate::cgroup) fn unified(delegated: Option<PathBuf>) -> Facts {
        Facts::parse(
            Texts {
                mountinfo: include_str!("testdata/unified.mountinfo"),
                proc_cgroups: PROC_CGROUPS,
                controllers: "cpuset cpu io memory hugetlb pids rdma misc\n",
                subtree_control: if delegated.is_some() { "\n" } else { "cpuset cpu io memory pids\n" },
            },
            delegated,
        )
    }

    #[test]
    fn hybrid_with_every_controller_apart() {
        insta::assert_json_snapshot!(hybrid());
    }

    #[test]
    fn classic_with_cpu_and_cpuacct_together() {
        insta::assert_json_snapshot!(classic());
    }

    #[test]
    fn unified_root() {
        insta::assert_json_snapshot!(unified(None));
    }

    #[test]
    fn unified_delegated() {
        insta::assert_json_snapshot!(unified(Some("/sys/fs/cgroup/system.slice/berth.service".into())));
    }

    #[test]
    fn the_own_group_is_found_before_and_after_the_daemon_moved_to_its_leaf() {
        let unit = Some("/system.slice/berth.service".to_owned());
        assert_eq!(own_group("0::/system.slice/berth.service\n"), unit);
        assert_eq!(own_group("1:cpu:/\n0::/system.slice/berth.service/berth/daemon\n"), unit);
        assert_eq!(own_group("0::/\n"), Some(String::new()));
        assert_eq!(own_group("1:cpu:/\n"), None);
    }

    #[test]
    fn mount_points_with_spaces() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
    }

    #[test]
    fn this_machine_is_read_without_error() {
        Facts::detect().unwrap();
    }
}
