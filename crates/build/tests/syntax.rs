//! Dockerfiles as text: what they are read as, and how malformed ones are reported.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_build::fault::Fault;
use berth_build::graph::Graph;
use berth_build::instruction::instruction;
use berth_build::source::Source;
use berth_build::syntax::parse;
use proptest::prelude::*;

fn read(text: &str) -> Result<Graph, Box<Fault>> {
    Graph::read(&Arc::new(Source::new("Dockerfile", text)), &BTreeMap::new(), "linux/amd64")
}

/// The instructions of a text, one a line.
fn instructions(text: &str) -> String {
    let syntax = parse(&Arc::new(Source::new("Dockerfile", text))).unwrap();
    let read = syntax.statements.into_iter().map(|statement| {
        let (line, keyword) = (statement.line, statement.keyword.clone());
        let located = instruction(statement).unwrap();
        format!("{line} {keyword}: {:?}", located.instruction)
    });
    read.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_instruction_is_read() {
    insta::assert_snapshot!(instructions(
        r#"
from --platform=$BUILDPLATFORM debian:12 as Build
ARG A B=1 C="x y"
ENV a=b c='d e' f=g\ h
ENV old form of it
LABEL "a b"="c" d=e
WORKDIR /a b
USER app:staff
RUN echo "hi" && \
    # a comment between
    echo ho

RUN ["a", "b c"]
RUN [ "a", 'not json' ]
CMD ["x"]
ENTRYPOINT exec me
COPY --from=build --chown=1:2 --chmod=755 a b /c/
ADD ["a b", "c"]
EXPOSE 80 443/tcp
VOLUME ["/a", "/b"]
VOLUME /a /b
STOPSIGNAL 9
SHELL ["/bin/bash", "-c"]
HEALTHCHECK --interval=1m30s --timeout=3s --start-period=5s --start-interval=1s --retries=2 CMD ["x"]
HEALTHCHECK NONE
MAINTAINER some one
ONBUILD COPY . /x
"#
    ));
}

#[test]
fn heredocs_are_read() {
    insta::assert_snapshot!(instructions(
        "FROM x\nRUN <<EOF\nFROM y\n# kept\n\nEOF\nCOPY <<-'ab' <<two /d/\n\tx\n\tab\ny\ntwo\nRUN 3<<X cat $((1<<2))\nX\nRUN [\"<<no\"]\n"
    ));
}

#[test]
fn lines_continue_and_spans_survive() {
    let text = "# escape=`\n# syntax=docker/dockerfile:1\n\nFROM scratch\nCOPY a `\n  # comment\n\n  b `  \n  /c\nRUN x \\\n";
    let syntax = parse(&Arc::new(Source::new("Dockerfile", text))).unwrap();
    let read: Vec<(u32, &str)> =
        syntax.statements.iter().map(|statement| (statement.line, statement.text.as_str())).collect();
    assert_eq!(read, [(4, "FROM scratch"), (5, "COPY a   b   /c"), (10, "RUN x \\")]);
    let copy = &syntax.statements[1];
    let at = copy.text.find("/c").unwrap();
    let span = copy.span(at..at + 2);
    assert_eq!(&text[span.start..span.end], "/c");
}

#[test]
fn windows_line_ends_and_marks_do_no_harm() {
    let graph = read("\u{feff}FROM scratch\r\nRUN a \\\r\n  b\r\nCOPY <<E /x\r\nbody\r\nE\r\n").unwrap();
    assert_eq!(graph.stages[0].body[0].statement.text, "RUN a   b");
    assert_eq!(graph.stages[0].body[1].statement.heredocs[0].content, "body\r\n");
}

#[test]
fn stages_are_found_by_name_and_number() {
    let graph = read(
        "ARG base=debian\nFROM $base:12 AS One\nFROM one AS two\nFROM scratch\nCOPY --from=0 a b\nCOPY --from=Two a b\nCOPY --from=alpine:3 a b",
    )
    .unwrap();
    let roots: Vec<Vec<_>> =
        (0..3).map(|index| graph.roots(index).map(|(root, _)| format!("{root:?}")).collect()).collect();
    insta::assert_debug_snapshot!(roots);
    assert_eq!(graph.needed(2).into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(graph.needed(1).into_iter().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(
        (graph.target(None), graph.target(Some("ONE")), graph.target(Some("1"))),
        (Some(2), Some(0), Some(1))
    );
    assert_eq!((graph.target(Some("x")), graph.target(Some("3"))), (None, None));
}

#[test]
fn malformed_files_say_where_and_what() {
    let table = [
        "",
        "# only a comment\n",
        "RNU x",
        "FORM debian",
        "RUN x",
        "ENV a=b",
        "FROM",
        "FROM a b",
        "FROM a AS 1x",
        "FROM a\nENV",
        "FROM a\nENV x",
        "FROM a\nENV x=1 y",
        "FROM a\nENV =1",
        "FROM a\nLABEL x",
        "FROM a\nCOPY x",
        "FROM a\nCOPY [1, 2]",
        "FROM a\nCOPY x <<EOF\nEOF",
        "FROM a\nRUN",
        "FROM a\nRUN []",
        "FROM a\nRUN [1]",
        "FROM a\nRUN <<EOF\nno end",
        "FROM a\nSHELL /bin/sh",
        "FROM a\nHEALTHCHECK",
        "FROM a\nHEALTHCHECK CDM x",
        "FROM a\nHEALTHCHECK --interval=5 CMD x",
        "FROM a\nHEALTHCHECK --retries=-1 CMD x",
        "FROM a\nHEALTHCHECK --intervall=5s CMD x",
        "FROM a\nONBUILD FROM b",
        "FROM a\nONBUILD ONBUILD RUN x",
        "FROM a\nONBUILD RNU x",
        "FROM a\nCOPY --from=0 --from=0 a b",
        "FROM a\nCOPY --chown a b",
        "FROM a\nCOPY --from=0 a b",
        "FROM a AS me\nCOPY --from=me a b",
        "FROM \"a",
        "# escape=x\nFROM a",
        "# escape=`\n# escape=`\nFROM a",
        "FROM a\nRUN a \\\n  b\nBAD c",
    ];
    let mut report = String::new();
    for text in table {
        let fault = read(text).map(|_| ()).unwrap_err();
        let hint = fault.hint().map(|hint| format!(" [{hint}]")).unwrap_or_default();
        report.push_str(&format!("{}\n    {fault}{hint}\n", text.replace('\n', " ⏎ ")));
    }
    insta::assert_snapshot!(report);
}

#[test]
fn a_fault_shows_its_place() {
    let fault = read("FROM debian\nRUN a \\\n  b\nCOPY --chwon=x \\\n   a b\n").unwrap_err();
    let mut rendered = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut rendered, fault.as_ref()).unwrap();
    insta::assert_snapshot!(rendered);
}

#[test]
fn a_long_file_is_read_in_one_go() {
    // A reader that went back for every line's number would take minutes.
    let text = format!("FROM scratch\n{}", "ENV A=$B\n".repeat(9_999));
    let graph = read(&text).unwrap();
    assert_eq!(graph.stages[0].body.last().unwrap().statement.line, 10_000);
}

#[test]
fn what_no_person_writes_is_refused_where_it_becomes_too_much() {
    let said = |text: &str| {
        let fault = read(text).unwrap_err();
        fault.to_string()
    };
    let lines = said(&format!("FROM scratch\n{}", "ENV A=$B\n".repeat(10_000)));
    assert_eq!(
        lines,
        "Dockerfile:10001: this instruction is more than the 10,000 instructions that are taken"
    );
    let stages = said(&"FROM scratch\n".repeat(501));
    assert_eq!(stages, "Dockerfile:501: this stage is more than the 500 stages that are taken");
    let long = said(&format!("FROM scratch\n#{}", "x".repeat(4 << 20)));
    assert_eq!(long, "Dockerfile:1: a file of this length is more than the 4 MiB that are taken");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn reading_never_panics(text in "\\PC{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn reading_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn reading_what_looks_like_a_dockerfile_never_panics(
        lines in prop::collection::vec(
            "(FROM|ARG|ENV|RUN|RUN --mount=|COPY|ADD|COPY --|LABEL|# check=|SHELL|USER|HEALTHCHECK|ONBUILD RUN|EXPOSE|VOLUME|# escape)[ =][-a<$\\{\\}\"'\\[\\],\\\\=: `äE\\t]{0,30}",
            0..8,
        ),
    ) {
        let text = lines.join("\n");
        for text in [format!("FROM a\n{text}"), text] {
            if let Err(fault) = read(&text) {
                let _ = (fault.to_string(), fault.line());
            }
        }
    }
}
