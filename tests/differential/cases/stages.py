"""FROM: stages by name and number, targets, scratch, what is not built."""

from corpus import case, documented, f, failing, scenario

case(
    "copy-from",
    r"""
FROM base AS base1
RUN mkdir -p /out/sub/deep && echo a > /out/a && echo b > /out/sub/b && ln -s a /out/rel && ln -s /out/sub /out/abs \
    && ln /out/a /out/hard && chown -R 33:44 /out/sub && chmod 2750 /out/sub && chmod 4755 /out/a \
    && mkdir /out/empty && touch "/out/sp ace" && echo dot > /out/.dot && ln -s nowhere /out/dangling
FROM base1 AS second
RUN echo second > /out/second && rm /out/sub/b
FROM base AS unused
RUN exit 1
FROM base
COPY --from=base1 /out /o1
COPY --from=base1 /out/ /o2/
COPY --from=0 /out/sub /o3
COPY --from=second /out/. /o4/
COPY --from=base1 /out/a /out/second* /out/sub/b /o5/
COPY --from=base1 out/a /o6
COPY --from=base1 --chown=bin:adm /out/sub /o7
COPY --from=base1 /out/rel /o8
COPY --from=base1 /out/abs /o9
COPY --from=base1 /out/abs/ /o10/
COPY --from=base1 /out/s* /o11/
COPY --from=base1 --chmod=700 /out/sub /o12
COPY --from=base1 ["/out/sp ace", "/o13/"]
""",
)
case("copy-from-image", "FROM scratch\nCOPY --from=base /etc/passwd /etc/group /e/\nCOPY --from=base:latest /usr/share/doc /doc\n")
case("copy-from-number", "FROM base\nRUN echo 0 > /n\nFROM base\nRUN echo 1 > /n\nFROM scratch\nCOPY --from=0 /n /a\nCOPY --from=1 /n /b\n")
documented(
    "copy-from-name-case", "buildah compares names as they stand",
    "FROM base AS Build\nRUN echo x > /x\nFROM scratch\nCOPY --from=build /x /a\nCOPY --from=BUILD /x /b\n",
    tree={"/a": f("x\n"), "/b": f("x\n")}, config={"Cmd": None},
)
case("from-stage", "FROM base AS a\nENV A=1\nWORKDIR /w\nUSER bob\nCMD [\"a\"]\nRUN echo a > /tmp/a\nFROM a AS b\nRUN echo $A; pwd > /tmp/p\nLABEL b=1\n")
case("from-stage-twice", "FROM base AS a\nRUN echo a > /a\nFROM a AS b\nRUN echo b > /b\nFROM a AS c\nRUN echo c > /c\nFROM a\nCOPY --from=b /b /\nCOPY --from=c /c /\n")
case("name-hides-image", "FROM base AS other\nRUN echo mine > /m\nFROM other AS base2\nRUN echo 2 >> /m\nFROM base2\nRUN echo 3 >> /m\n")
case(
    "target", "FROM base AS one\nRUN echo 1 > /one\nENTRYPOINT [\"/one\"]\nFROM one AS two\nRUN echo 2 > /two\nCMD [\"two\"]\nFROM base AS three\nRUN false\n",
    args=["--target", "two"],
)
documented(
    "target-number", "buildah builds stages by number, but counts its own way",
    "FROM base\nLABEL n=0\nFROM base\nLABEL n=1\nFROM base\nLABEL n=2\n", args=["--target", "1"], config={"Labels": {"n": "1"}},
)
documented("target-name-case", "buildah compares names as they stand", "FROM base AS One\nLABEL n=1\nFROM base\nLABEL n=2\n", args=["--target", "oNE"], config={"Labels": {"n": "1"}})
case("scratch-copy", "FROM base AS b\nRUN mkdir -p /r/etc && cp /etc/passwd /r/etc/ && echo hi > /r/hi\nFROM scratch\nCOPY --from=b /r/ /\nCOPY a /x/\nENV A=1\nUSER 12:34\nENTRYPOINT [\"/hi\"]\n", "echo a > a")
case("scratch-nothing", "FROM scratch\nLABEL a=b\n")
case("scratch-workdir", "FROM scratch\nWORKDIR /a/b\nCOPY a .\n", "echo a > a")
case("scratch-user-number", "FROM scratch\nUSER 5:6\nCOPY --chown=7:8 a /\n", "echo a > a")
case("only-arg-and-from", "ARG X\nFROM base\n")
case("platform-flag", "FROM --platform=linux/amd64 base AS a\nRUN echo a > /a\n")
failing("missing-stage", "FROM base\nCOPY --from=7 /a /b\n", 2, "")
failing("itself", "FROM base AS me\nCOPY --from=me /etc/motd /m\n", 2, "")
failing("target-missing", "FROM base AS alpha\n", None, "(?s)beta.*", args=["--target", "beta"])
failing("unused-stage-is-still-parsed", "FROM base AS a\nNOSUCH x\nFROM base\n", 2, "NOSUCH")
failing("name-bad", "FROM base AS 1up\n", 1, "")
failing("from-extra-words", "FROM base AS a b\n", 1, "")
failing("from-nothing", "FROM\n", 1, "")
failing("platform-other", "FROM --platform=windows/amd64 base\nRUN true\n", 1, "windows")
failing("missing-source-in-stage", "FROM base AS a\nFROM base\nCOPY --from=a /no/such /x\n", 3, "/?no/such")


@scenario("unused-stages-are-not-built")
def unused(w):
    w.dockerfile("FROM base AS fails\nRUN exit 3\nFROM fails AS too\nRUN exit 4\nFROM base AS wanted\nRUN UNIQUE /mark\nFROM wanted\nCOPY --from=wanted /mark /copy\n")
    built = w.build()
    assert built.result["steps"] <= 5, built.result["steps"]
    assert "exit 3" not in built.output and "exit 4" not in built.output, built.output
    assert w.text(built, "/mark") == w.text(built, "/copy")


@scenario("stages-run-side-by-side")
def parallel(w):
    # Each waits for the other's message, which it only gets when both run at once.
    rendezvous = "for i in $(seq 300); do {there} && exit 0; sleep 0.1; done; exit 9"
    w.dockerfile(f"""
FROM base AS one
RUN --mount=type=cache,id={w.name},target=/c touch /c/one; {rendezvous.format(there="test -e /c/two")}
RUN UNIQUE /mark1
FROM base AS two
RUN --mount=type=cache,id={w.name},target=/c touch /c/two; {rendezvous.format(there="test -e /c/one")}
RUN UNIQUE /mark2
FROM base
COPY --from=one /mark1 /
COPY --from=two /mark2 /
""")
    built = w.build()
    assert w.text(built, "/mark1") != w.text(built, "/mark2")


@scenario("failure-of-one-stage-is-the-builds")
def fails(w):
    w.dockerfile("FROM base AS one\nRUN sleep 0.2; echo told-by-one >&2; exit 7\nFROM base AS two\nRUN sleep 1\nFROM base\nCOPY --from=one /etc /1\nCOPY --from=two /etc /2\n")
    built = w.try_build()
    assert built.code in (64, 66), (built.code, built.output)
    assert "told-by-one" in built.output and "Dockerfile:2" in built.output, built.output
    assert "7" in built.output


@scenario("target-builds-no-more")
def target(w):
    w.dockerfile("FROM base AS a\nRUN UNIQUE /mark\nFROM a AS b\nRUN exit 5\n")
    first = w.build("--target", "a")
    w.cached(w.build("--target", "a"))
    assert w.try_build().result is None
    assert w.tree(first)["/mark"]
