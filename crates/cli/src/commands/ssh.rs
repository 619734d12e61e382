//! `berth ssh`, `berth ssh-config` and `berth ssh-key`: sandboxes as hosts of OpenSSH's own clients.
//!
//! `berth ssh` becomes `ssh` itself, told everything on its command line. For other programs (scp, rsync, editors) there is a
//! block for `~/.ssh/config`; in it `berth ssh-proxy` finds the door anew each time, since its port changes with the daemon.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_client::Client;
use berth_types::ssh::{SshDoor, SshKeys};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::TcpStream;

use super::removal::Removal;
use super::shell::find;
use crate::Session;
use crate::failure::Failure;
use crate::output::table;

/// Name by which clients know the door's key, whatever its address.
const ALIAS: &str = "berth";

/// What a daemon that is started for a proxy needs to be told again.
const VARIABLES: [&str; 3] = ["BERTH_HOST", "BERTH_DATA_DIR", "BERTH_CONFIG"];

/// Longest file that can be a public key.
const MAX_KEY: u64 = 64 << 10;

/// Who comes in, and how he shows it.
#[derive(Debug, Args)]
struct Visitor {
    /// User inside: NAME, UID, NAME:GROUP or UID:GID; the sandbox's by default
    #[arg(long, short)]
    user: Option<String>,
    /// Private key to show, in place of the daemon's own for this machine; see `berth ssh-key add`
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// Arguments of `berth ssh`.
#[derive(Debug, Args)]
#[command(
    after_help = "Works in any sandbox: nothing of its image is needed, nor a network. The arguments are as after \
`ssh HOST`: options first, then the command, for example

  berth ssh box
  berth ssh box -- -L 8080:localhost:80 -N
  berth ssh box -- make test

Exits as ssh does: with the command's code, or 255 when it is not known; with 125 when Berth itself failed. For scp, \
sftp, rsync and editors see `berth ssh-config`."
)]
pub struct Ssh {
    /// Id or name of the sandbox, or name of the trial that runs in it
    sandbox: String,
    #[command(flatten)]
    visitor: Visitor,
    /// Options of ssh, then a command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Arguments of `berth ssh-config`.
#[derive(Debug, Args)]
#[command(after_help = "For example

  berth ssh-config box >> ~/.ssh/config
  scp -r results box:/tmp
  rsync -a box:/app/ app/
  code --remote ssh-remote+box /app

It holds good for as long as there is a sandbox of that name, also when the daemon is started anew.")]
pub struct SshConfig {
    /// Id or name of the sandbox, or name of the trial that runs in it
    sandbox: String,
    #[command(flatten)]
    visitor: Visitor,
    /// Name of the host; the sandbox's by default
    #[arg(long = "as", value_name = "HOST", value_parser = host_name)]
    host: Option<String>,
}

/// Keys that open the SSH door.
#[derive(Debug, Subcommand)]
pub enum SshKeyCommand {
    /// Let a key into every sandbox of the daemon
    Add(Add),
    /// List the keys that may come in
    Ls,
    /// Let keys in no more; who is in stays
    Rm(Remove),
}

/// Arguments of `berth ssh-key add`.
#[derive(Debug, Args)]
pub struct Add {
    /// File with the public key, for example ~/.ssh/id_ed25519.pub; - for stdin
    file: PathBuf,
}

/// Arguments of `berth ssh-key rm`.
#[derive(Debug, Args)]
pub struct Remove {
    /// As `berth ssh-key ls` shows them
    #[arg(required = true, value_name = "FINGERPRINT")]
    fingerprints: Vec<String>,
}

/// A word without a meaning of its own in `ssh_config`.
fn host_name(text: &str) -> Result<String, String> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits, dots, dashes and underscores".to_owned())
    }
}

/// All that a client must know but the address.
#[derive(Debug, Serialize)]
struct Way {
    user: String,
    identity_file: PathBuf,
    known_hosts_file: PathBuf,
}

impl Way {
    fn new(sandbox: &str, visitor: Visitor, door: &SshDoor) -> Result<Self, Failure> {
        let user = match &visitor.user {
            Some(user) => format!("{sandbox}+{user}"),
            None => sandbox.to_owned(),
        };
        let identity_file = match (visitor.identity, &door.client_key_path) {
            (Some(file), _) => std::path::absolute(&file).unwrap_or(file),
            (None, Some(path)) => PathBuf::from(path),
            (None, None) => return Err(Failure::NoSshKey),
        };
        // ssh would go on without it, and then be denied for a reason that nobody sees.
        if let Err(source) = File::open(&identity_file) {
            return Err(Failure::SshKey { path: identity_file, source });
        }
        let known_hosts_file = remember(&door.host_key, &cache_dir()?)?;
        Ok(Self { user, identity_file, known_hosts_file })
    }

