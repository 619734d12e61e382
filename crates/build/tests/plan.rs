//! Plans: what instructions come to, which keys they have, and what plans lack. Nothing is run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(clippy::result_large_err, reason = "errors are looked at here, not passed on")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use berth_build::context::Context;
use berth_build::graph::Graph;
use berth_build::plan::{Action, Inputs, MountKind, Plan, PlannedMount, PlannedSource, plan};
use berth_build::runner::{Base, Remote};
use berth_build::source::Source;
use berth_build::{Error, Needs};
use berth_types::error::Kind;
use berth_types::image::{ContextEntry, ContextKind, ContextManifest};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a plan is made from, with an empty context, `debian` and `alpine` unless a test says otherwise.
struct Case {
    dir: tempfile::TempDir,
    bases: BTreeMap<String, Base>,
    remotes: BTreeMap<Remote, String>,
    args: BTreeMap<String, String>,
    target: Option<String>,
    no_network: bool,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (bases, remotes, args) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut case = Self { dir, bases, remotes, args, target: None, no_network: false };
        case.base("debian", json!({ "Env": ["PATH=/bin"] }));
        case.base("alpine", json!({ "Env": ["PATH=/bin"] }));
        case
    }

    fn base(&mut self, name: &str, config: Value) {
        let (id, config) = (format!("sha256:{name}"), json!({ "config": config }));
        self.bases.insert(name.to_owned(), Base { id, config, layers: Vec::new() });
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    fn plan_in(&self, dockerfile: &str, context: &Context) -> Result<Plan, Error> {
        let source = Arc::new(Source::new("Dockerfile", dockerfile));
        let graph = Graph::read_for(&source, &self.args, "linux/amd64", self.target.as_deref())?;
        let target = graph.target(self.target.as_deref()).unwrap();
        plan(&Inputs {
            graph: &graph,
            target,
            context,
            bases: &self.bases,
            remotes: &self.remotes,
            build_args: &self.args,
            no_network: self.no_network,
            platform: "linux/amd64",
        })
    }

    fn try_plan(&self, dockerfile: &str) -> Result<Plan, Error> {
        self.plan_in(dockerfile, &Context::open(self.dir.path(), "Dockerfile").unwrap())
    }

    fn plan(&self, dockerfile: &str) -> Plan {
        self.try_plan(dockerfile).unwrap_or_else(|error| panic!("{dockerfile}: {}", error.to_api()))
    }

    fn needs(&self, dockerfile: &str) -> Needs {
        match self.try_plan(dockerfile) {
            Err(Error::Needs(needs)) => *needs,
            other => panic!("{other:?}"),
        }
    }

    /// The last step of the target.
    fn last(&self, dockerfile: &str) -> Action {
        let mut plan = self.plan(dockerfile);
        plan.stages.remove(&plan.target).unwrap().steps.pop().unwrap().action
    }

    fn mounts(&self, flags: &str) -> Vec<PlannedMount> {
        match self.last(&format!("FROM debian AS lender\nFROM debian\nWORKDIR /w\nARG A=arg\nRUN {flags} x"))
        {
            Action::Run { mounts, .. } => mounts,
            other => panic!("{other:?}"),
        }
    }

    /// What a `COPY` or `ADD` copies, one source a line.
    fn copied(&self, line: &str) -> String {
        let Action::Copy(copy) =
            self.last(&format!("FROM debian AS lender\nFROM debian\nWORKDIR /w\n{line}"))
        else {
            return "nothing".to_owned();
        };
        let sources = copy.sources.iter().map(|source| match source {
            PlannedSource::Dir { path, without, .. } => format!("dir {path:?} without {without:?}"),
            PlannedSource::File { path, name, archive, .. } => {
                format!("file {path} as {name}{}", archive.map_or(String::new(), |kind| format!(" {kind:?}")))
            }
            PlannedSource::Inline { name, content } => format!("text {name} {content:?}"),
            PlannedSource::Fetched { remote, unpack, .. } => format!("{remote:?} unpack={unpack}"),
            PlannedSource::Elsewhere { path, .. } => format!("elsewhere {path}"),
        });
        let sources: Vec<String> = sources.collect();
        format!("{} → {}{}", sources.join(" + "), copy.dest, if copy.into { "/" } else { "" })
    }

    /// The error of a Dockerfile as people see it.
    fn rendered(&self, dockerfile: &str) -> String {
        let Err(Error::Dockerfile(fault)) = self.try_plan(dockerfile) else {
            panic!("no fault in {dockerfile}");
        };
        let mut rendered = String::new();
        let theme = miette::GraphicalTheme::unicode_nocolor();
        miette::GraphicalReportHandler::new_themed(theme)
            .with_width(200)
            .render_report(&mut rendered, fault.as_ref())
            .unwrap();
        rendered
    }

    fn warnings(&self, dockerfile: &str) -> Vec<String> {
        let warnings = self.plan(dockerfile).warnings;
        warnings.iter().map(|w| format!("{}:{}: {}", w.line, w.check, w.message)).collect()
    }
}

