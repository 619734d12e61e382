//! From a request to what execve(2) wants, and from its refusals to what a shell would have answered.

use std::collections::BTreeMap;
use std::ffi::CString;

use berth_sys::spawn::Step;
use berth_wire::{Builtin, Command, Exec};
use rustix::fs::Access;
use rustix::io::Errno;

use crate::users::{self, User};

/// `PATH` where the environment has none; what container runtimes give.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `TERM` where a command has a terminal and the environment does not say what kind: what most are, and every image that
/// knows any kind knows.
const DEFAULT_TERM: &str = "xterm-256color";

/// The login shell of those whose account names none, or one that is not there.
const LOGIN_SHELL: &str = "/bin/sh";

/// Programs of the guest's own: what they are called, and by which path they are known.
const OWN_NAME: &str = "berth-guest";
const OWN_PATH: &str = "/proc/self/exe";
/// Argument by which the guest's executable is told to be one of them.
pub(crate) const BUILTIN: &str = "--builtin=";
/// [`Builtin::Sftp`] in that argument.
pub(crate) const SFTP: &str = "sftp";

/// Shells in order of preference, and what each is called in its own messages.
const SHELLS: [(&str, &str); 3] = [("/bin/bash", "bash"), ("/usr/bin/bash", "bash"), ("/bin/sh", "sh")];

/// Exit code of what is not there, as shells have it.
const NOT_FOUND: i32 = 127;
/// Exit code of what is there but cannot be run, also used by container runtimes for a user or a working directory
/// that is not there.
const NOT_RUNNABLE: i32 = 126;

/// Longest single argument or `NAME=value`, its NUL included: `MAX_ARG_STRLEN`, execve(2).
const MAX_STRING: usize = 32 * 4096;

/// A command that can be spawned.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) programs: Vec<CString>,
    /// Whether it is the guest's own executable, which [`crate::surroundings::Surroundings::image`] is surer to be than
    /// the path in `programs`.
    pub(crate) builtin: bool,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) user: User,
}

/// A command that cannot be started, through its own fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotStarted {
    pub(crate) code: i32,
    pub(crate) message: String,
}

fn not_runnable(message: impl Into<String>) -> NotStarted {
    NotStarted { code: NOT_RUNNABLE, message: message.into() }
}

/// The shell that lines run in.
pub(crate) fn find_shell() -> Option<(&'static str, &'static str)> {
    SHELLS.into_iter().find(|(path, _)| is_program(path))
}

fn is_program(path: &str) -> bool {
    // Not the guest's own rights but those of a command: root may read anything, yet executes only with an x bit.
    rustix::fs::access(path, Access::EXEC_OK).is_ok()
        && std::fs::metadata(path).is_ok_and(|file| file.is_file())
}

/// Resolves everything that the sandbox's files decide.
pub(crate) fn plan(exec: &Exec) -> Result<Launch, NotStarted> {
    let user = users::lookup(exec.user.as_deref()).map_err(|error| not_runnable(error.to_string()))?;
    if !exec.cwd.starts_with('/') {
        return Err(not_runnable(format!("working directory {:?} is not absolute", exec.cwd)));
    }
    let mut env = environment(exec, &user);
    let (programs, argv) = match &exec.command {
        Command::Shell(line) => shell(line)?,
        Command::LoginShell => login_shell(exec, &user, &mut env)?,
        Command::Builtin(builtin) => own_program(*builtin)?,
        Command::Argv(argv) => program(argv, env.get("PATH").map_or("", String::as_str))?,
    };
    let env = env.iter().map(|(name, value)| variable(name, value)).collect::<Result<_, _>>()?;
    let builtin = matches!(exec.command, Command::Builtin(_));
    Ok(Launch { programs, builtin, argv, env, cwd: text(&exec.cwd, "working directory")?, user })
}

fn environment(exec: &Exec, user: &User) -> BTreeMap<String, String> {
    let mut env = exec.env.clone();
    let mut default = |name: &str, value: Option<&String>| {
        if let Some(value) = value {
            env.entry(name.to_owned()).or_insert_with(|| value.clone());
        }
    };
    default("PATH", Some(&DEFAULT_PATH.to_owned()));
    default("HOME", Some(&user.home));
    default("TERM", exec.terminal.map(|_| DEFAULT_TERM.to_owned()).as_ref());
    if exec.plain_env {
        return env;
    }
    default("USER", user.name.as_ref());
    default("LOGNAME", user.name.as_ref());
    default("SHELL", user.shell.as_ref());
    env
}

