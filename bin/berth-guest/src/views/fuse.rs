//! The kernel's file system protocol, as much of it as one file per connection takes. No I/O.
//!
//! Each connection is a mount whose root is a regular file, so nothing is ever looked up: it is examined, opened, read
//! and released. What else may be asked is answered with `ENOSYS`, which has the kernel do without.
//!
//! Layouts: `linux/fuse.h`; fuse(4). Numbers are in the machine's own order.

/// Protocol that is spoken; the minor number only ever goes down from here.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// Room that a read of a request needs at least: `FUSE_MIN_READ_BUFFER`.
pub(crate) const REQUEST_MAX: usize = 8192;
/// Most that is read at once; a longer read is answered with less, as files in /proc do.
pub(crate) const READ_MAX: usize = 64 * 1024;
/// `struct fuse_in_header` and `struct fuse_out_header`.
const HEADER_IN: usize = 40;
const HEADER_OUT: usize = 16;
/// Least that may be written at once, though nothing is ever written.
const WRITE_MAX: u32 = 4096;
/// `FOPEN_DIRECT_IO`: every read comes here, none from a cache.
const DIRECT_IO: u32 = 1;
/// For ever, as far as the kernel is concerned: what the file is does not change, only what it says.
const VALID_SECONDS: u64 = 1 << 31;
/// `S_IFREG | 0444`.
const MODE: u32 = 0o100_444;

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// `linux/errno.h`; the same on all architectures here.
pub(crate) const EACCES: i32 = 13;
const ENOSYS: i32 = 38;
const EPROTO: i32 = 71;

/// What the kernel wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Names it in the reply.
    pub(crate) unique: u64,
    pub(crate) operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Init {
        major: u32,
        minor: u32,
    },
    GetAttributes,
    Open {
        write: bool,
    },
    Read {
        handle: u64,
        offset: u64,
        len: usize,
    },
    Release {
        handle: u64,
    },
    FileSystem,
    /// Nothing that waits for a reply.
    Note,
    /// What this file cannot do.
    Other,
    /// Too short for what it says it is.
    Malformed,
}

/// A reply's body, or an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Error(i32),
    Body(Vec<u8>),
}

impl Request {
    /// `None` for what is not even a header, and has nobody to reply to.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_IN {
            return None;
        }
        let opcode = u32_at(bytes, 4)?;
        let unique = u64_at(bytes, 8)?;
        let operation = operation(opcode, &bytes[HEADER_IN..]).unwrap_or(Operation::Malformed);
        Some(Self { unique, operation })
    }
}

/// `None` when the body is too short.
fn operation(opcode: u32, body: &[u8]) -> Option<Operation> {
    Some(match opcode {
        INIT => Operation::Init { major: u32_at(body, 0)?, minor: u32_at(body, 4)? },
        GETATTR => Operation::GetAttributes,
        // `O_ACCMODE`.
        OPEN => Operation::Open { write: u32_at(body, 0)? & 3 != 0 },
        READ => {
            let len = usize::try_from(u32_at(body, 16)?).unwrap_or(READ_MAX).min(READ_MAX);
            Operation::Read { handle: u64_at(body, 0)?, offset: u64_at(body, 8)?, len }
        }
        RELEASE => Operation::Release { handle: u64_at(body, 0)? },
        STATFS => Operation::FileSystem,
        FORGET | INTERRUPT | DESTROY | BATCH_FORGET => Operation::Note,
        _ => Operation::Other,
    })
}

impl Reply {
    /// For what is not known here.
    pub(crate) fn refused(operation: Operation) -> Self {
        Self::Error(if operation == Operation::Malformed { EPROTO } else { ENOSYS })
    }

    /// To `Init`: no feature is asked for. A kernel of a later major number asks again after this.
    pub(crate) fn init(minor: u32) -> Self {
        let mut body = Body::default();
        body.u32(MAJOR).u32(minor.min(MINOR));
        // Read-ahead, flags; background and congestion as the kernel likes.
        body.u32(0).u32(0).u32(0).u32(WRITE_MAX);
        // Granularity of time in nanoseconds, then what later minors added, unused.
        body.u32(1).zeros(36);
        Self::Body(body.0)
    }

