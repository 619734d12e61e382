//! Files in and out of a sandbox.

use berth_sandbox::guest::{self, Owner, Pack, PackSpec, UnpackSpec};
use berth_types::error::Kind;
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveReport, FsRequest, FsResponse};
use berth_wire::message::FailureCode;

use crate::images::Body;
use crate::{Error, Node};

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
    pub async fn pack(&self, sandbox: &str, request: ArchiveOut) -> Result<Pack, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let exclude = request.exclude.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let spec = PackSpec {
            path: request.path,
            exclude,
            follow: true,
            ignore_failed_read: true,
            ..PackSpec::default()
        };
        match live.machine.guest().pack(spec).await {
            Ok(pack) => Ok(pack),
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
        FailureCode::Cancelled => ("cancelled", Kind::Unavailable),
    };
    let message = match &failure.path {
        Some(path) => format!("{path}: {}", failure.message),
        None => failure.message.clone(),
    };
    Some(Error::InSandbox { code, kind, message })
}