    /// Keywords of `ssh_config` and their values, which are stronger than the user's own.
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("User", self.user.clone()),
            ("HostKeyAlias", ALIAS.to_owned()),
            ("UserKnownHostsFile", file_value(&self.known_hosts_file)),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("UpdateHostKeys", "no".to_owned()),
            ("IdentityFile", file_value(&self.identity_file)),
            ("IdentitiesOnly", "yes".to_owned()),
        ]
    }
}

impl Ssh {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.client().await?;
        let sandbox = find(&client, &self.sandbox).await?;
        let door = client.ssh().await?;
        let way = Way::new(&sandbox, self.visitor, &door)?;
        let (host, port) = door.address.rsplit_once(':').unwrap_or((&door.address, "22"));
        let mut ssh = std::process::Command::new("ssh");
        for (keyword, value) in way.settings() {
            ssh.arg("-o").arg(format!("{keyword}={value}"));
        }
        // Nothing of the user's own goes between.
        ssh.args(["-o", "ProxyCommand=none", "-p", port]);
        ssh.arg(host.trim_matches(['[', ']'])).args(self.arguments);
        // Comes back only when it cannot be started.
        Err(Failure::NoSsh(ssh.exec()))
    }
}

/// What `berth ssh-config --json` prints.
#[derive(Debug, Serialize)]
struct Host {
    host: String,
    #[serde(flatten)]
    way: Way,
    proxy_command: String,
}

impl SshConfig {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        let id = find(&client, &self.sandbox).await?;
        // Its name may be another sandbox's tomorrow, which is what one wants of a host's name.
        let sandbox = client.sandbox(&id).await?.name;
        let door = client.ssh().await?;
        let host = Host {
            way: Way::new(&sandbox, self.visitor, &door)?,
            host: self.host.unwrap_or(sandbox),
            proxy_command: proxy_command(&session.context.binary, |name| std::env::var(name).ok()),
        };
        session.output.result(&host, render)
    }
}

fn render(host: &Host) -> String {
    let mut text = format!("Host {}\n  HostName localhost\n", host.host);
    for (keyword, value) in host.way.settings() {
        text.push_str(&format!("  {keyword} {value}\n"));
    }
    text.push_str(&format!("  ProxyCommand {}", host.proxy_command));
    text
}

/// As `ssh` gives it to a shell, after it has filled in what begins with a percent sign.
fn proxy_command(binary: &Path, variable: impl Fn(&str) -> Option<String>) -> String {
    let set: Vec<String> = VARIABLES
        .into_iter()
        .filter_map(|name| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value)))
        .map(|(name, value)| shell_word(&format!("{name}={value}")))
        .collect();
    let mut words = set;
    if !words.is_empty() {
        words.insert(0, "env".to_owned());
    }
    words.push(shell_word(&binary.to_string_lossy()));
    words.push("ssh-proxy".to_owned());
    words.join(" ").replace('%', "%%")
}

fn shell_word(text: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "/._-=:+,@".contains(char);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A path as `ssh_config` has it.
fn file_value(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%").replace('\\', r"\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// `berth ssh-proxy`: the door on stdin and stdout.
pub(super) async fn proxy(session: &Session) -> Result<(), Failure> {
    let door = session.client().await?.ssh().await?;
    let failed = |source| Failure::SshDoor { address: door.address.clone(), source };
    let stream = TcpStream::connect(&door.address).await.map_err(failed)?;
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    tokio::spawn(async move {
        // How it ends is seen at the other half.
        let _ = copy(&mut tokio::io::stdin(), &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut stdout = tokio::io::stdout();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::io::AsyncReadExt::read(&mut reader, &mut buffer).await.map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        stdout.write_all(&buffer[..read]).await.map_err(Failure::Output)?;
        stdout.flush().await.map_err(Failure::Output)?;
    }
}

fn cache_dir() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache.ok_or(Failure::NoCache)?.join("berth"))
}

/// Writes down the door's key, under the name that it is known by, in a file of its own; gives that.
fn remember(known_hosts_line: &str, dir: &Path) -> Result<PathBuf, Failure> {
    let (_, key) = known_hosts_line.split_once(' ').unwrap_or(("", known_hosts_line));
    let line = format!("{ALIAS} {key}\n");
    // Another daemon has another key; the end of it is enough to tell them apart.
    let letters: Vec<char> = key.chars().filter(char::is_ascii_alphanumeric).collect();
    let mark: String = letters[letters.len().saturating_sub(24)..].iter().collect();
    let path = dir.join(format!("known_hosts-{mark}"));
    if fs::read(&path).is_ok_and(|there| there == line.as_bytes()) {
        return Ok(path);
    }
    let written = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let new = dir.join(format!("known_hosts-{mark}.{}", std::process::id()));
        fs::write(&new, &line)?;
        fs::rename(&new, &path)
    };
    match written() {
        Ok(()) => Ok(path),
        Err(source) => Err(Failure::Write { path, source }),
    }
}

impl SshKeyCommand {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            SshKeyCommand::Add(add) => {
                let key = read_key(&add.file)?;
                let added = session.client().await?.add_ssh_key(&key).await?;
                session.output.result(&added, |added| added.fingerprint.clone())
            }
            SshKeyCommand::Ls => {
                let keys = session.client().await?.ssh_keys().await?;
                session.output.result(&keys, list)
            }
            SshKeyCommand::Rm(remove) => {
                let client = session.client().await?;
                remove_all(session, &client, &remove.fingerprints).await
            }
        }
    }
}

