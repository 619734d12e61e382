//! `berth sandbox cp SOURCE TARGET`: plan (pure), then copy.

use std::fs;
use std::path::{Path, PathBuf};

use berth_client::{Client, archive};
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, FileKind, FsRequest};
use clap::Args;

use crate::Session;
use crate::failure::Failure;

/// Arguments of `berth sandbox cp`.
#[derive(Debug, Args)]
#[command(after_help = "One side is SANDBOX:/path, the other a path of this machine.

  file -> file       written or replaced
  file -> directory  goes into it (a target with a / at its end is a directory)
  directory          its contents merge into the target, which is made where it is missing

Modes and symlinks are kept; the owner is root in a sandbox and you on this machine. Entries that would leave the \
target, as absolute names, names with .. and symlinks that point out of it, are refused, each by itself, and fail \
the command after all else is copied; so does what cannot be read below a directory of a sandbox. FIFOs, sockets and \
devices are left out, and so are /proc, /sys and /dev below a directory of a sandbox; each is said.")]
pub struct Cp {
    /// SANDBOX:/path or a path
    source: String,
    /// SANDBOX:/path or a path
    target: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Local(&'a Path),
    Sandbox { name: &'a str, path: &'a str },
}

impl<'a> Side<'a> {
    /// What is before the first colon is a sandbox, unless it holds a slash: `./a:b` is a local name.
    fn parse(text: &'a str) -> Result<Self, Failure> {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                if !path.starts_with('/') {
                    return Err(Failure::CopyRelative { path: path.to_owned() });
                }
                Ok(Side::Sandbox { name, path })
            }
            _ => Ok(Side::Local(Path::new(text))),
        }
    }
}

impl Cp {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let report = match (Side::parse(&self.source)?, Side::parse(&self.target)?) {
            (Side::Local(source), Side::Sandbox { name, path }) => {
                copy_in(&session.client().await?, source, name, path).await?
            }
            (Side::Sandbox { name, path }, Side::Local(target)) => {
                copy_out(session, name, path, target).await?
            }
            _ => return Err(Failure::CopySides { source_arg: self.source, target: self.target }),
        };
        for name in &report.skipped {
            session.output.warning(&format!("left out, as it is no file, directory or symlink: {name}"));
        }
        if session.output.is_json() {
            session.output.result(&report, |_| String::new())?;
        }
        if report.refused.is_empty() { Ok(()) } else { Err(Failure::CopyRefused { refused: report.refused }) }
    }
}

/// Where a copy into a sandbox goes.
#[derive(Debug, PartialEq, Eq)]
struct PlanIn {
    /// Directory in the sandbox to unpack into.
    dir: String,
    /// Name of the one file; absent for a directory's contents.
    file_name: Option<String>,
}

/// Decides on where `source` goes, given what stands at the target.
fn plan_in(
    source: &Path,
    source_is_dir: bool,
    target: &str,
    there: Option<FileKind>,
) -> Result<PlanIn, Failure> {
    if there == Some(FileKind::Other) {
        return Err(Failure::CopySpecial { path: target.to_owned() });
    }
    if source_is_dir {
        return match there {
            Some(FileKind::File) => Err(Failure::CopyDirOntoFile { path: target.to_owned() }),
            _ => Ok(PlanIn { dir: target.to_owned(), file_name: None }),
        };
    }
    if there == Some(FileKind::Dir) || (there.is_none() && target.ends_with('/')) {
        return Ok(PlanIn { dir: target.to_owned(), file_name: Some(utf8_name(source)?) });
    }
    match target.trim_end_matches('/').rsplit_once('/') {
        Some((dir, name)) if !name.is_empty() => {
            let dir = if dir.is_empty() { "/" } else { dir };
            Ok(PlanIn { dir: dir.to_owned(), file_name: Some(name.to_owned()) })
        }
        _ => Err(Failure::CopySpecial { path: target.to_owned() }),
    }
}

fn utf8_name(path: &Path) -> Result<String, Failure> {
    // A name like `..` has no last component: what it leads to has.
    let full = path.canonicalize().map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    let name = path.file_name().or_else(|| full.file_name());
    let name = name.and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| Failure::NotUtf8 { path: path.to_owned() })
}

async fn copy_in(
    client: &Client,
    source: &Path,
    sandbox: &str,
    target: &str,
) -> Result<ArchiveReport, Failure> {
    let metadata =
        fs::metadata(source).map_err(|error| Failure::Read { path: source.to_owned(), source: error })?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Failure::CopySpecial { path: source.display().to_string() });
    }
    let there = stat(client, sandbox, target).await?;
    let plan = plan_in(source, metadata.is_dir(), target, there)?;
    let into = ArchiveIn { path: plan.dir, keep_ids: false };
    let tar = match &plan.file_name {
        Some(name) => archive::pack_file(source, name),
        None => archive::pack_dir(source),
    };
    Ok(client.put_packed(sandbox, &into, tar).await?)
}

