//! Files in and out of a sandbox.

use std::io;

use berth_sandbox::guest::{self, Notice, Owner, Pack, PackReport, PackSpec, UnpackSpec};
use berth_types::error::{ApiError, Kind};
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, FsRequest, FsResponse};
use berth_wire::message::FailureCode;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::images::Body;
use crate::{Error, Node};

/// Pieces of an archive on their way out, in bytes.
const PIECE: usize = 64 << 10;

/// Most bytes that each list of a report holds, since trailers have to be small.
const LISTED_BYTES: usize = 2 << 10;

/// A tar that comes out of a sandbox.
pub struct Download {
    sandbox: String,
    path: String,
    pack: Pack,
}

impl Download {
    /// The next bytes; none at the end of a complete tar.
    ///
    /// # Errors
    /// The tar broke off, for the reason that the sandbox gives; it is in the log too.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut piece = BytesMut::with_capacity(PIECE);
        match self.pack.read_buf(&mut piece).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(piece.freeze())),
            Err(error) => {
                let error = broken_off(error);
                let (sandbox, path) = (&self.sandbox, &self.path);
                tracing::warn!(sandbox, path, reason = error.message, "an archive broke off");
                Err(error)
            }
        }
    }

    /// What is not in the tar as it was in the sandbox; complete once [`Download::next`] has come to its end.
    pub fn report(&self) -> ArchiveOutReport {
        self.pack.report().map(shown).unwrap_or_default()
    }
}

fn broken_off(error: io::Error) -> ApiError {
    match error.downcast::<guest::Error>() {
        Ok(error) => {
            let error =
                refusal(&error).unwrap_or_else(|| Error::Guest { reason: None, source: Box::new(error) });
            ApiError::from(&error)
        }
        Err(error) => ApiError::new(Kind::Internal, "archive_broken", error.to_string()),
    }
}

fn shown(report: &PackReport) -> ArchiveOutReport {
    let list = |notices: &[Notice]| {
        let mut room = LISTED_BYTES;
        let texts = notices.iter().map(|notice| format!("{}: {}", notice.path, notice.why));
        texts.map_while(|text| room.checked_sub(text.len()).map(|left| (room = left, text).1)).collect()
    };
    ArchiveOutReport {
        skipped_count: report.skipped_count,
        skipped: list(&report.skipped),
        unread_count: report.unread_count,
        unread: list(&report.unread),
        changed_count: report.changed_count,
        changed: list(&report.changed),
    }
}

impl Node {
    /// Unpacks a tar into a directory of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death.
    pub async fn unpack(&self, sandbox: &str, request: ArchiveIn, tar: Body) -> Result<ArchiveReport, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let owner = if request.keep_ids { Owner::Keep } else { Owner::Root };
        let spec = UnpackSpec { path: request.path, owner, mode: None };
        match live.machine.guest().unpack(spec, tar).await {
            Ok(report) => Ok(ArchiveReport {
                refused: report
                    .refused
                    .into_iter()
                    .map(|notice| format!("{}: {}", notice.path, notice.why))
                    .collect(),
                skipped: report.skipped.into_iter().map(|notice| notice.path).collect(),
            }),
            Err(source) => Err(self.guest_error(&sandbox, source).await),
        }
    }

    /// A tar of a path of a sandbox.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death.
    pub async fn pack(&self, sandbox: &str, request: ArchiveOut) -> Result<Download, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let exclude = request.exclude.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let spec = PackSpec {
            path: request.path.clone(),
            exclude,
            follow: true,
            ignore_failed_read: request.ignore_failed_read,
            ..PackSpec::default()
        };
        match live.machine.guest().pack(spec).await {
            Ok(pack) => Ok(Download { sandbox, path: request.path, pack }),
            Err(source) => Err(self.guest_error(&sandbox, source).await),
        }
    }

    /// A small call on a sandbox's files.
    ///
    /// # Errors
    /// What the sandbox's files do not allow, and the sandbox's death.
    pub async fn fs(&self, sandbox: &str, request: FsRequest) -> Result<FsResponse, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        match live.machine.guest().fs(request).await {
            Ok(response) => Ok(response),
            Err(source) => Err(self.guest_error(&sandbox, source).await),
        }
    }
}

/// The error for what the guest refused; `None` when the guest itself failed.
pub(crate) fn refusal(source: &guest::Error) -> Option<Error> {
    let failure = source.refusal()?;
    let (code, kind) = match failure.code {
        FailureCode::NotFound => ("path_not_found", Kind::NotFound),
        FailureCode::NotADirectory => ("not_a_directory", Kind::Conflict),
        FailureCode::IsADirectory => ("is_a_directory", Kind::Conflict),
        FailureCode::Permission => ("permission_denied", Kind::User),
        FailureCode::NoSpace => ("sandbox_disk_full", Kind::Capacity),
        FailureCode::Limit => ("sandbox_limit", Kind::Capacity),
        FailureCode::Io => ("sandbox_io", Kind::Internal),
        FailureCode::BadArchive => ("bad_archive", Kind::User),
        FailureCode::Refused | FailureCode::Invalid => ("bad_request", Kind::User),
        FailureCode::Conflict => ("exec_id_taken", Kind::Conflict),
        FailureCode::Exists => ("path_exists", Kind::Conflict),
        FailureCode::NotConnected => ("not_listening", Kind::Unavailable),
        FailureCode::Cancelled => ("cancelled", Kind::Unavailable),
    };
    let message = match &failure.path {
        Some(path) => format!("{path}: {}", failure.message),
        None => failure.message.clone(),
    };
    Some(Error::InSandbox { code, kind, message })
}
