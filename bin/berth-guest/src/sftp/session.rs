//! A session: which request is which, and what is answered.

use rustix::io::Errno;

use super::Error;
use super::attributes::Attributes;
use super::files::Handles;
use super::packet::{EXTENSIONS, Fields, MAX_BLOCK, MAX_PACKET, Reply, Short, VERSION, kind};
use super::paths;
use crate::users::Names;

/// Codes of statuses.
mod code {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const UNSUPPORTED: u32 = 8;
}

/// Why a request is not carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is nothing more to read.
    Eof,
    /// A system call failed.
    System(Errno),
    /// The packet is not what its type says.
    Malformed,
    /// No such type of request, or no such extension.
    Unsupported,
    /// No such handle, or not one of what the request is for.
    BadHandle,
    /// As many files are open as may be.
    TooManyHandles,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl From<Short> for Refusal {
    fn from(_: Short) -> Self {
        Self::Malformed
    }
}

impl Refusal {
    fn code(&self) -> u32 {
        match self {
            Self::Eof => code::EOF,
            Self::System(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => code::NO_SUCH_FILE,
            Self::System(Errno::ACCESS | Errno::PERM | Errno::ROFS) => code::PERMISSION_DENIED,
            Self::System(_) | Self::BadHandle | Self::TooManyHandles => code::FAILURE,
            Self::Malformed => code::BAD_MESSAGE,
            Self::Unsupported => code::UNSUPPORTED,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Eof => "end of file".into(),
            Self::System(errno) => std::io::Error::from(*errno).to_string(),
            Self::Malformed => "malformed request".into(),
            Self::Unsupported => "not supported".into(),
            Self::BadHandle => "no such handle".into(),
            Self::TooManyHandles => "too many open files".into(),
        }
    }
}

/// What a request led to.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Handle(u64),
    Data(Vec<u8>),
    Names(Vec<Name>),
    Attributes(Attributes),
    Numbers(Vec<u64>),
}

/// A name, as one of a directory or as the answer itself.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    pub(super) long: Vec<u8>,
    pub(super) attributes: Attributes,
}

pub(super) type Outcome = Result<Answer, Refusal>;

/// The server's side of one client.
#[derive(Default)]
pub(super) struct Session {
    greeted: bool,
    handles: Handles,
    /// Read when a directory is listed for the first time.
    names: Option<Names>,
}

impl Session {
    /// Carries out the request in `packet` and appends the answer to `out`.
    pub(super) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut fields = Fields(packet);
        let kind = fields.byte().map_err(|_| Error::Length(0))?;
        let number = fields.number().map_err(|_| Error::Unanswerable(kind))?;
        if self.greeted == (kind == kind::INIT) {
            return Err(Error::Unanswerable(kind));
        }
        if kind == kind::INIT {
            // `number` is the client's version; one that knows no 3 does not go on.
            self.greeted = true;
            greet(out);
            return Ok(());
        }
        match self.carry_out(kind, &mut fields) {
            Ok(answer) => write(number, answer, out),
            Err(refusal) => write_status(number, refusal.code(), &refusal.text(), out),
        }
        Ok(())
    }

    fn carry_out(&mut self, kind: u8, fields: &mut Fields<'_>) -> Outcome {
        match kind {
            kind::OPEN => {
                let (path, flags) = (fields.string()?, fields.number()?);
                self.handles.open(path, flags, &fields.attributes()?)
            }
            kind::CLOSE => self.handles.close(fields.string()?),
            kind::READ => self.handles.read(fields.string()?, fields.long()?, fields.number()?),
            kind::WRITE => self.handles.write(fields.string()?, fields.long()?, fields.string()?),
            kind::FSTAT => self.handles.stat(fields.string()?),
            kind::FSETSTAT => self.handles.set(fields.string()?, &fields.attributes()?),
            kind::OPENDIR => self.handles.open_directory(fields.string()?),
            kind::READDIR => {
                let names = self.names.get_or_insert_with(Names::read);
                self.handles.list(fields.string()?, names)
            }
            kind::EXTENDED => {
                let name = fields.string()?;
                self.extended(name, fields)
            }
            _ => by_path(kind, fields),
        }
    }

    fn extended(&mut self, name: &[u8], fields: &mut Fields<'_>) -> Outcome {
        match name {
            b"posix-rename@openssh.com" => paths::replace(fields.string()?, fields.string()?),
            b"hardlink@openssh.com" => paths::hard_link(fields.string()?, fields.string()?),
            b"statvfs@openssh.com" => paths::file_system(fields.string()?),
            b"fstatvfs@openssh.com" => self.handles.file_system(fields.string()?),
            b"fsync@openssh.com" => self.handles.sync(fields.string()?),
            b"lsetstat@openssh.com" => paths::set(fields.string()?, &fields.attributes()?, false),
            b"expand-path@openssh.com" => paths::expand(fields.string()?),
            b"limits@openssh.com" => {
                let limits = [MAX_PACKET, MAX_BLOCK, MAX_BLOCK, super::files::MAX_HANDLES];
                Ok(Answer::Numbers(limits.into_iter().map(|limit| limit as u64).collect()))
            }
            _ => Err(Refusal::Unsupported),
        }
    }
}

