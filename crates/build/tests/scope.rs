//! What commands see: variables by the rules of the Dockerfile reference, shells, users, directories and heredocs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_build::context::Context;
use berth_build::graph::Graph;
use berth_build::plan::{Action, Inputs, plan};
use berth_build::runner::{Base, RunSpec};
use berth_build::source::Source;
use berth_types::image::ContextManifest;
use serde_json::json;

/// The last `RUN` of a Dockerfile on an image that brings `PATH` and `BASE=b`, and its script.
fn last(dockerfile: &str, args: &[(&str, &str)]) -> (RunSpec, Option<(String, String)>) {
    let build_args: BTreeMap<String, String> =
        args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let source = Arc::new(Source::new("Dockerfile", dockerfile));
    let graph = Graph::read(&source, &build_args, "linux/amd64").unwrap();
    let target = graph.target(None).unwrap();
    let context = Context::of_manifest(&ContextManifest::default(), "Dockerfile").unwrap();
    let config = json!({ "config": { "Env": ["PATH=/bin", "BASE=b"] } });
    let base = Base { id: "sha256:base".to_owned(), config, layers: Vec::new() };
    let names = ["debian", "debian:12", "debian:13"];
    let bases = names.into_iter().map(|name| (name.to_owned(), base.clone())).collect();
    let (remotes, platform) = (BTreeMap::new(), "linux/amd64");
    let (graph, context, bases, remotes) = (&graph, &context, &bases, &remotes);
    let inputs = Inputs {
        graph,
        target,
        context,
        bases,
        remotes,
        build_args: &build_args,
        no_network: false,
        platform,
    };
    let mut plan = plan(&inputs).unwrap_or_else(|error| panic!("{dockerfile}: {}", error.to_api()));
    match plan.stages.remove(&target).unwrap().steps.pop().unwrap().action {
        Action::Run { spec, script, .. } => (spec, script),
        other => panic!("{dockerfile}: {other:?}"),
    }
}

/// The variable `V` that the last `RUN` sees.
fn v(dockerfile: &str, args: &[(&str, &str)]) -> Option<String> {
    let (spec, _) = last(&format!("{dockerfile}\nRUN x"), args);
    spec.env.into_iter().find(|(name, _)| name == "V").map(|(_, value)| value)
}

#[test]
fn variables_have_the_scopes_of_the_reference() {
    let given: &[(&str, &str)] = &[("V", "given"), ("W", "w")];
    let none: &[(&str, &str)] = &[];
    let table = [
        // Global arguments are for `FROM`, and for stages that declare them again.
        ("ARG V=global\nFROM debian", none, None),
        ("ARG V=global\nFROM debian\nARG V", none, Some("global")),
        ("ARG V=global\nFROM debian\nARG V=own", none, Some("own")),
        ("ARG V=global\nFROM debian\nARG V", given, Some("given")),
        ("ARG T=12\nARG V=debian:${T}\nFROM $V\nARG V", none, Some("debian:12")),
        ("ARG T=12\nFROM debian:${T:+13}\nENV V=ok", none, Some("ok")),
        // Arguments are theirs who declare them, and of the stages on top.
        ("FROM debian", given, None),
        ("FROM debian\nARG V", none, None),
        ("FROM debian\nARG V=", none, Some("")),
        ("FROM debian\nARG V=default", given, Some("given")),
        ("FROM debian AS a\nARG V=a\nFROM a", none, Some("a")),
        ("FROM debian AS a\nARG V=a\nFROM debian", none, None),
        ("FROM debian\nARG A=1 B=2 V=$A$B", none, Some("12")),
        ("FROM debian\nARG W\nARG V=${W:-none}", given, Some("given")),
        ("FROM debian\nARG W\nENV V=${W:-none}", given, Some("w")),
        // `ENV` wins over the argument of its name that stands before it.
        ("FROM debian\nARG V\nENV V=env", given, Some("env")),
        ("FROM debian\nARG V\nENV V=${V:-default}", none, Some("default")),
        // One instruction sees the variables as they were before it.
        ("FROM debian\nENV abc=hello\nENV abc=bye def=$abc\nENV V=$def", none, Some("hello")),
        ("FROM debian\nENV abc=hello\nENV abc=bye def=$abc\nENV V=$abc", none, Some("bye")),
        ("FROM debian\nENV V=$BASE", none, Some("b")),
        // Forms of `ENV`.
        ("FROM debian\nENV V=\"John Doe\"", none, Some("John Doe")),
        ("FROM debian\nENV V=Rex\\ The\\ Dog", none, Some("Rex The Dog")),
        ("FROM debian\nENV V TWO= THREE=world", none, Some("TWO= THREE=world")),
        ("FROM debian\nENV A=1 \\\n    V=2", none, Some("2")),
        ("FROM debian\nENV V='$BASE'", none, Some("$BASE")),
        ("FROM debian\nENV V=\\$BASE", none, Some("$BASE")),
        ("# escape=`\nFROM debian\nENV V=C:\\dir`$BASE", none, Some("C:\\dir$BASE")),
        // Forms of expansion, as the reference shows them.
        ("FROM debian\nENV str=foobarbaz\nENV V=${str#f*b}", none, Some("arbaz")),
        ("FROM debian\nENV str=foobarbaz\nENV V=${str##f*b}", none, Some("az")),
        ("FROM debian\nENV str=foobarbaz\nENV V=${str%b*}", none, Some("foobar")),
        ("FROM debian\nENV str=foobarbaz\nENV V=${str%%b*}", none, Some("foo")),
        ("FROM debian\nENV str=foobarbaz\nENV V=${str/ba/fo}", none, Some("fooforbaz")),
        ("FROM debian\nENV str=foobarbaz\nENV V=${str//ba/fo}", none, Some("fooforfoz")),
        // What every stage may declare.
        ("FROM debian\nARG TARGETPLATFORM\nENV V=$TARGETPLATFORM", none, Some("linux/amd64")),
        (
            "FROM debian\nARG BUILDVARIANT TARGETOSVERSION\nENV V=[$BUILDVARIANT$TARGETOSVERSION]",
            none,
            Some("[]"),
        ),
        ("FROM --platform=$BUILDPLATFORM debian\nARG TARGETOS\nENV V=$TARGETOS", none, Some("linux")),
    ];
    for (dockerfile, args, wanted) in table {
        assert_eq!(v(dockerfile, args).as_deref(), wanted, "{dockerfile}");
    }
}

