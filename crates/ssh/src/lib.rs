//! The SSH door: every sandbox is a host that OpenSSH's own clients can enter, without an sshd or any package in its
//! image, and without a network of its own.
//!
//! ```text
//!   ssh NAME@machine -p PORT                                        exec, shell ─► Door::exec ─► guest
//!        │                                  ┌── session (a task) ─┤
//!        └──► Listener ──► Visitor ─────────┤                      sftp        ─► the guest's own server
//!              accepts     one connection,  │
//!                          its channels     └── forward (a task) ── -L, -D, -W ─► Door::connect ─► a socket inside
//! ```
//!
//! The user name says which sandbox, by id or name; `NAME+USER` says as whom inside. Public keys alone open the door,
//! those of `authorized_keys` ([`Keys`]). Whoever comes in may do in every sandbox what the owner of the machine may.
//!
//! What it refuses: passwords, forwarding from inside to the client (`-R`), agents, X11, subsystems but `sftp`, keys with
//! options. What it cannot do it says on stderr of the session and closes without an exit status, which `ssh` shows as
//! 255: no exit code is made up. A command that a signal ended has 128 + its number, as everywhere in Berth.
//!
//! When a client goes away its commands get SIGHUP, with all that they started (with a terminal: those in its
//! foreground), and the end of their input. What ignores that (`nohup`) lives on, and so does what a finished command
//! left behind.
//!
//! Where to start reading: [`Listener::run`], then `visitor.rs`.

mod door;
mod inlet;
pub mod keys;
mod server;
mod session;
mod visitor;

pub use door::{Door, Input, Refused, Running};
pub use keys::Keys;
pub use server::{DIR, Error, Listener, Options};
