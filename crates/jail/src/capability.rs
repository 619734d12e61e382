//! Capabilities, by name. capabilities(7).

use serde::{Deserialize, Serialize};

/// Names in the kernel's order: the position is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability. Serialised as its name without `CAP_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(u8);

/// A capability that no kernel known to Berth has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {name:?}")]
pub struct UnknownCapability {
    /// As it was given.
    pub name: String,
}

impl Capability {
    /// To take capabilities away from what one starts, among others.
    pub const SETPCAP: Self = Self(8);
    /// To look into, and write to, the memory of other users' processes, among others.
    pub const SYS_PTRACE: Self = Self(19);
    /// To install a system call filter without no-new-privileges, among many others.
    pub const SYS_ADMIN: Self = Self(21);

    /// What root in a sandbox keeps, unless told otherwise: the set that Docker gives, because images are built and
    /// tested against it.
    pub fn defaults() -> Vec<Self> {
        [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31].map(Self).to_vec()
    }

    /// By name, with or without `CAP_`.
    pub fn named(name: &str) -> Result<Self, UnknownCapability> {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let found =
            NAMES.iter().position(|known| *known == short).and_then(|number| u8::try_from(number).ok());
        found.map(Self).ok_or_else(|| UnknownCapability { name: name.to_owned() })
    }

    /// Its number in the kernel.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<String> for Capability {
    type Error = UnknownCapability;

    fn try_from(name: String) -> Result<Self, UnknownCapability> {
        Self::named(&name)
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        NAMES[usize::from(capability.0)].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_dockers_fourteen() {
        let names: Vec<String> = Capability::defaults().into_iter().map(String::from).collect();
        assert_eq!(
            names.join(" "),
            "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD \
             AUDIT_WRITE SETFCAP"
        );
    }

    #[test]
    fn names_are_taken_with_and_without_prefix() {
        assert_eq!(Capability::named("CAP_BPF"), Capability::named("BPF"));
        assert_eq!(Capability::named("SETPCAP"), Ok(Capability::SETPCAP));
        assert_eq!(Capability::named("SYS_PTRACE"), Ok(Capability::SYS_PTRACE));
        assert_eq!(Capability::named("SYS_ADMIN"), Ok(Capability::SYS_ADMIN));
        assert!(Capability::named("CAP_FLY").is_err());
    }
}