#[test]
fn proxies_reach_commands_without_being_declared() {
    let (spec, _) = last(
        "FROM debian\nRUN x",
        &[("HTTPS_PROXY", "p"), ("SOURCE_DATE_EPOCH", "1"), ("BUILDKIT_SYNTAX", "s")],
    );
    let names: Vec<&str> = spec.env.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["PATH", "BASE", "HTTPS_PROXY"]);
}

#[test]
fn commands_have_the_shell_user_and_directory_of_their_place() {
    let table: [(&str, &str); 8] = [
        ("RUN a b", "[\"/bin/sh\", \"-c\", \"a b\"] in / as ''"),
        ("RUN [\"a\", \"$BASE\"]", "[\"a\", \"$BASE\"] in / as ''"),
        ("SHELL [\"/bin/bash\", \"-eu\"]\nRUN a", "[\"/bin/bash\", \"-eu\", \"a\"] in / as ''"),
        ("WORKDIR /a\nWORKDIR b\nWORKDIR ../c\nRUN x", "[\"/bin/sh\", \"-c\", \"x\"] in /a/c as ''"),
        ("ENV D=/path N=name\nWORKDIR $D/$N\nRUN x", "[\"/bin/sh\", \"-c\", \"x\"] in /path/name as ''"),
        ("ARG U=app\nUSER ${U}:staff\nRUN x", "[\"/bin/sh\", \"-c\", \"x\"] in / as 'app:staff'"),
        ("RUN a \\\n  # no part of it\n  b", "[\"/bin/sh\", \"-c\", \"a   b\"] in / as ''"),
        ("run  a  'b  c'", "[\"/bin/sh\", \"-c\", \"a  'b  c'\"] in / as ''"),
    ];
    for (body, wanted) in table {
        let (spec, script) = last(&format!("FROM debian\n{body}"), &[]);
        assert_eq!(format!("{:?} in {} as '{}'", spec.argv, spec.cwd, spec.user), wanted, "{body}");
        assert_eq!(script, None);
    }
}

#[test]
fn heredocs_are_commands_scripts_or_input() {
    let argv = |body: &str| last(&format!("FROM debian\n{body}"), &[]);
    let (spec, _) = argv("RUN <<EOF\necho $A\n\techo b\nEOF");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "echo $A\n\techo b\n"]);
    let (spec, _) = argv("RUN <<-EOF\n\techo b\n\tEOF");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "echo b\n"]);
    // With anything beside it, it is what the shell makes of it.
    let (spec, _) = argv("RUN <<EOF bash\necho b\nEOF");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "<<EOF bash\necho b\nEOF"]);
    let (spec, _) = argv("RUN <<A cat > a && <<B cat > b\n1\nA\n2\nB");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "<<A cat > a && <<B cat > b\n1\nA\n2\nB"]);
    let (spec, _) = argv("RUN --mount=type=tmpfs,target=/t python3 <<EOF\nprint(1)\nEOF");
    assert_eq!(spec.argv, ["/bin/sh", "-c", "python3 <<EOF\nprint(1)\nEOF"]);
    let (spec, script) = argv("RUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF");
    let (path, text) = script.unwrap();
    assert_eq!(spec.argv, ["/usr/bin/env", "python3", path.as_str()]);
    assert_eq!(text, "#!/usr/bin/env python3\nprint(1)\n");
}
