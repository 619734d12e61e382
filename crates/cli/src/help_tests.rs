//! The help of every command, and what wrong command lines are told.

use clap::CommandFactory;

use super::*;

/// Help of `command` and of all below it, as a terminal of 100 columns shows it.
fn all_help(command: &mut clap::Command, path: &str, text: &mut String) {
    text.push_str(&format!("===== {path} =====\n{}\n", command.render_long_help()));
    for below in command.get_subcommands_mut() {
        let path = format!("{path} {}", below.get_name());
        all_help(below, &path, text);
    }
}

fn parse(line: &str) -> Result<Cli, String> {
    let words = std::iter::once("berth").chain(line.split_whitespace());
    Cli::parse_from_args(words.map(OsString::from)).map_err(|error| error.to_string())
}

#[test]
fn help_of_every_command() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    all_help(&mut command, "berth", &mut text);
    insta::assert_snapshot!(text);
}

#[test]
fn clap_finds_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_lines_name_what_would_be_right() {
    let wrong = [
        "sandbox creat x",
        "sandbox create x --network privat",
        "sandbox create x --cpus 0",
        "sandbox create x --memory-mb 3",
        "sandbox create x --mount src=/a",
        "sandbox create x --env A",
        "sandbox exec box",
        "sandbox exec box --timeout 0 -- true",
        "sandbox rm",
        "sandbox rm a --all",
        "image build",
        "image pull a --username u",
        "image import f --format docker",
        "ssh",
        "ssh-config box --as *",
        "ssh-key rm",
        "run",
        "run t -a orcale",
        "run t -a nop --agent-cmd x",
        "run t -k 0",
        "serve --host /run/x.sock",
    ];
    let told = wrong.map(|line| format!("$ berth {line}\n{}", parse(line).unwrap_err()));
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn right_lines_are_understood() {
    for line in [
        "sandbox exec box -u 1000 -e A=b -- ls -la --json",
        "sandbox exec box ls -la",
        "sandbox create img --no-new-privileges --name n",
        "sandbox create img --no-new-privileges=false",
        "sandbox rm --all --yes --label a=b",
        "ssh box -L 8080:localhost:80 -N",
        "ssh --user alice box -- -v ls -la",
        "ssh-config box --as other --identity key",
        "ssh-key add -",
        "run a b -a nop -k 3 -n 2",
        "run a --agent-cmd true",
        "daemon start --json",
        "--json daemon status",
        "completions bash",
    ] {
        parse(line).unwrap();
    }
}

#[test]
fn serve_and_openapi_are_the_callers() {
    let Action::Serve(args) =
        parse("serve --embedded --host unix:///x/y --data-dir /d --idle-exit 5").unwrap().action()
    else {
        panic!("not serve")
    };
    let expected = ServeArgs {
        host: Some("unix:///x/y".into()),
        data_dir: Some("/d".into()),
        config: None,
        embedded: true,
        idle_exit: Some(5),
    };
    assert_eq!(ServeArgs { config: None, ..args }, expected);
    assert!(matches!(parse("openapi").unwrap().action(), Action::OpenApi));
}
