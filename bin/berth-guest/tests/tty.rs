//! Terminals, login shells and programs of the guest's own, through the host's side.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use berth_sandbox::guest::{ExecOutput, ExecSpec};
use berth_types::exec::{Command, ExitReason, TerminalSize};
use rig::{Rig, finish, shell};

const SIZE: TerminalSize = TerminalSize { rows: 33, cols: 101 };

fn is_possible() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIP: needs root, for whom alone /dev/pts/ptmx is on an ordinary machine");
    }
    is_root
}

fn on_terminal(line: &str) -> ExecSpec {
    ExecSpec { terminal: Some(SIZE), ..shell(line) }
}

#[tokio::test]
async fn a_command_on_a_terminal_has_its_size_and_its_kind_and_its_exit_code() {
    if !is_possible() {
        return;
    }
    let rig = Rig::new().await;
    let ran = rig
        .run(on_terminal("stty size; test -t 0 -a -t 1 -a -t 2 && echo $TERM; echo err >&2; exit 7"))
        .await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (7, ExitReason::Exited));
    assert_eq!(ran.out(), "33 101\r\nxterm-256color\r\nerr\r\n");
    assert!(ran.stderr.is_empty());
}

#[tokio::test]
async fn jobs_are_controlled_and_sizes_change() {
    if !is_possible() {
        return;
    }
    // Marks are written so that the terminal's echo of a line does not have them.
    let rig = Rig::new().await;
    let mut exec = rig.start(on_terminal("exec sh -i")).await.unwrap();
    let input = exec.input().unwrap();
    let mut shown = String::new();
    input.write(b"echo re''ady\n").await.unwrap();
    read_until(&mut exec, &mut shown, "ready").await;
    let id = rig.guest.execs(None).await.unwrap().remove(0).id;
    rig.guest.resize(&id, TerminalSize { rows: 5, cols: 6 }).await.unwrap();
    input.write(b"stty size\n").await.unwrap();
    read_until(&mut exec, &mut shown, "5 6\r").await;
    // Ctrl-Z stops the job, not the shell that it belongs to. The job starts nothing: who is stopped between vfork(2)
    // and execve(2) keeps its parent from being stopped.
    input.write(b"sh -c 'echo u''p; read -r line'\n").await.unwrap();
    read_until(&mut exec, &mut shown, "up\r").await;
    input.write(b"\x1a").await.unwrap();
    read_until(&mut exec, &mut shown, "Stopped").await;
    input.write(b"kill -9 %1; echo o''ver\n").await.unwrap();
    read_until(&mut exec, &mut shown, "over\r").await;
    // Twice, for a shell that has not noticed the end of its job refuses once.
    input.write(b"exit 3\nexit 3\n").await.unwrap();
    let ran = tokio::time::timeout(std::time::Duration::from_secs(20), finish(exec)).await;
    assert_eq!(ran.expect(&shown).status.exit_code, 3, "{shown}");
}

async fn read_until(exec: &mut berth_sandbox::guest::Exec, shown: &mut String, mark: &str) {
    while !shown.contains(mark) {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), exec.next());
        match next.await.unwrap_or_else(|_| panic!("no {mark:?} in {shown:?}")).unwrap().unwrap() {
            ExecOutput::Output { data, .. } => shown.push_str(&String::from_utf8_lossy(&data)),
            ExecOutput::Exited(status) => panic!("{status:?}: {shown}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_login_shell_reads_its_user_s_profile() {
    let rig = Rig::new().await;
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".profile"), "echo profile of $0 in $SHELL; exit 4\n").unwrap();
    let mut spec = shell("");
    spec.command = Command::LoginShell;
    spec.env = [("HOME".to_owned(), home.path().to_str().unwrap().to_owned())].into();
    let ran = rig.run(spec).await;
    assert_eq!(ran.status.exit_code, 4, "{}", ran.out());
    assert!(ran.out().starts_with("profile of -"), "{}", ran.out());
}

#[tokio::test]
async fn programs_of_the_guest_s_own_run_as_the_user() {
    let rig = Rig::new().await;
    let mut spec = shell("");
    spec.command = Command::Sftp;
    spec.user = Some("4242:4243".into());
    spec.no_new_privileges = true;
    let ran = rig.run(spec).await;
    // Without input there is nothing to serve.
    assert_eq!((ran.status.exit_code, ran.status.reason), (0, ExitReason::Exited), "{ran:?}");
}
