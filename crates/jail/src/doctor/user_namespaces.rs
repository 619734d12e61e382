//! Whether sandboxes can have ids of their own: what the machine allows, and a real try.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Finding, State, kernel_version};
use crate::ids::{IdRange, NamespacePair};
use crate::launcher::Launcher;

/// Overlayfs on id-mapped layers.
const KERNEL_MIN: (u32, u32) = (5, 19);
/// The way out of everything here.
const WITHOUT: &str = "or set user_namespaces = false under [isolation] of the configuration: root in sandboxes is then root on the host";

/// What was found; judged apart, so that every judgement can be tested.
struct Facts {
    kernel: (u32, u32),
    /// The limits `max_user_namespaces` and `max_net_namespaces`.
    limits: [(&'static str, Option<u64>); 2],
    /// `/proc/self/setgroups`; absent where the kernel has no user namespaces.
    setgroups: Option<String>,
    made: Result<(), String>,
    /// Absent where there was no namespace to try it with.
    mapped: Option<Result<(), String>>,
}

/// Looks whether sandboxes whose files are below `data_dir` can have user namespaces of their own: makes one with `ids`
/// mapped and, with it, an id-mapped mount of `data_dir`. Both are gone afterwards, and no mount table changes.
pub fn user_namespaces(launcher: &Launcher, data_dir: &Path, ids: IdRange) -> Vec<Finding> {
    let pair = launcher.make_namespaces(ids).map_err(|error| chain(&error));
    let limit = |name| (name, number(&Path::new("/proc/sys/user").join(name)));
    let facts = Facts {
        kernel: kernel_version().1,
        limits: [limit("max_user_namespaces"), limit("max_net_namespaces")],
        setgroups: std::fs::read_to_string("/proc/self/setgroups").ok().map(|text| text.trim().to_owned()),
        mapped: pair.as_ref().ok().map(|pair| map(data_dir, pair).map_err(|error| chain(&error))),
        made: pair.map(drop),
    };
    judge(&facts, data_dir)
}

fn map(dir: &Path, pair: &NamespacePair) -> std::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, dir, flags)?;
    berth_sys::mount::map_ids(tree.as_fd(), pair.user.as_fd(), false)
}

fn judge(facts: &Facts, data_dir: &Path) -> Vec<Finding> {
    vec![made(facts), limits(facts), setgroups(facts), mapped(facts, data_dir)]
}

fn made(facts: &Facts) -> Finding {
    const NAME: &str = "user namespaces";
    match &facts.made {
        Ok(()) => Finding::ok(NAME, "yes"),
        Err(_) if facts.setgroups.is_none() => {
            let hint = format!("use a kernel with CONFIG_USER_NS, {WITHOUT}");
            Finding::bad(NAME, State::Fail, "the kernel has none", &hint)
        }
        Err(error) => {
            let hint = format!(
                "raise user.max_user_namespaces and user.max_net_namespaces with sysctl; in a container, run that one \
                 privileged and without a user namespace of its own; {WITHOUT}"
            );
            Finding::bad(NAME, State::Fail, error, &hint)
        }
    }
}

fn limits(facts: &Facts) -> Finding {
    const NAME: &str = "limits of namespaces";
    let shown = |(name, value): &(&str, Option<u64>)| {
        let value = value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        format!("user.{name} = {value}")
    };
    let found = facts.limits.each_ref().map(shown).join(", ");
    let lowest = facts.limits.iter().filter_map(|(_, value)| *value).min();
    match lowest {
        None => Finding::bad(NAME, State::Warn, found, "mount /proc"),
        // Counted by user, and each sandbox is one, who needs one.
        Some(0) => {
            let hint = "sysctl -w user.max_user_namespaces=1024 user.max_net_namespaces=1024";
            Finding::bad(NAME, State::Fail, found, hint)
        }
        Some(_) => Finding::ok(NAME, found),
    }
}

fn setgroups(facts: &Facts) -> Finding {
    const NAME: &str = "setgroups";
    match facts.setgroups.as_deref() {
        Some("allow") => Finding::ok(NAME, "allowed"),
        Some(other) => {
            let hint = "start the daemon outside of a user namespace that was made without privileges";
            Finding::bad(NAME, State::Fail, other, hint)
        }
        None => Finding::bad(NAME, State::Warn, "unknown: /proc/self/setgroups is not there", "mount /proc"),
    }
}

fn mapped(facts: &Facts, data_dir: &Path) -> Finding {
    const NAME: &str = "id-mapped mounts";
    let of = data_dir.display();
    if facts.kernel < KERNEL_MIN {
        let found = "overlayfs takes no id-mapped layers before Linux 5.19";
        let hint = format!("use a newer kernel, {WITHOUT}");
        return Finding::bad(NAME, State::Fail, found, &hint);
    }
    match &facts.mapped {
        Some(Ok(())) => Finding::ok(NAME, format!("yes, of {of}")),
        Some(Err(error)) => {
            let hint = format!("move the data directory to ext4, xfs or btrfs, {WITHOUT}");
            Finding::bad(NAME, State::Fail, format!("not of {of}: {error}"), &hint)
        }
        None => {
            let hint = "see user namespaces";
            Finding::bad(NAME, State::Warn, "not tried: there is no user namespace to try it with", hint)
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: (6, 1),
            limits: [("max_user_namespaces", Some(96_365)), ("max_net_namespaces", Some(96_365))],
            setgroups: Some("allow".to_owned()),
            made: Ok(()),
            mapped: Some(Ok(())),
        }
    }

    fn shown(change: fn(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        let line = |finding: Finding| {
            let hint = finding.hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            format!("{:?} {}: {}{hint}\n", finding.state, finding.name, finding.found)
        };
        judge(&facts, Path::new("/data")).into_iter().map(line).collect()
    }

    #[test]
    fn a_machine_that_can() {
        insta::assert_snapshot!(shown(|_| ()));
    }

    #[test]
    fn a_kernel_without_user_namespaces() {
        insta::assert_snapshot!(shown(|facts| {
            facts.limits = facts.limits.map(|(name, _)| (name, None));
            facts.setgroups = None;
            facts.made = Err("cannot make namespaces for ids 1..=9: Invalid argument".to_owned());
            facts.mapped = None;
        }));
    }

    #[test]
    fn none_allowed() {
        insta::assert_snapshot!(shown(|facts| {
            facts.limits[0].1 = Some(0);
            facts.made = Err("cannot make namespaces for ids 1..=9: No space left on device".to_owned());
            facts.mapped = None;
        }));
    }

    #[test]
    fn an_old_kernel_in_an_unprivileged_container() {
        insta::assert_snapshot!(shown(|facts| {
            facts.kernel = (5, 15);
            facts.setgroups = Some("deny".to_owned());
        }));
    }

    #[test]
    fn a_file_system_without_mapping() {
        insta::assert_snapshot!(shown(|facts| facts.mapped = Some(Err("Invalid argument".to_owned()))));
    }
}
