//! What the host and the guest of one sandbox say to each other, as bytes: no I/O, no clock, no threads.
//!
//! Everything travels over one byte stream (a unix socket now, virtio-serial or vsock later) and is cut into frames.
//! A frame belongs to a channel; the host opens a channel with a [`Request`] and the guest closes it with the one
//! [`Reply`] for which [`Reply::is_last`] holds. Data of a channel is paid for with credit ([`SendWindow`],
//! [`ReceiveWindow`]), so a slow reader of one exec holds up that exec alone.
//!
//! ```text
//!  host                                             guest
//!    │ ◄──────────────── Hello (channel 0) ─────────── │   once, first
//!    │ ── Open 7: Exec ──────────────────────────────► │
//!    │ ◄──────────────── Event 7: Started ──────────── │
//!    │ ◄──────────────── Data 7, Stderr 7 … ────────── │   at most WINDOW bytes ahead
//!    │ ── Credit 7 ──────────────────────────────────► │
//!    │ ◄──────────────── Event 7: Exited ───────────── │   channel 7 is over
//! ```
//!
//! It refuses: frames larger than their kind allows, kinds it does not know, bodies that are not the JSON they should
//! be, more data than was granted. All of these end the connection, since the other side is then not speaking this
//! protocol. There is no negotiation: host and guest are built together, and [`GENERATION`] says whether they were.
//!
//! Where to start reading: [`Frame`], then [`Request`] and [`Reply`]. The format is written down in
//! `docs/formats/wire.md`.

mod frame;
pub mod message;
mod window;

pub use frame::{
    Body, BodyRef, Chunk, DecodeError, Decoder, EncodeError, Frame, FrameRef, encode_change, encode_chunk,
    encode_data, encode_event, encode_open, finish_data, missing,
};
pub use message::{
    Attach, Builtin, Change, ChangeKind, Command, Connect, DirEntry, Exec, ExecInfo, ExecUsage, ExitReason,
    Exited, Failure, FailureCode, FileKind, FileStat, Fs, Glob, Hello, Keep, Limit, Manner, Notice, Offsets,
    OnDetach, Outcome, Output, Owner, Pack, PackReport, ReadFile, Reply, Request, Stdin, TerminalSize,
    TreeKill, Unpack, UnpackReport, Watch, WhenFull, WriteFile,
};
pub use window::{ReceiveWindow, SendWindow, WindowError};

/// Number of this protocol. Any change that an older peer would misread raises it; the host refuses a guest whose
/// [`Hello`] has another one.
pub const GENERATION: u32 = 3;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 12;

/// Longest payload of a data frame. Every frame costs each side a turn, so those of a bulk transfer are long.
pub const MAX_DATA: usize = 256 * 1024;

/// Longest payload of an output frame: readers hold many of these at once, and stay small.
pub const MAX_OUTPUT: usize = 64 * 1024;

/// Longest JSON body. An exec's whole environment has to fit, escapes included.
pub const MAX_CONTROL: usize = 16 * 1024 * 1024;

/// Bytes of data that each direction of a channel may have under way before the receiver grants more.
pub const WINDOW: u32 = 256 * 1024;

/// The same for requests that move files ([`Request::window`]): there are few of these at a time, and a window that is
/// emptied while the other side is not running costs more than its memory.
pub const BULK_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes of output that are kept of an exec when the request does not say.
pub const DEFAULT_KEEP: u64 = 64 * 1024 * 1024;

/// Bytes before the payload of an output frame: which stream, offset, time.
pub const OUTPUT_HEADER_LEN: usize = 17;

/// How long processes get between SIGTERM and SIGKILL when an exec does not say.
pub const DEFAULT_GRACE_MS: u64 = 500;

/// Most entries that a report lists by name; the counts beside the lists are always exact.
pub const MAX_LISTED: usize = 1000;