fn key(plan: &Plan) -> String {
    plan.stages[&plan.target].steps.last().unwrap().key.unwrap().to_string()
}

#[test]
fn mounts_have_their_defaults() {
    let case = Case::new();
    case.write("src/a", "A");
    let report: Vec<String> = [
        "--mount=type=bind,target=.",
        "--mount=target=/t,source=src",
        "--mount=dst=/t,src=/src/a,rw",
        "--mount=type=bind,destination=rel,from=lender,source=/opt,readwrite=true",
        "--mount=from=0,target=/t",
        "--mount=from=alpine,target=/t,ro=true",
        "--mount=from=scratch,target=/t,rw",
        "--mount=type=cache,target=/c",
        "--mount=type=cache,target=c/../d/,sharing=locked,id=$A,uid=1,gid=2,mode=700,ro",
        "--mount=type=cache,target=/c,from=lender,source=/seed,sharing=private",
        "--mount=type=tmpfs,target=/tmp",
        "--mount=type=tmpfs,target=/tmp,size=64m",
        "--mount=type=secret,id=token",
        "--mount=type=secret,target=/root/.netrc,required",
        "--mount=type=secret,id=k,env=KEY",
        "--mount=type=secret,src=k,dst=/k,env=KEY,mode=0440,uid=3,gid=4,required=false",
        "--mount=\"type=cache,target=/${A}\"",
        "--mount=type=cache,target=/a --mount=type=tmpfs,dst=/b --network=none --security=sandbox",
    ]
    .into_iter()
    .map(|flags| {
        let mounts = case.mounts(flags);
        let mounts: Vec<String> = mounts
            .iter()
            .map(|mount| {
                let access = if mount.read_only { "ro" } else { "rw" };
                format!("    {} {access} {:?}", mount.target, mount.kind)
            })
            .collect();
        format!("{flags}\n{}", mounts.join("\n"))
    })
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn networks_are_as_asked_for() {
    let case = Case::new();
    for (flag, wanted) in [("", false), ("--network=default ", false), ("--network=none ", true)] {
        let Action::Run { no_network, .. } = case.last(&format!("FROM debian\nRUN {flag}x")) else {
            panic!()
        };
        assert_eq!(no_network, wanted, "{flag}");
    }
}

#[test]
fn copies_find_their_sources() {
    let case = Case::new();
    for name in [
        "a.txt",
        "b.txt",
        "c.md",
        "x/y/a.txt",
        "x/y/b.md",
        "x/z/deep/a.txt",
        "arr[0].txt",
        "src/one/f",
        "src/g",
    ] {
        case.write(name, name);
    }
    symlink("x/y", case.dir.path().join("link")).unwrap();
    let report: Vec<String> = [
        "COPY a.txt /d",
        "COPY a.txt b.txt d",
        "COPY *.txt /d/",
        "COPY ./x/../a.txt .",
        "COPY ../../a.txt /d",
        "COPY /x /d",
        "COPY x/*/a.txt /d/",
        "COPY arr[[]0].txt /d",
        "COPY link/a.txt /d",
        "COPY link /d",
        "COPY nothing* /d",
        "COPY --exclude=*.txt . /d",
        "COPY --exclude=**/*.txt --exclude=!x/y/a.txt x /d",
        "COPY --exclude=**/a.txt . /d",
        "COPY --exclude=a.txt *.txt /d/",
        "COPY --exclude=a.txt a.txt /d/",
        "COPY --exclude=x * /d/",
        "COPY --parents x/y/a.txt /d/",
        "COPY --parents ./x/./y/*.txt /d/",
        "COPY --parents **/*.md /d/",
        "COPY --parents x/**/a.txt src/g /d/",
        "COPY --parents --exclude=x/z src x /d/",
        "COPY --parents ./src/./ /d/",
        "COPY --parents no*/thing /d/",
        "COPY --from=lender /a/b/../c* /d",
        "COPY --from=lender --parents /a/./b/*.so /d/",
        "COPY --from=lender --parents /a/b /d/",
        "ADD a.txt /d",
        "COPY <<one <<'two' /d/\nA=$A\none\nA=$A\ntwo",
        "ADD https://h/dir/file.bin /d/",
        "ADD --unpack https://h/f.tar.gz /d",
        "ADD --unpack=false --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://h/f /d",
        "ADD --keep-git-dir https://h/x.git#v1:docs /d",
        "ADD --checksum=be1f38e https://h/x.git?tag=v2&subdir=a /d",
    ]
    .into_iter()
    .map(|line| match case.try_plan(&format!("FROM debian AS lender\nFROM debian\nWORKDIR /w\n{line}")) {
        Ok(_) => format!("{line}\n    {}", case.copied(line)),
        Err(Error::Needs(needs)) => format!("{line}\n    needs {:?}", needs.remotes[0].what),
        Err(error) => format!("{line}\n    {}", error.to_api()),
    })
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn archives_are_unpacked_unless_told_otherwise() {
    let case = Case::new();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, "a", &b"a"[..]).unwrap();
    case.write("x.tar", builder.into_inner().unwrap()).write("empty.tar.gz", "");
    assert_eq!(case.copied("ADD x.tar /d"), "file x.tar as x.tar Plain → /d");
    assert_eq!(case.copied("ADD --unpack=false x.tar /d"), "file x.tar as x.tar → /d");
    assert_eq!(case.copied("COPY x.tar /d"), "file x.tar as x.tar → /d");
    assert_eq!(case.copied("ADD empty.tar.gz /d"), "file empty.tar.gz as empty.tar.gz → /d");
}

#[test]
fn bad_flags_are_shown_in_place() {
    let case = Case::new();
    case.write("a", "A");
    let report: Vec<String> = [
        "RUN --mount=type=ssh x",
        "RUN --mount=type=bnid,target=/x x",
        "RUN --mount=type=cache x",
        "RUN --mount=type=cache,tarket=/x x",
        "RUN --mount=type=cache,target x",
        "RUN --mount=type=cache,target=/x,sharing=always x",
        "RUN --mount=type=cache,target=/x,mode=rw x",
        "RUN --mount=type=cache,target=/x,uid=me x",
        "RUN --mount=type=cache,target=/x,size=1g x",
        "RUN --mount=type=bind,target=/x,uid=1 x",
        "RUN --mount=type=bind,target=/x,source=nothing x",
        "RUN --mount=type=bind,target=/x,from=7 x",
        "RUN --mount=type=tmpfs,target=/x,size=big x",
        "RUN --mount=type=tmpfs,target=/x,from=alpine x",
        "RUN --mount=type=secret x",
        "RUN --mount=type=secret,id=a,required=maybe x",
        "RUN --mount=type=secret,id=a,sharing=locked x",
        "RUN --network=host x",
        "RUN --network=bridge x",
        "RUN --security=insecure x",
        "RUN --device=vendor.com/gpu x",
        "COPY --link=maybe a /b",
        "COPY --link --chown=user a /b",
        "COPY --chmod=u+z a /b",
        "COPY --exclude=[ a /b",
        "COPY --parents no/such /b",
        "COPY --checksum=sha256:0 a /b",
        "COPY --from=$NONE a /b",
        "ADD --checksum=sha256:00 https://h/x /b",
        "ADD --checksum=sha256:00 a /b",
        "ADD https://h/ /b/",
        "ADD git@h:x.git /b",
        "ADD https://h/x.git?brunch=a /b",
        "COPY https://h/x /b",
        "EXPOSE eighty",
        "STOPSIGNAL SIGNOPE",
        "COPY a ${b?gone}",
    ]
    .into_iter()
    .map(|line| case.rendered(&format!("FROM debian\n{line}\n")))
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn a_plan_names_what_it_lacks() {
    let mut case = Case::new();
    case.base("parent", json!({ "OnBuild": ["COPY --from=other /a /b", "RUN --mount=from=tools,target=/t x", "COPY --from=Lib /c /d"] }));
    let dockerfile = "FROM unused AS never\nFROM debian AS lib\nFROM parent\nADD https://h/f /f\nCOPY --from=third /x /y\n";
    let needs = case.needs(dockerfile);
    let bases: Vec<(&str, &str, u32)> =
        needs.bases.iter().map(|needed| (needed.what.as_str(), needed.file(), needed.line())).collect();
    assert_eq!(bases, [("other", "Dockerfile", 3), ("tools", "Dockerfile", 3), ("third", "Dockerfile", 5)]);
    let remote = Remote::Url { url: "https://h/f".to_owned(), checksum: None };
    assert_eq!((needs.remotes[0].what.clone(), needs.remotes[0].line()), (remote.clone(), 4));
    for name in ["other", "tools", "third"] {
        case.base(name, json!({}));
    }
    case.remotes.insert(remote, "sha256:1".to_owned());
    let plan = case.plan(dockerfile);
    // The stage that only a trigger names is planned, before it; the one that nobody names is not.
    assert_eq!(plan.stages.keys().copied().collect::<Vec<_>>(), [1, 2]);
    let numbers: Vec<u32> =
        plan.stages.values().flat_map(|stage| stage.steps.iter().map(|step| step.number)).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_stage_on_an_image_that_is_lacking_waits_for_it() {
    let case = Case::new();
    // What the image brings decides whether this is right.
    let needs = case.needs("FROM gone AS a\nCOPY ${FROM_IMAGE:?} /x\nFROM a\nCOPY --from=also /x /y");
    assert_eq!(needs.bases.iter().map(|needed| needed.what.as_str()).collect::<Vec<_>>(), ["gone"]);
}

#[test]
fn sources_may_be_named_by_variables() {
    let case = Case::new();
    let plan = case.plan(
        "ARG NAME=lib\nFROM debian AS lib\nFROM debian AS other\nFROM alpine\nARG NAME\nCOPY --from=$NAME /a /b\nRUN --mount=from=${NAME},target=/t x",
    );
    assert_eq!(plan.stages.keys().copied().collect::<Vec<_>>(), [0, 2]);
    let needs = case.needs("FROM debian\nARG V=3\nCOPY --from=tools:$V /a /b");
    assert_eq!(needs.bases[0].what, "tools:3");
}

#[test]
fn later_stages_can_lend_but_not_in_circles() {
    let case = Case::new();
    let plan =
        case.plan("FROM debian AS first\nCOPY --from=second /a /b\nFROM debian AS second\nRUN x\nFROM first");
    let first = &plan.stages[&0].steps[0];
    assert!(plan.stages[&1].steps.iter().all(|step| step.number < first.number));
    let circle = case
        .try_plan("FROM debian AS a\nCOPY --from=b /x /y\nFROM debian AS b\nRUN --mount=from=a,target=/t x");
    insta::assert_snapshot!(circle.unwrap_err(), @"Dockerfile:1: stages need each other: a → b → a");
    let circle = case.try_plan("FROM debian AS a\nARG B=b\nCOPY --from=$B /x /y\nFROM a AS b\nRUN x");
    insta::assert_snapshot!(circle.unwrap_err(), @"Dockerfile:1: stages need each other: a → b → a");
}

/// Two plans whose last steps have the same key, or another one.
fn compare(case: &Case, table: &[(&str, &str, bool)]) {
    for (one, other, same) in table {
        let [one_key, other_key] =
            [one, other].map(|body| key(&case.plan(&format!("FROM debian AS l\nFROM debian\n{body}"))));
        assert_eq!(one_key == other_key, *same, "{one} | {other}");
    }
}

#[test]
fn a_command_without_network_is_another_one() {
    let mut case = Case::new();
    let text = "FROM debian\nRUN x\nRUN --network=none y\nCOPY Dockerfile /\n";
    let keys = |case: &Case| {
        let plan = case.try_plan(text).unwrap();
        plan.stages[&plan.target].steps.iter().map(|step| step.own).collect::<Vec<_>>()
    };
    case.write("Dockerfile", text);
    let with = keys(&case);
    case.no_network = true;
    let without = keys(&case);
    let same: Vec<bool> = with.iter().zip(&without).map(|(with, without)| with == without).collect();
    assert_eq!(same, [true, false, true, true]);
}

#[test]
fn what_doubles_with_every_line_is_refused_before_it_fills_the_machine() {
    let lines: String = (1..60).map(|n| format!("ARG A{n}=$A{0}$A{0}\n", n - 1)).collect();
    let text = format!("FROM debian\nARG A0=aaaaaaaaaaaaaaaa\n{lines}RUN x\n");
    let error = Case::new().try_plan(&text).unwrap_err().to_api().message;
    assert!(error.contains("longer than 1048576 bytes"), "{error}");
    let many: String = (0..8).map(|n| format!("ENV B{n}=$A16\n")).collect();
    let lines: String = (1..17).map(|n| format!("ARG A{n}=$A{0}$A{0}\n", n - 1)).collect();
    let text = format!("FROM debian\nARG A0=aaaaaaaaaaaaaaaa\n{lines}{many}");
    let error = Case::new().try_plan(&text).unwrap_err().to_api().message;
    assert!(error.contains("more than the 4 MiB"), "{error}");
}

#[test]
fn keys_cover_what_decides_and_nothing_else() {
    let case = Case::new();
    case.write("a", "A")
        .write("same", "A")
        .write("b", "B")
        .write("d/x", "X")
        .write("e/x", "X")
        .write("f/x", "Y")
        .write("f/y", "Y");
    compare(
        &case,
        &[
            ("RUN x", "RUN x", true),
            ("RUN x", "RUN y", false),
            ("RUN x", "RUN --network=none x", false),
            ("RUN x", "RUN --network=default x", true),
            ("RUN x", "RUN --mount=type=tmpfs,target=/t x", false),
            ("RUN --mount=type=cache,target=/t x", "RUN --mount=type=cache,target=/t,id=/t x", true),
            ("RUN --mount=type=cache,target=/t x", "RUN --mount=type=cache,target=/t,id=o x", false),
            ("RUN --mount=target=/t,source=d x", "RUN --mount=target=/t,source=e x", true),
            ("RUN --mount=target=/t,source=d x", "RUN --mount=target=/t,source=f x", false),
            ("RUN --mount=target=/t,source=a x", "RUN --mount=target=/t,source=same x", true),
            ("RUN --mount=target=/t,source=a x", "RUN --mount=target=/t,source=b x", false),
            ("RUN --mount=target=/t,from=l x", "RUN --mount=target=/t,from=debian x", false),
            ("RUN --mount=type=secret,id=s x", "RUN --mount=type=secret,id=s,required x", false),
            ("RUN x", "ARG A=1\nRUN x", false),
            ("ARG A=1\nRUN x", "ARG A=2\nRUN x", false),
            ("LABEL a=b\nRUN x", "RUN x", true),
            ("RUN x", "ENV A=1\nRUN x", false),
            ("USER a\nRUN x", "USER b\nRUN x", false),
            ("COPY d /t", "COPY e /t", true),
            ("COPY d /t", "COPY f /t", false),
            ("COPY f /t", "COPY --exclude=y f /t", false),
            ("COPY --exclude=y f /t", "COPY --exclude=y* f /t", true),
            ("COPY d /t", "COPY d /u", false),
            ("COPY d /t", "COPY --chmod=755 d /t", false),
            ("COPY d /t", "COPY --chown=1 d /t", false),
            ("COPY --chown=1 d /t", "COPY --chown=1:1 d /t", true),
            ("COPY --link d /t", "RUN x\nCOPY --link d /t", true),
            ("COPY d /t", "RUN x\nCOPY d /t", false),
            ("COPY --link d /t\nRUN x", "RUN x\nCOPY --link d /t\nRUN x", false),
            ("COPY --from=l /a /t", "COPY --from=l --parents /a /t", false),
            ("COPY --from=l --exclude=x /a /t", "COPY --from=l /a /t", false),
        ],
    );
}

#[test]
fn arguments_count_where_they_are_used() {
    let mut case = Case::new();
    let dockerfile = "FROM debian\nRUN one\nARG USED\nRUN two";
    let plain = case.plan(dockerfile);
    for (name, first, second) in [
        ("http_proxy", true, true),
        ("UNUSED", true, true),
        ("BUILDKIT_INLINE_CACHE", true, true),
        ("USED", true, false),
    ] {
        case.args = BTreeMap::from([(name.to_owned(), "v".to_owned())]);
        let other = case.plan(dockerfile);
        let same = |at: usize| plain.stages[&0].steps[at].key == other.stages[&0].steps[at].key;
        assert_eq!((same(1), same(3)), (first, second), "{name}");
    }
}

#[test]
fn keys_know_modes_and_links_but_no_times() {
    let case = Case::new();
    case.write("d/x", "X");
    symlink("x", case.dir.path().join("d/l")).unwrap();
    let path = |name: &str| case.dir.path().join(name);
    let now = || key(&case.plan("FROM debian\nCOPY d /d"));
    let before = now();
    let file = fs::File::options().write(true).open(path("d/x")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(now(), before);
    fs::set_permissions(path("d/x"), fs::Permissions::from_mode(0o755)).unwrap();
    let executable = now();
    assert_ne!(executable, before);
    fs::remove_file(path("d/l")).unwrap();
    symlink("y", path("d/l")).unwrap();
    assert_ne!(now(), executable);
}

#[test]
fn the_digest_of_what_is_fetched_is_its_key() {
    let mut case = Case::new();
    let dockerfile = "FROM debian\nADD https://h/f /f";
    let remote = case.needs(dockerfile).remotes[0].what.clone();
    let mut keys = ["sha256:1", "sha256:2", "sha256:1"].map(|digest| {
        case.remotes.insert(remote.clone(), digest.to_owned());
        key(&case.plan(dockerfile))
    });
    assert_eq!(keys[0], keys[2]);
    keys.sort();
    assert_ne!(keys[0], keys[2]);
}

#[test]
fn stages_know_what_they_are_built_for() {
    let mut case = Case::new();
    let dockerfile = "FROM debian AS base\nFROM base AS wanted\nARG TARGETSTAGE TARGETARCH BUILDPLATFORM\nENV A=$TARGETSTAGE-$TARGETARCH-$BUILDPLATFORM\nRUN x";
    let env = |case: &Case| match case.last(dockerfile) {
        Action::Run { spec, .. } => spec.env.into_iter().find(|(name, _)| name == "A").unwrap().1,
        other => panic!("{other:?}"),
    };
    assert_eq!(env(&case), "default-amd64-linux/amd64");
    case.target = Some("wanted".to_owned());
    assert_eq!(env(&case), "wanted-amd64-linux/amd64");
}

#[test]
fn the_time_of_an_image_can_be_given() {
    let mut case = Case::new();
    let plain = case.plan("FROM debian");
    case.args.insert("SOURCE_DATE_EPOCH".to_owned(), "1700000000".to_owned());
    let dated = case.plan("FROM debian");
    assert_eq!((plain.epoch, dated.epoch), (None, Some(1_700_000_000)));
    assert_ne!(plain.content_key, dated.content_key);
    assert!(dated.warnings.is_empty());
    case.args.insert("SOURCE_DATE_EPOCH".to_owned(), "yesterday".to_owned());
    insta::assert_snapshot!(case.try_plan("FROM debian").unwrap_err(), @"Dockerfile:1: `SOURCE_DATE_EPOCH`: expected a time in whole seconds since 1970, found `yesterday`");
}

#[test]
fn buildkits_checks_are_made() {
    let case = Case::new();
    case.write("kept/a", "A").write("kept/b", "B").write(".dockerignore", "kept\n!kept/a");
    let report: Vec<String> = [
        "FROM debian AS Build",
        "FROM debian as build",
        "from debian AS build",
        "FROM debian\nRUN a \\\n\n  b",
        "FROM debian\nrun a\nRUN b\nRun c",
        "FROM debian AS a\nFROM a AS a",
        "FROM debian AS context",
        "FROM debian\nCMD run it",
        "FROM debian\nSHELL [\"/bin/bash\", \"-c\"]\nCMD run it",
        "FROM debian\nENTRYPOINT run it",
        "FROM debian\nMAINTAINER me",
        "ARG VRSION=12\nFROM debian${VERSION}",
        "FROM debian\nWORKDIR app",
        "FROM debian\nWORKDIR /app\nWORKDIR sub",
        "FROM debian\nENV FOO=1\nENV B=$FOOO",
        "FROM debian\nARG FOO\nENV B=$FOO C=${D:-d}",
        "FROM debian\nCMD [\"a\"]\nCMD [\"b\"]",
        "FROM debian\nENV a b\nLABEL c d",
        "FROM --platform=$TARGETPLATFORM debian",
        "FROM --platform=linux/amd64 debian",
        "FROM --platform=linux/amd64 debian AS build-amd64",
        "FROM debian\nARG API_KEY\nENV DB_PASSWORD=x PUBLIC_KEY=y",
        "ARG TAG\nFROM debian${TAG:+:x}",
        "FROM debian\nCOPY kept /k",
        "# check=experimental=all\nARG A=1\n# about it\nFROM debian AS build\n# A is this\nARG A",
        "ARG A=1\n# about it\nFROM debian AS build",
        "FROM debian\nEXPOSE 80/TCP",
        "FROM debian\nEXPOSE 127.0.0.1:80:80",
        "# check=skip=MaintainerDeprecated\nFROM debian\nMAINTAINER me\nCMD x",
        "# check=skip=all\nFROM debian\nMAINTAINER me\nCMD x",
    ]
    .into_iter()
    .map(|text| {
        let warnings: Vec<String> = case.warnings(text).iter().map(|line| format!("    {line}")).collect();
        format!("{}\n{}", text.replace('\n', " ⏎ "), warnings.join("\n"))
    })
    .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn a_default_that_names_no_image_is_told() {
    let mut case = Case::new();
    case.args.insert("TAG".to_owned(), "debian".to_owned());
    assert_eq!(
        case.warnings("ARG TAG\nFROM $TAG"),
        ["2:InvalidDefaultArgInFrom: Default value for ARG $TAG results in empty or invalid base image name"]
    );
}

#[test]
fn an_image_of_another_platform_is_told() {
    let mut case = Case::new();
    let config = json!({ "os": "linux", "architecture": "s390x", "config": {} });
    case.bases.insert("big".to_owned(), Base { id: "sha256:big".to_owned(), config, layers: Vec::new() });
    assert_eq!(
        case.warnings("FROM big"),
        [
            "1:InvalidBaseImagePlatform: Base image big was pulled with platform \"linux/s390x\", expected \"linux/amd64\" for current build"
        ]
    );
}

#[test]
fn only_what_is_built_has_to_be_of_this_platform() {
    let mut case = Case::new();
    let dockerfile = "FROM --platform=linux/arm64 debian AS arm\nFROM debian\nRUN x";
    assert_eq!(case.plan(dockerfile).steps, 2);
    case.target = Some("arm".to_owned());
    insta::assert_snapshot!(case.try_plan(dockerfile).unwrap_err(), @"Dockerfile:1: platform `linux/arm64` is not this machine's, which is `linux/amd64`");
}

#[test]
fn checks_can_be_made_errors() {
    let mut case = Case::new();
    insta::assert_snapshot!(case.rendered("# check=error=true\nFROM debian\nMAINTAINER me\nCMD x\n"));
    let plain = "FROM debian\nMAINTAINER me\n";
    case.args.insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), "error=true".to_owned());
    assert!(case.try_plan(plain).is_err());
    case.args
        .insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), "skip=MaintainerDeprecated;error=true".to_owned());
    assert!(case.warnings(plain).is_empty());
    case.args.insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), "eror=true".to_owned());
    assert!(case.try_plan(plain).is_err());
    // A build argument that nobody takes is none of BuildKit's checks.
    case.args = BTreeMap::from([("NOBODYS".to_owned(), "x".to_owned())]);
    assert_eq!(case.warnings("# check=error=true;skip=all\nFROM debian").len(), 1);
}

