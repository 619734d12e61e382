//! Why the node could not do what it was asked, and how that reads to a client.

use std::error::Error as StdError;

use berth_types::error::{ApiError, Kind};
use berth_types::sandbox::{ReasonCode, Resources, SandboxState, WaitsFor};

use crate::admission::{Refusal, Shortage};

/// A failed call on the [`crate::Node`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request cannot be honoured.
    #[error("{field}: {problem}")]
    BadRequest {
        /// The field, as in the request's JSON.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No such sandbox.
    #[error("there is no sandbox {id:?}")]
    SandboxNotFound {
        /// Id or name that was asked for.
        id: String,
    },
    /// A living sandbox has that name.
    #[error("the name {name:?} is taken by sandbox {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Id of its holder.
        holder: String,
    },
    /// A request repeats a key but asks for something else.
    #[error("the idempotency key {key:?} made sandbox {holder}, which is not what this request asks for")]
    KeyReused {
        /// The key.
        key: String,
        /// Id of the sandbox of the first request.
        holder: String,
    },
    /// The request asks for a limit of storage that nobody would enforce.
    #[error(
        "resources.storage_mb and storage_inodes ({}) cannot be enforced by the daemon's disk engine",
        storage(resources)
    )]
    StorageUnenforced {
        /// What was asked for.
        resources: Box<Resources>,
    },
    /// The request asks for what this daemon's sandboxes do not have.
    #[error("{field}: sandboxes of this daemon cannot have that")]
    Unsupported {
        /// The field, as in the request's JSON.
        field: &'static str,
    },
    /// The image has files of users that do not exist in a sandbox with a user namespace.
    #[error(
        "layer {layer} of the image has files of user or group {highest}, and a sandbox in a user namespace has ids 0 to {}",
        ids - 1
    )]
    OwnersBeyond {
        /// Digest of the layer with the highest id.
        layer: String,
        /// That id.
        highest: u32,
        /// How many ids a sandbox has, `[isolation] ids_per_sandbox`.
        ids: u32,
    },
    /// The request can never be honoured on this machine.
    #[error(
        "the sandbox never fits on this machine: {what} of {asked} would have to be set aside, and there is {has} in all"
    )]
    NeverFits {
        /// Of what there is too little.
        what: &'static str,
        /// How much would be needed.
        asked: String,
        /// How much there is.
        has: String,
    },
    /// There was no room for it in the time that it was to wait.
    #[error(
        "there is no room for the sandbox now: it would have to wait for {what}, at place {position} of the queue"
    )]
    NoRoom {
        /// What is missing.
        what: &'static str,
        /// Its place in the queue.
        position: u64,
    },
    /// The disk that sandboxes write to is full.
    #[error(
        "the disk is full: {free} bytes are free beside the {reserve} that are kept for others on the machine"
    )]
    DiskFull {
        /// Bytes that are left.
        free: u64,
        /// Bytes that the disk engine leaves alone, `[disk] reserve_mb`.
        reserve: u64,
    },
    /// The disk that sandboxes are on is gone or failed.
    #[error("no sandbox can be made: the disk of sandboxes is lost: {found}")]
    DiskLost {
        /// What was found.
        found: String,
    },
    /// It was deleted, or its lease ended, before it could start.
    #[error("sandbox {id} was deleted while it waited for room{}", if *lease_ended { ": its lease ended" } else { "" })]
    Withdrawn {
        /// Its id.
        id: String,
        /// Whether that was because its lease ended.
        lease_ended: bool,
    },
    /// The sandbox was ended on purpose while this was under way: what came of it is not known.
    #[error("sandbox {id} was ended while this was under way: {reason}")]
    CutOff {
        /// Its id.
        id: String,
        /// What ended it: [`ReasonCode::Ttl`], [`ReasonCode::Deleted`] or [`ReasonCode::LeaseEnded`].
        code: ReasonCode,
        /// The same in words.
        reason: String,
    },
    /// The sandbox is waiting for room.
    #[error("sandbox {id} is waiting for room")]
    SandboxQueued {
        /// Its id.
        id: String,
    },
    /// The sandbox is still being made.
    #[error("sandbox {id} is still starting")]
    SandboxBusy {
        /// Its id.
        id: String,
    },
    /// The sandbox has ended.
    #[error("sandbox {id} is {}{}", state_name(*state), because(reason.as_deref()))]
    SandboxNotRunning {
        /// Its id.
        id: String,
        /// Where it is in its life.
        state: SandboxState,
        /// Why, where that is known.
        reason: Option<String>,
    },
    /// No such lease, or no longer.
    #[error("there is no lease {id:?}")]
    LeaseNotFound {
        /// The id that was asked for.
        id: String,
    },
    /// No such image in the store.
    #[error("there is no image {name:?} in the store")]
    ImageNotFound {
        /// Reference or id that was asked for.
        name: String,
    },
    /// No exec of that id was ever started in the sandbox.
    #[error("there is no exec {exec:?} in sandbox {sandbox}")]
    ExecNotFound {
        /// Its sandbox.
        sandbox: String,
        /// The id that was asked for.
        exec: String,
    },
    /// The exec has ended: nothing can be sent to it.
    #[error("exec {exec:?} in sandbox {sandbox} is over")]
    ExecOver {
        /// Its sandbox.
        sandbox: String,
        /// Its id.
        exec: String,
    },
    /// The exec's input is not one that is streamed, or has been ended.
    #[error("exec {exec:?} takes no (more) input")]
    NoStdin {
        /// Its id.
        exec: String,
    },
    /// Bytes of an exec's input would be missing.
    #[error("exec {exec:?} has been given {given} bytes of input, and what was sent begins at {offset}")]
    StdinGap {
        /// Its id.
        exec: String,
        /// Where the body would begin.
        offset: u64,
        /// What the exec has been given.
        given: u64,
    },
    /// Somebody else gives the exec its input now.
    #[error("exec {exec:?} is given its input by somebody else")]
    StdinTaken {
        /// Its id.
        exec: String,
    },
    /// What the client sends could not be read.
    #[error("the request's body could not be read")]
    Body(#[source] std::io::Error),
    /// The sandbox does not answer: it is stopped, frozen or starved. What came of the call is not known.
    #[error("sandbox {id} did not answer within {seconds} s{}", unknown_start(starting.as_deref()))]
    Unresponsive {
        /// Its id.
        id: String,
        /// How long it was waited for.
        seconds: u64,
        /// The exec that was to be started.
        starting: Option<String>,
    },
    /// The connection to the sandbox broke under the call, and the sandbox lives. What came of the call is not known.
    #[error("the connection to sandbox {id} broke while this was under way, and is being made again")]
    Cut {
        /// Its id.
        id: String,
    },
    /// A call into the sandbox failed for a reason that lies in the sandbox's files.
    #[error("{message}")]
    InSandbox {
        /// Stable code.
        code: &'static str,
        /// Whose fault it is.
        kind: Kind,
        /// What went wrong, with the path.
        message: String,
    },
    /// The store of images failed.
    #[error("{0}")]
    Image(#[source] Box<berth_image::Error>),
    /// An archive that was imported holds no image.
    #[error("the archive holds no image")]
    EmptyArchive,
    /// A build failed.
    #[error("{0}")]
    Build(#[source] Box<berth_build::Error>),
    /// The build context could not be taken in.
    #[error("cannot take in the build context")]
    Context(#[source] std::io::Error),
    /// The build context is no tar that can be unpacked.
    #[error("the build context is not valid")]
    BadContext(#[source] std::io::Error),
    /// Something in a build context that cannot be in one.
    #[error("the build context holds {path:?}, which {problem}")]
    ContextEntry {
        /// Its path in the archive.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The contexts of builds under way take all the room that they may.
    #[error("the contexts of builds under way would take more than {limit} bytes")]
    ContextRoom {
        /// The limit, `[builds] context_bytes`.
        limit: u64,
    },
    /// Only what the context holds was told, and the build needs the context itself.
    #[error("the build needs its context: nothing that was built before is the same")]
    ContextNeeded,
    /// The context that came is not the one that was spoken of.
    #[error("the build context changed while it was sent: {difference}")]
    ContextChanged {
        /// The first difference.
        difference: String,
    },
    /// A build took too long.
    #[error("the build was ended after {seconds} s, the limit of this daemon")]
    BuildTimeout {
        /// `[builds] timeout_seconds`.
        seconds: u64,
    },
    /// The task of a build ended without a result.
    #[error("the build was cut off before it had a result")]
    BuildCut,
    /// What several waited for failed, for all of them alike.
    #[error(transparent)]
    Shared(#[from] std::sync::Arc<Error>),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] berth_store::Error),
    /// The sandbox could not be made.
    #[error("the sandbox could not be made")]
    Start(#[source] Box<berth_sandbox::Error>),
    /// The sandbox could not be ended.
    #[error("the sandbox could not be ended")]
    Stop(#[source] Box<berth_sandbox::Error>),
    /// The sandbox died, or its guest failed, while this was under way: what came of it is not known.
    #[error("the sandbox failed while this was under way{}", because(reason.as_deref()))]
    Guest {
        /// What is known of the sandbox's end.
        reason: Option<String>,
        /// What the connection said.
        #[source]
        source: Box<berth_sandbox::guest::Error>,
    },
    /// The network of sandboxes could not be set up.
    #[error("the network could not be set up")]
    Network(#[source] Box<berth_net::Error>),
    /// The disk engine could not be set up.
    #[error("the disk could not be set up")]
    Disk(#[source] berth_disk::Error),
    /// The driver could not be set up.
    #[error("sandboxes cannot be driven on this machine")]
    Driver(#[source] Box<berth_sandbox::Error>),
    /// Something goes on in a sandbox that this would get in the way of.
    #[error("sandbox {id} is in use: {what}")]
    SandboxInUse {
        /// Its id.
        id: String,
        /// What goes on in it.
        what: String,
    },
    /// The Dockerfile's stage begins with another image than the sandbox was made of: nothing was done in it.
    #[error("cannot replay the Dockerfile in sandbox {id}: it was made of {image}, and the stage begins with {}", base.as_deref().unwrap_or("scratch"))]
    ReplayBase {
        /// Its id.
        id: String,
        /// Id of the image that it was made of.
        image: String,
        /// Id of the image that the stage begins with; absent for `scratch`.
        base: Option<String>,
    },
    /// A Dockerfile could not be replayed in a sandbox, which runs on.
    #[error("cannot replay the Dockerfile in sandbox {id}")]
    Replay {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: Box<berth_build::Error>,
    },
    /// The certificates that the configuration names cannot be offered to builds or sandboxes.
    #[error("cannot offer the certificates of ca_bundle")]
    CaBundle(#[from] crate::trust::BundleError),
    /// The directories of cache mounts cannot be had.
    #[error("the cache mounts of builds cannot be used")]
    Caches(#[source] Box<dyn StdError + Send + Sync>),
    /// A background thread ended early: the daemon is ending.
    #[error("the daemon is ending")]
    Ending,
}

impl Error {
    fn facts(&self) -> (&'static str, Kind) {
        match self {
            Error::BadRequest { .. } => ("bad_request", Kind::User),
            Error::SandboxNotFound { .. } => ("sandbox_not_found", Kind::NotFound),
            Error::NameTaken { .. } => ("name_taken", Kind::Conflict),
            Error::KeyReused { .. } => ("idempotency_key_reused", Kind::Conflict),
            Error::StorageUnenforced { .. } => ("storage_unenforced", Kind::Config),
            Error::Unsupported { .. } => ("unsupported", Kind::Config),
            Error::OwnersBeyond { .. } => ("owners_beyond", Kind::Config),
            Error::NeverFits { .. } => ("never_fits", Kind::Capacity),
            Error::NoRoom { .. } => ("no_room", Kind::Capacity),
            Error::DiskFull { .. } => ("disk_full", Kind::Capacity),
            Error::DiskLost { .. } => ("disk_lost", Kind::Unavailable),
            Error::CutOff { code: ReasonCode::Ttl, .. } => ("sandbox_ended", Kind::Conflict),
            Error::CutOff { code: ReasonCode::LeaseEnded, .. }
            | Error::Withdrawn { lease_ended: true, .. } => ("lease_ended", Kind::Conflict),
            Error::CutOff { .. } | Error::Withdrawn { .. } => ("sandbox_deleted", Kind::Conflict),
            Error::SandboxQueued { .. } => ("sandbox_queued", Kind::Conflict),
            Error::SandboxBusy { .. } => ("sandbox_starting", Kind::Conflict),
            Error::SandboxNotRunning { state: SandboxState::Ended, .. } => ("sandbox_ended", Kind::Conflict),
            Error::SandboxNotRunning { state: SandboxState::Lost, .. } => ("sandbox_lost", Kind::Unavailable),
            Error::SandboxNotRunning { .. } => ("sandbox_not_running", Kind::Conflict),
            Error::LeaseNotFound { .. } => ("lease_not_found", Kind::NotFound),
            Error::ImageNotFound { .. } => ("image_not_found", Kind::NotFound),
            Error::ExecNotFound { .. } => ("exec_not_found", Kind::NotFound),
            Error::ExecOver { .. } => ("exec_over", Kind::Conflict),
            Error::NoStdin { .. } => ("no_stdin", Kind::Conflict),
            Error::StdinGap { .. } => ("stdin_gap", Kind::Conflict),
            Error::StdinTaken { .. } => ("stdin_taken", Kind::Conflict),
            Error::Body(_) => ("body_failed", Kind::User),
            Error::Unresponsive { .. } | Error::Cut { .. } => ("sandbox_unresponsive", Kind::Unavailable),
            Error::InSandbox { code, kind, .. } => (code, *kind),
            Error::EmptyArchive => ("bad_archive", Kind::User),
            Error::Image(error) => (error.code(), error.kind()),
            Error::Build(error) => (error.code(), error.kind()),
            Error::Context(error) if is_full(error) => ("disk_full", Kind::Capacity),
            Error::Context(_) => ("context_failed", Kind::Internal),
            Error::BadContext(_) | Error::ContextEntry { .. } => ("bad_context", Kind::User),
            Error::ContextRoom { .. } => ("context_room", Kind::Capacity),
            Error::ContextNeeded => ("context_needed", Kind::Conflict),
            Error::ContextChanged { .. } => ("context_changed", Kind::Conflict),
            Error::BuildTimeout { .. } => ("build_timeout", Kind::Unavailable),
            Error::BuildCut => ("build_cut", Kind::Internal),
            Error::Shared(error) => error.facts(),
            Error::Store(error) if error.is_full() => ("disk_full", Kind::Capacity),
            Error::Store(_) => ("database", Kind::Internal),
            Error::Start(error) if is_caused_by_full_disk(&**error) => ("disk_full", Kind::Capacity),
            Error::Start(error) if is_mount_target(error) => ("bad_mount_target", Kind::User),
            Error::Start(_) => ("sandbox_start_failed", Kind::Unavailable),
            Error::Stop(_) => ("sandbox_stop_failed", Kind::Internal),
            Error::Guest { .. } => ("sandbox_lost", Kind::Unavailable),
            Error::Network(_) | Error::Disk(_) | Error::Driver(_) => ("machine_unfit", Kind::Config),
            Error::SandboxInUse { .. } => ("sandbox_in_use", Kind::Conflict),
            Error::ReplayBase { .. } => ("replay_base", Kind::Conflict),
            Error::Replay { source, .. } => (source.code(), source.kind()),
            Error::CaBundle(_) => ("bad_ca_bundle", Kind::Config),
            Error::Caches(_) => ("build_caches_failed", Kind::Internal),
            Error::Ending => ("shutting_down", Kind::Unavailable),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            _ if self.facts().0 == "disk_full" => {
                Some("free space, delete sandboxes, or remove images with `berth image rm`".into())
            }
            Error::ImageNotFound { .. } => {
                Some("`berth image ls` lists them; `berth image pull`, `bootstrap`, `import` and `build` bring one in".into())
            }
            Error::SandboxNotFound { .. } => Some("`berth sandbox ls` lists them".into()),
            Error::Unresponsive { starting: Some(exec), .. } => Some(format!(
                "a repeat of the request with the id {exec:?} is safe: it never runs twice"
            )),
            Error::StdinGap { given, .. } => Some(format!("send what begins at {given}")),
            Error::NameTaken { name, .. } => Some(format!("`berth sandbox rm {name}` removes it")),
            Error::StorageUnenforced { resources } => Some(format!(
                "put the data directory on {}, or do without the limit: \"storage_unenforced\": \"allow\" in the \
                 request, --allow-unenforced-storage for `berth run` and `berth sandbox create`, \
                 --ek allow_unenforced_storage=true for Harbor, allow_unenforced_storage = true under [limits] for all",
                if resources.storage_inodes.is_some() { "xfs with project quotas" } else { "btrfs or xfs" }
            )),
            Error::OwnersBeyond { highest, .. } => Some(format!(
                "set ids_per_sandbox under [isolation] above {highest}, or do without a user namespace: \"user_namespace\": false in \
                 the request, --user-namespace=false for `berth sandbox create`, user_namespaces = false under [isolation] for all"
            )),
            Error::NeverFits { what, .. } => Some(format!("{}; `berth node` shows what there is", ask_for_less(what))),
            Error::DiskLost { .. } => Some(
                "see to the disk or the pool file, then restart the daemon; `berth doctor` says what was found".into(),
            ),
            Error::NoRoom { .. } => Some("wait longer (wait_seconds), or delete sandboxes; `berth node` shows what there is".into()),
            Error::Image(error) => error.hint(),
            Error::Shared(error) => error.hint(),
            Error::ContextNeeded => Some("send the same request with the context, a tar".into()),
            Error::ContextChanged { .. } => Some("leave the directory alone while it is sent, and send it again".into()),
            Error::ContextRoom { .. } => Some("wait for other builds, or raise context_bytes under [builds]".into()),
            Error::ReplayBase { base: Some(base), .. } => Some(format!(
                "make the sandbox of {base}, which POST /v1/images/build?base=true gives for this Dockerfile"
            )),
            Error::BuildTimeout { .. } => Some("raise timeout_seconds under [builds]".into()),
            Error::Build(error) => error.hint(),
            Error::Start(error) if is_mount_target(error) => {
                Some(
                    "a file is mounted on a file or on nothing, a directory on a directory or on nothing; at /proc, \
                     /sys and /dev the image must have directories, no links"
                        .into(),
                )
            }
            Error::Start(_) | Error::Driver(_) => Some("`berth doctor` says what this machine lacks".into()),
            _ => None,
        }
    }
}

impl From<berth_image::Error> for Error {
    fn from(error: berth_image::Error) -> Error {
        Error::Image(Box::new(error))
    }
}

impl From<berth_build::Error> for Error {
    fn from(error: berth_build::Error) -> Error {
        Error::Build(Box::new(error))
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> ApiError {
        if let Error::Shared(error) = error {
            return ApiError::from(&**error);
        }
        if let Error::Build(build) = error {
            return build.to_api();
        }
        if let Error::Replay { id, source } = error {
            let mut api = source.to_api();
            api.message = format!("{}; sandbox {id} runs on with what was done in it", api.message);
            return api;
        }
        let (code, kind) = error.facts();
        let mut api = ApiError::new(kind, code, chain(error));
        api.hint = error.hint();
        api
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // A transparent wrapper repeats what it wraps.
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

impl Error {
    /// What a refused admission of sandbox `id` means to its client.
    pub(crate) fn of_refusal(id: &str, refusal: Refusal) -> Error {
        match refusal {
            Refusal::NeverFits(shortage) => Error::never_fits(&shortage),
            Refusal::NoRoom { waits_for, position } => Error::NoRoom { what: waits_for.words(), position },
            Refusal::DiskFull { free, reserve } => Error::DiskFull { free, reserve },
            Refusal::Withdrawn => Error::Withdrawn { id: id.to_owned(), lease_ended: false },
        }
    }

    pub(crate) fn never_fits(shortage: &Shortage) -> Error {
        let amount = |value: f64| match shortage.what {
            WaitsFor::Cpus => format!("{value} cores"),
            _ => format!("{} MB", (value / f64::from(1 << 20)).ceil()),
        };
        Error::NeverFits {
            what: shortage.what.words(),
            asked: amount(shortage.asked),
            has: amount(shortage.has),
        }
    }
}

/// What to do about too little of something.
fn ask_for_less(what: &str) -> &'static str {
    if what == WaitsFor::Cpus.words() {
        return "ask for a smaller cpu_request";
    }
    if what == WaitsFor::Disk.words() {
        return "ask for less storage_mb, or raise storage_overcommit under [limits]";
    }
    "ask for less, set memory_request_mb below memory_mb, or raise memory_overcommit under [limits]"
}

fn storage(resources: &Resources) -> String {
    let mb = resources.storage_mb.map(|mb| format!("{mb} MB"));
    let inodes = resources.storage_inodes.map(|inodes| format!("{inodes} files"));
    mb.into_iter().chain(inodes).collect::<Vec<_>>().join(", ")
}

fn unknown_start(exec: Option<&str>) -> String {
    exec.map(|exec| format!(", and whether exec {exec:?} was started is not known")).unwrap_or_default()
}

fn because(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Queued => "waiting for room",
        SandboxState::Starting => "starting",
        SandboxState::Running => "running",
        SandboxState::Stopping => "being taken down",
        SandboxState::Lost => "lost",
        SandboxState::Ended => "ended",
    }
}

fn is_caused_by_full_disk(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(is_full) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a sandbox did not start for a mount that its image or request does not allow.
pub(crate) fn is_mount_target(error: &berth_sandbox::Error) -> bool {
    use berth_jail::Error::{BindOwners, MountSource, MountTarget};
    matches!(error, berth_sandbox::Error::Launch(MountTarget { .. } | MountSource { .. } | BindOwners { .. }))
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