async fn copy_out(
    session: &Session,
    sandbox: &str,
    source: &str,
    target: &Path,
) -> Result<ArchiveReport, Failure> {
    let client = &session.client().await?;
    let is_dir = match stat(client, sandbox, source).await? {
        Some(FileKind::Dir) => true,
        Some(FileKind::File) => false,
        Some(FileKind::Other) => return Err(Failure::CopySpecial { path: format!("{sandbox}:{source}") }),
        None => return Err(Failure::CopyMissing { sandbox: sandbox.to_owned(), path: source.to_owned() }),
    };
    let target_metadata = fs::metadata(target).ok();
    if is_dir && target_metadata.is_some_and(|metadata| !metadata.is_dir()) {
        return Err(Failure::CopyDirOntoFile { path: target.display().to_string() });
    }
    let from = ArchiveOut { ignore_failed_read: is_dir, ..ArchiveOut::new(source) };
    let tar = client.get_archive(sandbox, &from).await?;
    let report = tar.report();
    let unpacked = match is_dir {
        true => archive::unpack_into(tar, target).await,
        false => archive::unpack_file(tar, &file_target(source, target)).await.map(|()| Vec::new()),
    };
    let report = report.take().unwrap_or_default();
    tell(session, &report);
    let mut refused = unpacked.map_err(|source| Failure::Unpack { path: target.to_owned(), source })?;
    refused.extend(all_of(&report.unread, report.unread_count));
    Ok(ArchiveReport { refused, skipped: Vec::new() })
}

/// Says what is not in the copy as it was in the sandbox.
fn tell(session: &Session, report: &ArchiveOutReport) {
    for text in all_of(&report.skipped, report.skipped_count) {
        session.output.warning(&format!("left out: {text}"));
    }
    for text in all_of(&report.changed, report.changed_count) {
        session.output.warning(&format!("changed meanwhile: {text}"));
    }
}

/// What is listed, and how many are not.
fn all_of(listed: &[String], count: u64) -> impl Iterator<Item = String> {
    let more = count.saturating_sub(listed.len() as u64);
    listed.iter().cloned().chain((more > 0).then(|| format!("{more} more")))
}

/// Where a file of a sandbox goes: into `target` where that is a directory.
fn file_target(source: &str, target: &Path) -> PathBuf {
    if target.is_dir() || target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        target.join(Path::new(source).file_name().unwrap_or_default())
    } else {
        target.to_owned()
    }
}

async fn stat(client: &Client, sandbox: &str, path: &str) -> Result<Option<FileKind>, Failure> {
    let request = FsRequest::Stat { path: path.to_owned(), user: None };
    Ok(client.fs(sandbox, &request).await?.stat.map(|stat| stat.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_before_the_first_colon() {
        assert_eq!(Side::parse("box:/a:b").unwrap(), Side::Sandbox { name: "box", path: "/a:b" });
        assert_eq!(Side::parse("./a:b").unwrap(), Side::Local(Path::new("./a:b")));
        assert_eq!(Side::parse("/a").unwrap(), Side::Local(Path::new("/a")));
        assert_eq!(Side::parse("a").unwrap(), Side::Local(Path::new("a")));
        assert!(matches!(Side::parse("box:a"), Err(Failure::CopyRelative { .. })));
        assert!(matches!(Side::parse("box:"), Err(Failure::CopyRelative { .. })));
    }

    #[test]
    fn files_go_where_docker_would_put_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.txt");
        fs::write(&file, "").unwrap();
        let plan = |target: &str, there| {
            let plan = plan_in(&file, false, target, there).unwrap();
            format!("{} {}", plan.dir, plan.file_name.unwrap())
        };
        assert_eq!(plan("/app", Some(FileKind::Dir)), "/app f.txt");
        assert_eq!(plan("/app/", None), "/app/ f.txt");
        assert_eq!(plan("/app/g", None), "/app g");
        assert_eq!(plan("/app/g", Some(FileKind::File)), "/app g");
        assert_eq!(plan("/g", None), "/ g");
        assert_eq!(plan("/", Some(FileKind::Dir)), "/ f.txt");
        assert!(plan_in(&file, false, "/dev/null", Some(FileKind::Other)).is_err());
    }

    #[test]
    fn directories_merge_and_never_replace_a_file() {
        let plan = plan_in(Path::new("d"), true, "/app", Some(FileKind::Dir)).unwrap();
        assert_eq!(plan, PlanIn { dir: "/app".into(), file_name: None });
        assert!(matches!(
            plan_in(Path::new("d"), true, "/app", Some(FileKind::File)),
            Err(Failure::CopyDirOntoFile { .. })
        ));
    }

    #[test]
    fn a_file_from_a_sandbox_goes_into_a_directory_or_takes_the_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(file_target("/a/b", dir.path()), dir.path().join("b"));
        assert_eq!(file_target("/a/b", Path::new("x/")), Path::new("x/b"));
        assert_eq!(file_target("/a/b", Path::new("x")), Path::new("x"));
    }
}