/// What a client says of a directory.
fn manifest(dir: &Path) -> ContextManifest {
    let mut manifest = ContextManifest::default();
    let mut queue = vec![dir.to_owned()];
    while let Some(next) = queue.pop() {
        for item in fs::read_dir(next).unwrap() {
            let (path, metadata) = (item.as_ref().unwrap().path(), item.unwrap().metadata().unwrap());
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let kind = if metadata.is_dir() {
                queue.push(path);
                ContextKind::Dir
            } else if metadata.is_symlink() {
                ContextKind::Link { target: fs::read_link(path).unwrap().to_str().unwrap().to_owned() }
            } else {
                let bytes = fs::read(&path).unwrap();
                if name.ends_with(".dockerignore") {
                    manifest.texts.insert(name.clone(), String::from_utf8(bytes.clone()).unwrap());
                }
                let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                ContextKind::File { size: bytes.len() as u64, digest }
            };
            manifest.entries.push(ContextEntry { path: name, mode: metadata.permissions().mode(), kind });
        }
    }
    manifest
}

#[test]
fn a_manifest_without_bytes_asks_for_them() {
    let case = Case::new();
    case.write("a", "not empty").write("b", "");
    let context = Context::of_manifest(&manifest(case.dir.path()), "Dockerfile").unwrap();
    assert!(case.plan_in("FROM debian\nADD b /b\nADD --unpack=false a /a\nCOPY a /a", &context).is_ok());
    let error = case.plan_in("FROM debian\nADD a /a", &context).unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::Conflict, "context_needed"));
    assert!(matches!(error, Error::ContextNeeded { path } if path == "a"));
}