fn variable(name: &str, value: &str) -> Result<CString, NotStarted> {
    if name.is_empty() || name.contains('=') {
        return Err(not_runnable(format!("environment variable {name:?} is not a name")));
    }
    text(&format!("{name}={value}"), &format!("environment variable {name}"))
}

type Programs = (Vec<CString>, Vec<CString>);

fn shell(line: &str) -> Result<Programs, NotStarted> {
    let Some((path, name)) = find_shell() else {
        let message = "the image has no shell: neither /bin/bash, /usr/bin/bash nor /bin/sh can be executed";
        return Err(NotStarted { code: NOT_FOUND, message: message.into() });
    };
    let argv = [name, "-c", line].map(|arg| text(arg, "the command line"));
    Ok((vec![text(path, "shell")?], argv.into_iter().collect::<Result<_, _>>()?))
}

/// As login(1) and sshd(8) start it: a dash before its name makes it read the user's profile.
fn login_shell(exec: &Exec, user: &User, env: &mut BTreeMap<String, String>) -> Result<Programs, NotStarted> {
    let own = user.shell.as_deref().filter(|path| path.starts_with('/') && is_program(path));
    let Some(path) = own.or(is_program(LOGIN_SHELL).then_some(LOGIN_SHELL)) else {
        let named = match &user.shell {
            Some(shell) => format!("neither {shell}, which /etc/passwd names, nor {LOGIN_SHELL}"),
            None => format!("no {LOGIN_SHELL}"),
        };
        let message = format!("the image has no login shell: {named} can be executed");
        return Err(NotStarted { code: NOT_FOUND, message });
    };
    if !exec.plain_env && !exec.env.contains_key("SHELL") {
        env.insert("SHELL".into(), path.into());
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    Ok((vec![text(path, "shell")?], vec![text(&format!("-{name}"), "shell")?]))
}

fn own_program(builtin: Builtin) -> Result<Programs, NotStarted> {
    let Builtin::Sftp = builtin;
    let argv = [OWN_NAME, &format!("{BUILTIN}{SFTP}")].map(|arg| text(arg, "argument"));
    Ok((vec![text(OWN_PATH, "program")?], argv.into_iter().collect::<Result<_, _>>()?))
}

fn program(argv: &[String], path: &str) -> Result<Programs, NotStarted> {
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
        return Err(not_runnable("the command is empty"));
    };
    let programs = if name.contains('/') {
        vec![text(name, "program")?]
    } else {
        // An empty element means the working directory, as in every shell.
        let within = |dir: &str| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        path.split(':').map(|dir| text(&within(dir), "program")).collect::<Result<_, _>>()?
    };
    let number = |index: usize| format!("argument {index}");
    let argv = argv.iter().enumerate().map(|(index, arg)| text(arg, &number(index)));
    Ok((programs, argv.collect::<Result<_, _>>()?))
}

fn text(text: &str, what: &str) -> Result<CString, NotStarted> {
    if text.len() >= MAX_STRING {
        let len = text.len();
        return Err(not_runnable(format!(
            "argument list too long: {what} has {len} bytes, and one string may have {} (E2BIG)",
            MAX_STRING - 1
        )));
    }
    CString::new(text).map_err(|_| not_runnable(format!("{what} contains a NUL byte")))
}

/// What to say of a step that failed in the new process; `None` when it is not the command's fault.
pub(crate) fn explain(exec: &Exec, program: &str, step: Step, errno: i32) -> Option<NotStarted> {
    let errno = Errno::from_raw_os_error(errno);
    let cause = std::io::Error::from(errno);
    match step {
        Step::Cgroup | Step::Prepare => None,
        Step::Ids => Some(not_runnable(format!(
            "cannot become user {}: {cause}",
            exec.user.as_deref().unwrap_or("root")
        ))),
        Step::Cwd => Some(not_runnable(format!("cannot enter working directory {}: {cause}", exec.cwd))),
        Step::Exec => Some(explain_exec(exec, program, errno)),
    }
}

