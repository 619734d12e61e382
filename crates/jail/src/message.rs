//! What daemon, launcher and child say to each other.
//!
//! The request is one small datagram with descriptors; the plan itself is in a memory file among them, so that no
//! number of layers or binds meets the limit of a datagram. The child's report is lines of JSON in a pipe.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ids::IdRange;
use crate::perform::Failure;

/// Longest datagram.
const DATAGRAM_MAX: usize = 4096;
/// Most descriptors in one.
const DESCRIPTORS_MAX: usize = 8;

/// Asks the launcher for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A process. Descriptors, in order: plan, report, guest image, control, standard error; then the namespaces that
    /// are given, network first, and the listening socket.
    Launch {
        /// Whether a network namespace comes with it.
        network: bool,
        /// Whether a user namespace comes with it.
        user: bool,
        /// Whether a socket to listen on comes with it.
        listen: bool,
    },
    /// A pair of namespaces.
    MakeNamespaces(IdRange),
}

/// The launcher's answer; with `Started` comes the pidfd, with `Made` the user and the network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// There is a process.
    Started {
        /// Its pid in the daemon's namespace.
        pid: i32,
    },
    /// There are two namespaces.
    Made,
    /// There is nothing.
    Failed(Failure),
}

/// What the child says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The plan is performed; the guest is about to be executed.
    Ready {
        /// Mount points that had to be made.
        stubs: Vec<PathBuf>,
    },
    /// A step failed.
    Failed(Failure),
}

/// Sends one datagram.
pub(crate) fn send<T: Serialize>(socket: &OwnedFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one datagram; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = [0; DATAGRAM_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            answer => break answer?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((serde_json::from_slice(&text[..received.bytes])?, fds)))
}

/// Puts a value into a memory file.
pub(crate) fn to_memory_file<T: Serialize>(value: &T) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("berth-plan", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file.into())
}

/// Takes it out again.
pub(crate) fn from_memory_file<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let mut file = File::from(file);
    io::Seek::rewind(&mut file)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Writes one line of a report.
pub(crate) fn write_report(pipe: &OwnedFd, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(pipe, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// Reads the lines of a report, up to end-of-file.
pub(crate) fn read_reports(pipe: OwnedFd) -> io::Result<Vec<Report>> {
    let mut text = Vec::new();
    File::from(pipe).read_to_end(&mut text)?;
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| Ok(serde_json::from_slice(line)?))
        .collect()
}