#[test]
fn manifests_that_no_directory_has_are_refused() {
    let file = |path: &str, digest: &str| ContextEntry {
        path: path.to_owned(),
        mode: 0o644,
        kind: ContextKind::File { size: 1, digest: digest.to_owned() },
    };
    let good = "0".repeat(64);
    let table = [
        vec![file("/etc/passwd", &good)],
        vec![file("../up", &good)],
        vec![file("a/../b", &good)],
        vec![file("a//b", &good)],
        vec![file("", &good)],
        vec![file("no/dir", &good)],
        vec![file("a", &good), file("a/b", &good)],
        vec![file("a", &good), file("a", &good)],
        vec![file("a", "abc")],
        vec![file("a", &format!("+{}", "0".repeat(63)))],
    ];
    for entries in table {
        let manifest = ContextManifest { entries, texts: BTreeMap::new() };
        let error = Error::from(Context::of_manifest(&manifest, "Dockerfile").unwrap_err());
        assert_eq!((error.kind(), error.code()), (Kind::User, "build_context_unusable"), "{manifest:?}");
    }
}

/// A file of a random tree.
#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>, u32),
    Dir(u32),
    Link(String),
}

fn node() -> impl Strategy<Value = Node> {
    let mode = prop::sample::select(vec![0o644u32, 0o755, 0o600, 0o4755]);
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..4), mode).prop_map(|(bytes, mode)| Node::File(bytes, mode)),
        2 => prop::sample::select(vec![0o755u32, 0o700, 0o1777]).prop_map(Node::Dir),
        1 => prop::sample::select(vec!["a", "b/c", "../a", "."]).prop_map(|target| Node::Link(target.to_owned())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_manifest_has_the_keys_of_its_directory(
        tree in prop::collection::btree_map("[abc](/[abc]){0,2}", node(), 0..12),
        ignore in prop::collection::vec("(!?)(\\*\\*/)?[abc*](/[abc*])?", 0..4),
        source in prop::sample::select(vec![".", "a", "*", "--exclude=b . ", "--parents **/c", "b/c", "--parents a/./b"]),
    ) {
        let case = Case::new();
        for (path, node) in &tree {
            let path = case.dir.path().join(path);
            // What cannot stand beside an earlier one is left out.
            if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            let mode = match node {
                Node::File(bytes, mode) => fs::write(&path, bytes).map(|()| *mode),
                Node::Dir(mode) => fs::create_dir(&path).map(|()| *mode),
                Node::Link(target) => {
                    let _ = symlink(target, &path);
                    continue;
                }
            };
            if let Ok(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        case.write(".dockerignore", ignore.join("\n"));
        let dockerfile = format!("FROM debian\nCOPY {source} /d/\nRUN --mount=target=/t,source=a x");
        let Ok(context) = Context::of_manifest(&manifest(case.dir.path()), "Dockerfile") else {
            // Only a malformed ignore file is wrong both ways.
            prop_assert!(Context::open(case.dir.path(), "Dockerfile").is_err());
            return Ok(());
        };
        let opened = Context::open(case.dir.path(), "Dockerfile").unwrap();
        match (case.plan_in(&dockerfile, &opened), case.plan_in(&dockerfile, &context)) {
            (Ok(one), Ok(other)) => prop_assert_eq!(one.content_key, other.content_key),
            (Err(one), Err(other)) => prop_assert_eq!(one.to_api().message, other.to_api().message),
            (one, other) => prop_assert!(false, "{:?} {:?}", one, other),
        }
    }

    #[test]
    fn planning_never_panics(
        lines in prop::collection::vec(
            "(ARG|ENV|RUN|RUN --mount=|COPY|COPY --parents|ADD|LABEL|EXPOSE|WORKDIR|USER|STOPSIGNAL)[ =][-a<$\\{\\}\"'\\[\\],\\\\=: `/*.!]{0,20}",
            0..8,
        ),
    ) {
        let case = Case::new();
        case.write("a", "A");
        let _ = case.try_plan(&format!("FROM debian\n{}", lines.join("\n")));
    }
}

#[test]
fn a_secret_is_in_a_plan_by_its_name_only() {
    let mounts = Case::new().mounts("--mount=type=secret,id=token");
    assert!(matches!(&mounts[0].kind, MountKind::Secret { id, .. } if id == "token"));
}