fn list(keys: &SshKeys) -> String {
    let rows = keys
        .items
        .iter()
        .map(|key| vec![key.fingerprint.clone(), key.algorithm.clone(), key.comment.clone()]);
    table(&["FINGERPRINT", "ALGORITHM", "COMMENT"], rows)
}

async fn remove_all(session: &Session, client: &Client, fingerprints: &[String]) -> Result<(), Failure> {
    let mut removal = Removal::new(session);
    for fingerprint in fingerprints {
        removal.note(fingerprint, client.delete_ssh_key(fingerprint).await)?;
    }
    removal.finish()
}

/// What is in the file, unless that must not leave this machine.
fn read_key(file: &Path) -> Result<String, Failure> {
    let failed = |source| Failure::Read { path: file.to_owned(), source };
    let mut text = String::new();
    let len = if file == Path::new("-") {
        io::stdin().lock().take(MAX_KEY + 1).read_to_string(&mut text).map_err(Failure::Stdin)?
    } else {
        let open = File::open(file).map_err(failed)?;
        open.take(MAX_KEY + 1).read_to_string(&mut text).map_err(failed)?
    };
    if len as u64 > MAX_KEY {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    if text.contains("PRIVATE KEY") {
        return Err(Failure::PrivateKey { path: file.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_block_of_config_is_what_ssh_reads_again() {
        let host = Host {
            host: "box".into(),
            way: Way {
                user: "box+alice".into(),
                identity_file: "/a dir/50% \"key\"".into(),
                known_hosts_file: "/k".into(),
            },
            proxy_command: proxy_command(Path::new("/opt/it's/berth"), |name| {
                (name == "BERTH_HOST").then(|| "unix:///a b%".to_owned())
            }),
        };
        let text = render(&host);
        insta::assert_snapshot!(text, @r#"
        Host box
          HostName localhost
          User box+alice
          HostKeyAlias berth
          UserKnownHostsFile "/k"
          GlobalKnownHostsFile /dev/null
          StrictHostKeyChecking yes
          UpdateHostKeys no
          IdentityFile "/a dir/50%% \"key\""
          IdentitiesOnly yes
          ProxyCommand env 'BERTH_HOST=unix:///a b%%' '/opt/it'\''s/berth' ssh-proxy
        "#);
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        fs::write(&config, &text).unwrap();
        let Ok(output) = Command::new("ssh").args(["-G", "-F"]).arg(&config).arg("box").output() else {
            println!("SKIP: no ssh (Debian's openssh-client)");
            return;
        };
        let read = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in [
            "user box+alice",
            "hostkeyalias berth",
            "userknownhostsfile /k",
            "identityfile /a dir/50%% \"key\"",
            "identitiesonly yes",
            r"proxycommand env 'BERTH_HOST=unix:///a b%%' '/opt/it'\''s/berth' ssh-proxy",
        ] {
            assert!(read.lines().any(|read| read == line), "no {line:?} in {read}");
        }
    }

    #[test]
    fn the_doors_key_is_written_down_once_for_each_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("berth");
        let first = remember("[127.0.0.1]:4711 ssh-ed25519 AAAAone", &dir).unwrap();
        assert_eq!(fs::read_to_string(&first).unwrap(), "berth ssh-ed25519 AAAAone\n");
        assert_eq!(remember("[127.0.0.1]:4712 ssh-ed25519 AAAAone", &dir).unwrap(), first);
        assert_ne!(remember("[127.0.0.1]:4711 ssh-ed25519 AAAAtwo", &dir).unwrap(), first);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_private_key_does_not_leave_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n").unwrap();
        assert!(matches!(read_key(&path), Err(Failure::PrivateKey { .. })));
        fs::write(&path, "ssh-ed25519 AAAA me\n").unwrap();
        assert_eq!(read_key(&path).unwrap(), "ssh-ed25519 AAAA me\n");
        fs::write(&path, "x".repeat(MAX_KEY as usize + 1)).unwrap();
        assert!(matches!(read_key(&path), Err(Failure::Read { .. })));
    }

    #[test]
    fn names_of_hosts_mean_nothing_else() {
        assert_eq!(host_name("box-1.lan"), Ok("box-1.lan".to_owned()));
        for wrong in ["", "-x", "a b", "*", "!a", "a\"", "a#b"] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
    }
}
