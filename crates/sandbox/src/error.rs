//! Why a sandbox could not be made or ended.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Every one of these is a failure of the infrastructure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its writable layer could not be made.
    #[error("cannot make the sandbox's disk")]
    Disk(#[source] berth_disk::Error),
    /// The disk that sandboxes are on is gone or failed.
    #[error("the disk of sandboxes is lost")]
    DiskLost(#[source] berth_disk::Error),
    /// Its network could not be made.
    #[error("cannot make the sandbox's network")]
    Network(#[source] berth_net::Error),
    /// Its limits cannot be set.
    #[error("cannot set the sandbox's limits")]
    Cgroup(#[source] berth_jail::cgroup::Error),
    /// What was asked for cannot be planned.
    #[error("cannot plan the sandbox")]
    Plan(#[source] berth_jail::plan::Error),
    /// There are no ids for users inside.
    #[error("cannot set ids aside for users inside of sandboxes")]
    Ids(#[source] crate::ids::Error),
    /// Sandboxes are to have user namespaces, and this machine cannot make such.
    #[error("sandboxes cannot have user namespaces of their own: {found}")]
    UserNamespaces {
        /// What the doctor says of each thing that is missing, and what to do.
        found: String,
    },
    /// A capability has no meaning.
    #[error("cannot tell which capabilities the sandbox is to have")]
    Capability(#[source] berth_jail::capability::UnknownCapability),
    /// What the kernel offers cannot be read.
    #[error("cannot look at what the kernel offers")]
    Facts(#[source] berth_jail::plan::DetectError),
    /// What sandboxes would see of the machine cannot be read.
    #[error("cannot look at what this machine shows of itself")]
    Host(#[source] berth_jail::views::DetectError),
    /// The container did not start.
    #[error("cannot start the sandbox")]
    Launch(#[source] berth_jail::Error),
    /// The guest's executable cannot be put into memory.
    #[error("cannot prepare the guest's executable")]
    GuestImage(#[source] berth_jail::GuestImageError),
    /// Its files of `/etc` could not be written.
    #[error("cannot write the sandbox's /etc files")]
    EtcFiles(#[source] io::Error),
    /// Directories for what it writes to its mounts could not be made.
    #[error("cannot make the directories of the sandbox's mounts, {}", path.display())]
    MountDirs {
        /// The directory that holds them.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The stream to the guest, or a descriptor, could not be made.
    #[error("cannot make the sandbox's control stream")]
    Socket(#[source] io::Error),
    /// The guest spoke no sense or went away.
    #[error("the sandbox's guest failed")]
    Guest(#[source] crate::guest::Error),
    /// The guest did not answer.
    #[error("the sandbox's guest did not answer within {} s", limit.as_secs())]
    GuestSilent {
        /// How long it was waited for.
        limit: Duration,
    },
    /// Its first process could not be killed or waited for.
    #[error("cannot end the sandbox's first process")]
    Kill(#[source] io::Error),
    /// Its first process was killed and is still there.
    #[error("the sandbox's first process does not end")]
    Undead,
    /// Mount points of the container could not be taken out of a layer.
    #[error("cannot clear mount points out of the layer")]
    Stubs(#[source] io::Error),
    /// What it wrote cannot be made to last.
    #[error("cannot write out {}", path.display())]
    WriteOut {
        /// Its upper directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The directory of sandboxes' sockets cannot be made or cleared.
    #[error("cannot prepare the directory of sockets, {}", path.display())]
    Sockets {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What was written down of a running sandbox makes no sense, or cannot be written down.
    #[error("what was written down of the running sandbox cannot be understood")]
    Record(#[source] serde_json::Error),
    /// A running sandbox is one of another berth: its guest speaks another protocol.
    #[error(
        "the sandbox's guest speaks generation {theirs} of the protocol, this berth {}: it was started by another \
         version of berth, and has been ended",
        berth_wire::GENERATION
    )]
    OtherGeneration {
        /// Which one it speaks.
        theirs: u32,
    },
    /// A running sandbox is one of another berth, which wrote down other things of it.
    #[error(
        "the running sandbox was written down in format {theirs} by another version of berth, and has been ended"
    )]
    OtherFormat {
        /// Which one.
        theirs: u32,
    },
    /// Its first process cannot be told from others.
    #[error("cannot tell the sandbox's first process from others")]
    Identify(#[source] io::Error),
    /// The sandbox of an earlier daemon runs no more, or what runs is not it.
    #[error("the sandbox did not outlive its daemon")]
    NotThere(#[source] berth_jail::AdoptError),
    /// The namespaces of a running sandbox cannot be opened.
    #[error("cannot open the running sandbox's namespaces")]
    Namespaces(#[source] io::Error),
    /// The guest of a running sandbox lets nobody connect.
    #[error("cannot connect to the running sandbox's guest")]
    Connect(#[source] io::Error),
    /// The guest can have no other connection than its first.
    #[error("its guest ends with its connection, and has not")]
    OneConnection,
    /// The sandbox was ended while this was asked of it.
    #[error("the sandbox has ended")]
    Ended,
    /// The daemon is ending.
    #[error("the daemon is ending")]
    Cancelled,
}