fn by_path(kind: u8, fields: &mut Fields<'_>) -> Outcome {
    match kind {
        kind::STAT => paths::stat(fields.string()?, true),
        kind::LSTAT => paths::stat(fields.string()?, false),
        kind::SETSTAT => paths::set(fields.string()?, &fields.attributes()?, true),
        kind::REMOVE => paths::remove(fields.string()?),
        kind::MKDIR => paths::make_directory(fields.string()?, &fields.attributes()?),
        kind::RMDIR => paths::remove_directory(fields.string()?),
        kind::REALPATH => paths::real(fields.string()?),
        kind::RENAME => paths::rename(fields.string()?, fields.string()?),
        kind::READLINK => paths::read_link(fields.string()?),
        // The other way round than in the draft, as OpenSSH and so everybody has it.
        kind::SYMLINK => paths::link_to(fields.string()?, fields.string()?),
        _ => Err(Refusal::Unsupported),
    }
}

fn greet(out: &mut Vec<u8>) {
    let mut reply = Reply::begin(out, kind::VERSION);
    reply.number(VERSION);
    for (name, version) in EXTENSIONS {
        reply.string(name.as_bytes()).string(version.as_bytes());
    }
    reply.finish();
}

fn write(number: u32, answer: Answer, out: &mut Vec<u8>) {
    let reply = match answer {
        Answer::Done => return write_status(number, code::OK, "done", out),
        Answer::Handle(handle) => {
            let mut reply = numbered(number, out, kind::HANDLE);
            reply.string(&handle.to_be_bytes());
            reply
        }
        Answer::Data(data) => {
            let mut reply = numbered(number, out, kind::DATA);
            reply.string(&data);
            reply
        }
        Answer::Names(names) => {
            let mut reply = numbered(number, out, kind::NAME);
            reply.number(u32::try_from(names.len()).unwrap_or(u32::MAX));
            for Name { name, long, attributes } in &names {
                reply.string(name).string(long).attributes(attributes);
            }
            reply
        }
        Answer::Attributes(attributes) => {
            let mut reply = numbered(number, out, kind::ATTRS);
            reply.attributes(&attributes);
            reply
        }
        Answer::Numbers(numbers) => {
            let mut reply = numbered(number, out, kind::EXTENDED_REPLY);
            for number in numbers {
                reply.long(number);
            }
            reply
        }
    };
    reply.finish();
}

fn numbered(number: u32, out: &mut Vec<u8>, kind: u8) -> Reply<'_> {
    let mut reply = Reply::begin(out, kind);
    reply.number(number);
    reply
}

fn write_status(number: u32, code: u32, text: &str, out: &mut Vec<u8>) {
    let mut reply = numbered(number, out, kind::STATUS);
    reply.number(code).string(text.as_bytes()).string(b"en");
    reply.finish();
}