    /// To `GetAttributes`; the owner as the mount's own user namespace numbers it.
    ///
    /// With a size of 0, as files in /proc have it, sendfile(2) and splice(2) would find nothing: they read through the
    /// kernel's cache (from Linux 6.5), and that ends at the size.
    pub(crate) fn attributes(uid: u32, gid: u32, size: usize) -> Self {
        let mut body = Body::default();
        body.u64(VALID_SECONDS).u32(0).u32(0);
        // Inode and size, then blocks and three times: none, as in /proc.
        body.u64(1).u64(size as u64).zeros(4 * 8 + 3 * 4);
        body.u32(MODE).u32(1).u32(uid).u32(gid).u32(0).u32(4096).u32(0);
        Self::Body(body.0)
    }

    /// To `Open`.
    pub(crate) fn opened(handle: u64) -> Self {
        let mut body = Body::default();
        body.u64(handle).u32(DIRECT_IO).u32(0);
        Self::Body(body.0)
    }

    /// To `Read`: what of `text` is at `offset`.
    pub(crate) fn part(text: &[u8], offset: u64, len: usize) -> Self {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(len).min(text.len());
        Self::Body(text[start..end].to_vec())
    }

    /// To `FileSystem`: one without blocks, as /proc is.
    pub(crate) fn file_system() -> Self {
        let mut body = Body::default();
        // Five counts; block size, longest name, fragment size, padding and spare.
        body.zeros(5 * 8).u32(4096).u32(255).u32(4096).zeros(4 + 6 * 4);
        Self::Body(body.0)
    }

    /// To `Release`.
    pub(crate) fn done() -> Self {
        Self::Body(Vec::new())
    }

    /// As the kernel reads it.
    pub(crate) fn encode(&self, unique: u64) -> Vec<u8> {
        let (error, body): (i32, &[u8]) = match self {
            Self::Error(errno) => (-errno, &[]),
            Self::Body(body) => (0, body),
        };
        let mut bytes = Vec::with_capacity(HEADER_OUT + body.len());
        // Bodies are bounded by what is read at once.
        let len = u32::try_from(HEADER_OUT + body.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&len.to_ne_bytes());
        bytes.extend_from_slice(&error.to_ne_bytes());
        bytes.extend_from_slice(&unique.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }
}

#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, len: usize) -> &mut Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Body::default();
        bytes.u32(0).u32(opcode).u64(7).zeros(24);
        bytes.0.extend_from_slice(body);
        bytes.0
    }

    #[test]
    fn bodies_have_the_lengths_that_the_kernel_wants() {
        let len = |reply: Reply| reply.encode(1).len() - HEADER_OUT;
        assert_eq!(len(Reply::init(45)), 64);
        assert_eq!(len(Reply::attributes(0, 0, 7)), 104);
        assert_eq!(len(Reply::opened(1)), 16);
        assert_eq!(len(Reply::file_system()), 80);
    }

    #[test]
    fn requests_are_understood() {
        let of = |opcode, body: &[u8]| Request::parse(&request(opcode, body)).unwrap().operation;
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        assert_eq!(of(INIT, &words(&[7, 40, 0, 0])), Operation::Init { major: 7, minor: 40 });
        assert_eq!(of(OPEN, &words(&[0o2, 0])), Operation::Open { write: true });
        assert_eq!(
            of(READ, &words(&[3, 0, 100, 0, 4096, 0, 0, 0, 0, 0])),
            Operation::Read { handle: 3, offset: 100, len: 4096 }
        );
        assert_eq!(of(READ, &words(&[3, 0])), Operation::Malformed);
        assert_eq!(of(1, &[]), Operation::Other);
        assert_eq!(Request::parse(&[0; 39]), None);
    }

    #[test]
    fn parts_end_where_the_text_ends() {
        assert_eq!(Reply::part(b"abcdef", 4, 10), Reply::Body(b"ef".to_vec()));
        assert_eq!(Reply::part(b"abcdef", u64::MAX, 10), Reply::Body(Vec::new()));
        assert_eq!(Reply::part(b"abcdef", 1, 2), Reply::Body(b"bc".to_vec()));
    }

    proptest! {
        #[test]
        fn garbage_is_no_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let parsed = Request::parse(&bytes);
            prop_assert_eq!(parsed.is_some(), bytes.len() >= HEADER_IN);
        }

        #[test]
        fn a_reply_says_its_length(unique in any::<u64>(), body in proptest::collection::vec(any::<u8>(), 0..99)) {
            let bytes = Reply::Body(body.clone()).encode(unique);
            prop_assert_eq!(u32_at(&bytes, 0).unwrap() as usize, bytes.len());
            prop_assert_eq!(u64_at(&bytes, 8).unwrap(), unique);
            prop_assert_eq!(&bytes[HEADER_OUT..], &body[..]);
        }
    }
}