fn explain_exec(exec: &Exec, program: &str, errno: Errno) -> NotStarted {
    let cause = std::io::Error::from(errno);
    let searched = match &exec.command {
        Command::Argv(argv) => argv.first().filter(|name| !name.contains('/')),
        Command::Shell(_) | Command::LoginShell | Command::Builtin(_) => None,
    };
    match errno {
        Errno::NOENT | Errno::NOTDIR if searched.is_some() => {
            let path = exec.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            let name = searched.map_or("", String::as_str);
            NotStarted { code: NOT_FOUND, message: format!("{name}: not found in PATH ({path})") }
        }
        Errno::NOENT if program.starts_with('/') && std::fs::exists(program).unwrap_or(false) => NotStarted {
            code: NOT_FOUND,
            message: format!("{program}: its interpreter or dynamic loader is not there"),
        },
        Errno::NOENT | Errno::NOTDIR => {
            NotStarted { code: NOT_FOUND, message: format!("{program}: {cause}") }
        }
        Errno::NOEXEC => not_runnable(format!(
            "{program}: not a program that this machine can run, and no #! line: {cause}"
        )),
        Errno::TOOBIG => not_runnable(format!(
            "{program}: argument list too long: arguments and environment together exceed the kernel's limit (E2BIG)"
        )),
        _ => not_runnable(format!("{program}: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(command: Command) -> Exec {
        Exec {
            id: "x".into(),
            command,
            env: BTreeMap::new(),
            cwd: "/".into(),
            user: Some("4242".into()),
            timeout_ms: None,
            grace_ms: None,
            no_new_privs: false,
            plain_env: false,
            fingerprint: None,
            stdin: Default::default(),
            terminal: None,
            keep: Default::default(),
            on_detach: Default::default(),
            from: Default::default(),
        }
    }

    #[test]
    fn an_empty_environment_gets_the_defaults_and_a_given_one_keeps_its_own() {
        let mut exec = exec(Command::Argv(vec!["a".into()]));
        exec.env.insert("HOME".into(), "/mine".into());
        let launch = plan(&exec).unwrap();
        insta::assert_debug_snapshot!((launch.programs, launch.env));
    }

    fn strings(of: &[CString]) -> Vec<&str> {
        of.iter().map(|string| string.to_str().unwrap()).collect()
    }

    fn someone(shell: Option<&str>) -> User {
        User { shell: shell.map(str::to_owned), ..users::lookup(Some("4242")).unwrap() }
    }

    #[test]
    fn a_login_shell_is_that_of_the_account_and_else_the_one_that_every_image_has() {
        let request = exec(Command::LoginShell);
        for (shell, path, name) in [
            (None, "/bin/sh", "-sh"),
            (Some("/bin/cat"), "/bin/cat", "-cat"),
            (Some("/nowhere/zsh"), "/bin/sh", "-sh"),
            (Some("cat"), "/bin/sh", "-sh"),
            (Some("/bin"), "/bin/sh", "-sh"),
        ] {
            let mut env = BTreeMap::new();
            let (programs, argv) = login_shell(&request, &someone(shell), &mut env).unwrap();
            assert_eq!((strings(&programs), strings(&argv)), (vec![path], vec![name]), "{shell:?}");
            assert_eq!(env["SHELL"], path);
        }
        let mut request = request;
        request.env.insert("SHELL".into(), "/mine".into());
        assert!(strings(&plan(&request).unwrap().env).contains(&"SHELL=/mine"));
    }

    #[test]
    fn only_a_terminal_has_a_kind_and_never_another_one_than_was_said() {
        let mut exec = exec(Command::LoginShell);
        let kinds = |exec: &Exec| -> Vec<String> {
            let env = plan(exec).unwrap().env;
            strings(&env)
                .iter()
                .filter(|name| name.starts_with("TERM="))
                .map(|kind| kind[5..].to_owned())
                .collect()
        };
        assert_eq!(kinds(&exec), Vec::<String>::new());
        exec.terminal = Some(berth_wire::TerminalSize { rows: 24, cols: 80 });
        assert_eq!(kinds(&exec), ["xterm-256color"]);
        exec.env.insert("TERM".into(), "dumb".into());
        assert_eq!(kinds(&exec), ["dumb"]);
    }

    #[test]
    fn a_program_of_the_guest_s_own_is_its_executable() {
        let launch = plan(&exec(Command::Builtin(Builtin::Sftp))).unwrap();
        assert!(launch.builtin);
        assert_eq!(strings(&launch.argv), ["berth-guest", "--builtin=sftp"]);
    }

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        let refuse = |exec: &Exec| plan(exec).unwrap_err();
        let long = exec(Command::Argv(vec!["a".into(), "x".repeat(MAX_STRING)]));
        assert!(refuse(&long).message.contains("argument 1 has 131072 bytes"), "{:?}", refuse(&long));
        assert_eq!(refuse(&exec(Command::Argv(vec![]))).code, 126);
        assert!(refuse(&exec(Command::Argv(vec!["a\0".into()]))).message.contains("NUL"));
        let mut bad_name = exec(Command::Argv(vec!["a".into()]));
        bad_name.env.insert("A=B".into(), String::new());
        assert!(refuse(&bad_name).message.contains("not a name"));
        let mut relative = exec(Command::Argv(vec!["a".into()]));
        relative.cwd = "here".into();
        assert!(refuse(&relative).message.contains("not absolute"));
    }
}
