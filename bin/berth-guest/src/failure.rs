//! From an errno to what the host is told.

use berth_wire::{Failure, FailureCode};
use rustix::io::Errno;

/// Result of a request's step.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure of `operation` on `path`.
pub(crate) fn at(operation: &str, path: &[u8], errno: Errno) -> Failure {
    Failure {
        code: code(errno),
        message: format!("{operation}: {}", std::io::Error::from(errno)),
        path: Some(shown(path)),
    }
}

/// A failure that is not a system call's.
pub(crate) fn because(code: FailureCode, message: impl Into<String>, path: Option<&[u8]>) -> Failure {
    Failure { code, message: message.into(), path: path.map(shown) }
}

/// A path for a person.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn code(errno: Errno) -> FailureCode {
    match errno {
        Errno::NOENT => FailureCode::NotFound,
        Errno::NOTDIR => FailureCode::NotADirectory,
        Errno::ISDIR | Errno::NOTEMPTY => FailureCode::IsADirectory,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => FailureCode::Permission,
        Errno::NOSPC | Errno::DQUOT => FailureCode::NoSpace,
        // Of whoever named the path; the machine is well.
        Errno::NAMETOOLONG | Errno::LOOP => FailureCode::Invalid,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => FailureCode::Limit,
        _ => FailureCode::Io,
    }
}

/// Refuses what is not an absolute path that the kernel could take.
pub(crate) fn absolute(path: &str) -> Result<&[u8]> {
    if !path.starts_with('/') || path.contains('\0') {
        let message = "the path must be absolute and without NUL";
        return Err(because(FailureCode::Invalid, message, Some(path.as_bytes())));
    }
    Ok(path.as_bytes())
}
