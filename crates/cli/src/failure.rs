//! How a command fails, and what the user sees of it: `error: …`, its causes, `hint: …`.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use berth_client::archive;
use berth_types::error::Kind;
use berth_types::image::{BuildFailure, DockerfileFault};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A call to the daemon.
    #[error(transparent)]
    Client(#[from] berth_client::Error),
    /// A file of this machine could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Files that came from a sandbox could not be written.
    #[error("cannot copy to {}", path.display())]
    Unpack {
        path: PathBuf,
        #[source]
        source: archive::Error,
    },
    /// A command that needs a terminal, without one.
    #[error("stdin and stdout must both be a terminal")]
    NoTerminal,
    /// This program was told to end while a command ran for it.
    #[error("ended by {signal}; the command was killed with everything that it started")]
    Interrupted { signal: &'static str },
    /// After a cut the command lacks input that is not here any more, or has some that is not from here.
    #[error("the connection was cut, and the command's input cannot go on at byte {at}")]
    InputLost { at: u64 },
    /// A secret's variable that is not set.
    #[error("no variable {name} is set, which a secret is to be taken from")]
    NoVariable { name: String },
    /// The store of images is not what it should be.
    #[error("{problems} problems found in the store of images")]
    BadStore { problems: usize },
    /// A port of this machine that cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    /// `ssh` itself cannot be started.
    #[error("cannot start ssh")]
    NoSsh(#[source] io::Error),
    /// The key that the daemon made for its machine's owner was removed.
    #[error("the daemon's own key for this machine was removed from those that may come in")]
    NoSshKey,
    /// The private key to show cannot be read.
    #[error("cannot read the private key {}", path.display())]
    SshKey {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A private key where a public one was asked for.
    #[error("{} holds a private key, which nobody else should have", path.display())]
    PrivateKey { path: PathBuf },
    /// The daemon's SSH door does not answer.
    #[error("cannot reach the SSH door at {address}")]
    SshDoor {
        address: String,
        #[source]
        source: io::Error,
    },
    /// Nowhere to keep the door's key.
    #[error("no directory for the SSH door's key: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    /// A file of this machine could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Stdin could not be read.
    #[error("cannot read stdin")]
    Stdin(#[source] io::Error),
    /// Stdout or stderr could not be written.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// A value of ours that is no JSON.
    #[error("cannot print the result as JSON")]
    Json(#[source] serde_json::Error),
    /// `cp` between two places of one kind.
    #[error("one of {source_arg:?} and {target:?} must name a sandbox as NAME:/path, and only one")]
    CopySides { source_arg: String, target: String },
    /// `cp` to or from a relative path of a sandbox.
    #[error("{path:?} is not absolute: a sandbox's paths are")]
    CopyRelative { path: String },
    /// `cp` from something that is not there.
    #[error("no file or directory {path} in sandbox {sandbox}")]
    CopyMissing { sandbox: String, path: String },
    /// `cp` of or onto a device, FIFO or socket.
    #[error("{path} is neither a regular file nor a directory")]
    CopySpecial { path: String },
    /// `cp` of a directory onto a file.
    #[error("cannot copy a directory onto {path}, which is a file")]
    CopyDirOntoFile { path: String },
    /// `cp` left entries out.
    #[error("not everything was copied:\n  {}", refused.join("\n  "))]
    CopyRefused { refused: Vec<String> },
    /// A build context that is no directory.
    #[error("the build context {} is not a directory", path.display())]
    ContextNotDir { path: PathBuf },
    /// An argument that must be UTF-8, since the API's texts are.
    #[error("{} is not UTF-8", path.display())]
    NotUtf8 { path: PathBuf },
    /// A dangerous command without a yes.
    #[error("not done: {question}")]
    Unconfirmed { question: String },
    /// A daemon that agreed to stop and is still there.
    #[error("the daemon at {host} is still there {seconds} s after it agreed to stop")]
    StillThere { host: String, seconds: u64 },
    /// An exit code that no process can have.
    #[error(
        "the daemon gave exit code {code} for the command in sandbox {sandbox}, which no process can have"
    )]
    ExitCode { sandbox: String, code: i32 },
    /// The checks of this machine did not come to their end.
    #[error("the checks of this machine broke off")]
    Doctor(#[source] tokio::task::JoinError),
    /// A job could not be run at all.
    #[error("cannot run the job")]
    Job(#[source] berth_harbor::job::Error),
}

impl Failure {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Failure::Client(error) => error.kind(),
            Failure::Unpack { source, .. } => source.kind(),
            Failure::Job(error) => error.kind(),
            Failure::StillThere { .. }
            | Failure::Listen { .. }
            | Failure::InputLost { .. }
            | Failure::SshDoor { .. } => Kind::Unavailable,
            Failure::NoSsh(_) | Failure::NoCache => Kind::Config,
            Failure::Json(_)
            | Failure::Output(_)
            | Failure::Doctor(_)
            | Failure::ExitCode { .. }
            | Failure::BadStore { .. } => Kind::Internal,
            Failure::CopyMissing { .. } => Kind::NotFound,
            Failure::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Failure::Read { .. }
            | Failure::Stdin(_)
            | Failure::NoTerminal
            | Failure::NoSshKey
            | Failure::SshKey { .. }
            | Failure::PrivateKey { .. }
            | Failure::Write { .. }
            | Failure::Interrupted { .. }
            | Failure::CopySides { .. }
            | Failure::CopyRelative { .. }
            | Failure::CopySpecial { .. }
            | Failure::CopyDirOntoFile { .. }
            | Failure::CopyRefused { .. }
            | Failure::ContextNotDir { .. }
            | Failure::NoVariable { .. }
            | Failure::NotUtf8 { .. }
            | Failure::Unconfirmed { .. } => Kind::User,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Failure::Client(error) => error.hint(),
            Failure::CopySides { .. } => Some("for a local name with a colon in it, write ./NAME".to_owned()),
            Failure::NoSsh(error) if error.kind() == io::ErrorKind::NotFound => {
                Some("install OpenSSH's client, for example Debian's openssh-client".to_owned())
            }
            Failure::NoSshKey | Failure::SshKey { .. } => Some(
                "let a key of your own in with `berth ssh-key add ~/.ssh/id_ed25519.pub`, then name its private half with \
                 --identity ~/.ssh/id_ed25519"
                    .to_owned(),
            ),
            Failure::PrivateKey { .. } => Some("the public one is beside it and ends in .pub".to_owned()),
            Failure::Unconfirmed { .. } => Some("repeat it with --yes".to_owned()),
            _ => None,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind().exit_code())
    }

    /// Whether whoever read the output has gone, as `head` does: nothing to tell then.
    fn is_closed_output(&self) -> bool {
        matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Tells the user, on stderr.
    pub(crate) fn print(&self) {
        if !self.is_closed_output() {
            let error = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
            let hint = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
            let text = self.render(|label| match label {
                "error" => format!("{error}error:{error:#}"),
                label => format!("{hint}{label}:{hint:#}"),
            });
            anstream::eprint!("{text}");
        }
    }

    /// The whole report; `label` makes a label of its name.
    pub(crate) fn render(&self, label: impl Fn(&str) -> String) -> String {
        let mut text = format!("{} {self}\n", label("error"));
        match self.build_failure() {
            Some(failure) => text.push_str(&render_build_failure(&failure)),
            None => push_causes(&mut text, self.source()),
        }
        if let Some(fault) = self.dockerfile_fault() {
            push_excerpt(&mut text, &fault.excerpt);
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("{} {hint}\n", label("hint")));
        }
        text
    }

    fn build_failure(&self) -> Option<BuildFailure> {
        let Failure::Client(error) = self else { return None };
        let api = error.api().filter(|api| api.code == "build_failed")?;
        serde_json::from_value(api.details.clone()?).ok()
    }

    /// The place of a Dockerfile that it is about.
    fn dockerfile_fault(&self) -> Option<DockerfileFault> {
        let Failure::Client(error) = self else { return None };
        serde_json::from_value(error.api()?.details.clone()?).ok()
    }
}

/// A drawing of lines of a Dockerfile. It comes from the daemon, and its lines from whoever wrote the Dockerfile.
fn push_excerpt(text: &mut String, excerpt: &str) {
    for line in excerpt.lines() {
        let _ = writeln!(text, "  {}", crate::progress::printable(line));
    }
}

fn push_causes(text: &mut String, mut cause: Option<&(dyn Error + 'static)>) {
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  cause: {error}");
        cause = error.source();
    }
}

fn render_build_failure(failure: &BuildFailure) -> String {
    let BuildFailure { step, steps, instruction, file, line, exit_code, output_tail, stage, excerpt } =
        failure;
    let stage = stage.as_ref().map_or_else(String::new, |stage| format!(" (stage {stage})"));
    let mut text = format!("  step {step} of {steps} failed, {file}:{line}{stage}\n");
    match excerpt {
        Some(excerpt) => push_excerpt(&mut text, excerpt),
        None => instruction.lines().for_each(|part| {
            let _ = writeln!(text, "    {}", crate::progress::printable(part));
        }),
    }
    if let Some(code) = exit_code {
        let _ = writeln!(text, "  its command ended with exit code {code}");
    }
    if !output_tail.is_empty() {
        text.push_str("  the end of its output:\n");
    }
    for part in output_tail {
        let _ = writeln!(text, "    | {}", crate::progress::printable(part));
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_types::error::ApiError;
    use serde_json::json;

    use super::*;

    fn api(source: ApiError) -> Failure {
        Failure::Client(berth_client::Error::Api {
            operation: "build demo:1".into(),
            source: Box::new(source),
        })
    }

    fn plain(failure: &Failure) -> String {
        failure.render(|label| format!("{label}:"))
    }

    #[test]
    fn an_api_error_shows_operation_cause_and_hint() {
        let error = ApiError::new(Kind::NotFound, "image_not_found", "no image demo:1 in the store")
            .with_hint("berth image pull demo:1");
        let failure = api(error);
        insta::assert_snapshot!(plain(&failure), @r"
        error: cannot build demo:1
          cause: no image demo:1 in the store
        hint: berth image pull demo:1
        ");
        assert_eq!(failure.kind(), Kind::NotFound);
    }

    #[test]
    fn a_failed_build_shows_its_step_and_the_end_of_its_output() {
        let error = ApiError::new(Kind::User, "build_failed", "step 3 failed").with_details(json!({
            "step": 3, "steps": 7, "instruction": "RUN apt-get update && \\\n    apt-get install nope",
            "file": "Dockerfile", "line": 5, "exit_code": 100, "output_tail": ["Reading\u{1b}[31m lists", "E: no nope"],
        }));
        insta::assert_snapshot!(plain(&api(error)), @r"
        error: cannot build demo:1
          step 3 of 7 failed, Dockerfile:5
            RUN apt-get update && \
                apt-get install nope
          its command ended with exit code 100
          the end of its output:
            | Reading[31m lists
            | E: no nope
        ");
    }

    #[test]
    fn a_fault_of_a_dockerfile_shows_its_place() {
        let message = "Dockerfile:2: source `a` is not in the build context";
        let error = ApiError::new(Kind::User, "dockerfile_invalid", message).with_hint("mend it").with_details(json!({
            "file": "Dockerfile", "line": 2, "column": 6, "label": "not there",
            "excerpt": "   ╭─[Dockerfile:2:6]\n 1 │ FROM b\u{1b}[31m\n 2 │ COPY a /x\n   ·      ┬\n   ·      ╰── not there\n   ╰────",
        }));
        insta::assert_snapshot!(plain(&api(error)), @r"
        error: cannot build demo:1
          cause: Dockerfile:2: source `a` is not in the build context
             ╭─[Dockerfile:2:6]
           1 │ FROM b[31m
           2 │ COPY a /x
             ·      ┬
             ·      ╰── not there
             ╰────
        hint: mend it
        ");
    }

    #[test]
    fn a_failed_build_of_several_stages_names_the_stage_and_shows_the_lines() {
        let error = ApiError::new(Kind::User, "build_failed", "step 3 failed").with_details(json!({
            "step": 3, "steps": 7, "instruction": "RUN false", "file": "Dockerfile", "line": 5, "exit_code": 1,
            "output_tail": [], "stage": "tools", "excerpt": " 5 │ RUN false",
        }));
        insta::assert_snapshot!(plain(&api(error)), @r"
        error: cannot build demo:1
          step 3 of 7 failed, Dockerfile:5 (stage tools)
           5 │ RUN false
          its command ended with exit code 1
        ");
    }

    #[test]
    fn details_that_are_no_build_failure_are_not_lost() {
        let error = ApiError::new(Kind::User, "build_failed", "the words").with_details(json!({"step": "x"}));
        assert!(plain(&api(error)).contains("cause: the words"));
    }
}
