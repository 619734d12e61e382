"""What is found in the cache: everything that only looks different, and nothing that is."""

from corpus import scenario

# Each UNIQUE is a command that leaves something new, so a mark that stayed the same was not made again.
STEPS = "FROM base\nRUN UNIQUE /mark1\nCOPY a /a\nRUN UNIQUE /mark2\nCOPY b /b\nRUN UNIQUE /mark3\n"


def begin(w, dockerfile=STEPS):
    w.sh("echo a > a; echo b > b; mkdir d; echo x > d/x; ln -s x d/l")
    w.dockerfile(dockerfile)
    return w.build()


@scenario("again")
def again(w):
    first = begin(w)
    second = w.build()
    w.cached(second)
    assert first.id == second.id and first.result["content_key"] == second.result["content_key"]


@scenario("times-do-not-matter")
def times(w):
    first = begin(w)
    w.sh("touch -d @1234567 a b d Dockerfile")
    second = w.build()
    w.cached(second)
    assert first.id == second.id


@scenario("mode-matters-from-there-on")
def mode(w):
    first = begin(w)
    w.sh("chmod 755 b")
    second = w.build()
    w.ran_again(first, second, "/mark3")
    assert w.tree(second)["/b"].startswith("f 755 ")


@scenario("bytes-matter-from-there-on")
def bytes_(w):
    first = begin(w)
    w.sh("echo A > a")
    w.ran_again(first, w.build(), "/mark2", "/mark3")


@scenario("back-to-what-it-was")
def back(w):
    first = begin(w)
    w.sh("echo A > a")
    w.build()
    w.sh("echo a > a")
    second = w.build()
    w.cached(second)
    assert first.id == second.id


@scenario("owner-does-not-matter")
def owner(w):
    first = begin(w)
    w.sh("chown 5:6 a b")
    w.cached(w.build())
    assert w.build().id == first.id


@scenario("name-in-the-context-matters-for-a-directory")
def rename(w):
    first = begin(w, "FROM base\nRUN UNIQUE /mark1\nCOPY d /d\nRUN UNIQUE /mark2\n")
    w.sh("mv d/x d/y")
    w.ran_again(first, w.build(), "/mark2")


@scenario("link-target-matters")
def link(w):
    first = begin(w, "FROM base\nCOPY d /d\nRUN UNIQUE /mark\n")
    w.sh("ln -sf y d/l")
    w.ran_again(first, w.build(), "/mark")


@scenario("empty-directory-matters")
def empty(w):
    first = begin(w, "FROM base\nCOPY d /d\nRUN UNIQUE /mark\n")
    w.sh("mkdir d/new")
    w.ran_again(first, w.build(), "/mark")


@scenario("files-that-nothing-copies-do-not-matter")
def other_files(w):
    first = begin(w)
    w.sh("echo new > unused; rm -r d")
    second = w.build()
    w.cached(second)
    assert first.id == second.id


@scenario("ignored-files-do-not-matter")
def ignored(w):
    w.sh("echo '*.log\nlater.d' > .dockerignore; echo 1 > x.log")
    first = begin(w, "FROM base\nCOPY . /c\nRUN UNIQUE /mark\n")
    w.sh("echo 2 > x.log; echo 3 > y.log; mkdir later.d; touch later.d/x")
    second = w.build()
    w.cached(second)
    assert first.id == second.id


@scenario("two-directories-of-equal-content")
def directories(w):
    first = begin(w)
    other = w.fresh("other-name")
    w.sh(f"cp -r . {other}")
    second = w.build(context=other)
    w.cached(second)
    assert first.id == second.id and first.result["content_key"] == second.result["content_key"]


@scenario("comments-and-layout-do-not-matter")
def layout(w):
    first = begin(w, "FROM base\nRUN UNIQUE /mark && \\\n  echo two\nCOPY a /a\n")
    w.dockerfile("# a comment\nFROM base\n\n# another\nRUN UNIQUE /mark && \\\n# inside\n  echo two\nCOPY    a   /a\n")
    second = w.build()
    w.cached(second)
    assert first.id == second.id


@scenario("unused-argument-does-not-matter")
def unused_argument(w):
    w.dockerfile("FROM base\nRUN UNIQUE /mark1\nARG A=1\nCOPY Dockerfile /x\n")
    first = w.build("--build-arg", "A=1")
    w.ran_again(first, w.build("--build-arg", "A=2"))


@scenario("undeclared-argument-does-not-matter")
def undeclared(w):
    w.dockerfile("FROM base\nRUN UNIQUE /mark\n")
    first = w.build()
    w.ran_again(first, w.build("--build-arg", "NOBODY=2"))


@scenario("argument-of-a-run-matters")
def argument(w):
    w.dockerfile("FROM base\nRUN UNIQUE /mark1\nARG A\nRUN UNIQUE /mark2\n")
    first = w.build("--build-arg", "A=1")
    w.cached(w.build("--build-arg", "A=1"))
    w.ran_again(first, w.build("--build-arg", "A=2"), "/mark2")


@scenario("argument-of-another-stage-does-not-matter")
def argument_elsewhere(w):
    w.dockerfile("FROM base AS one\nARG A\nRUN echo $A > /a\nFROM base\nRUN UNIQUE /mark\nCOPY --from=one /a /a\n")
    first = w.build("--build-arg", "A=1")
    second = w.build("--build-arg", "A=2")
    w.ran_again(first, second)
    assert w.text(second, "/a") == "2\n"


@scenario("environment-matters")
def environment(w):
    w.dockerfile("FROM base\nENV A=1\nRUN UNIQUE /mark\n")
    first = w.build()
    w.dockerfile("FROM base\nENV A=2\nRUN UNIQUE /mark\n")
    w.ran_again(first, w.build(), "/mark")


@scenario("user-and-workdir-and-shell-matter")
def surroundings(w):
    # Every one of these is the same command, in other surroundings.
    seen = set()
    for before in ("", "USER bob", "WORKDIR /srv", 'SHELL ["/bin/sh", "-ec"]', "USER 0"):
        w.dockerfile(f"FROM base\nRUN chmod 1777 /mnt\n{before}\nRUN UNIQUE /mnt/mark\n")
        seen.add(w.text(w.build(), "/mnt/mark"))
    assert len(seen) == 5, seen


@scenario("labels-do-not-matter-to-a-run")
def labels(w):
    w.dockerfile("FROM base\nLABEL a=1\nEXPOSE 80\nCMD [\"x\"]\nRUN UNIQUE /mark\n")
    first = w.build()
    w.dockerfile("FROM base\nLABEL a=2\nEXPOSE 81\nCMD [\"y\"]\nRUN UNIQUE /mark\n")
    second = w.build()
    w.ran_again(first, second)
    assert w.config(second)["Labels"] == {"a": "2"} and w.config(second)["Cmd"] == ["y"]


@scenario("changed-base")
def base(w):
    name = f"local/{w.name}:1"
    inner = w.fresh("inner")
    for text in ("one", "two"):
        (inner / "Dockerfile").write_text(f"FROM base\nRUN echo {text} > /base\n")
        w.build("-t", name, context=inner)
        w.dockerfile(f"FROM {name}\nRUN UNIQUE /mark\n")
        built = w.build()
        assert w.text(built, "/base") == text + "\n"
        if text == "one":
            first = built
    w.ran_again(first, built, "/mark")


@scenario("base-of-another-name-is-the-same")
def base_name(w):
    inner = w.fresh("inner")
    (inner / "Dockerfile").write_text("FROM base\nRUN echo x > /base\n")
    w.build("-t", f"local/{w.name}:1", "-t", f"local/{w.name}:2", context=inner)
    w.dockerfile(f"FROM local/{w.name}:1\nRUN UNIQUE /mark\n")
    first = w.build()
    w.dockerfile(f"FROM local/{w.name}:2\nRUN UNIQUE /mark\n")
    w.ran_again(first, w.build())


@scenario("no-cache")
def no_cache(w):
    first = begin(w)
    second = w.build("--no-cache")
    w.ran_again(first, second, "/mark1", "/mark2", "/mark3")
    assert second.result["cached_steps"] < second.result["steps"]
    # What was made last is what is found from then on.
    third = w.build()
    w.cached(third)
    w.ran_again(second, third)


@scenario("failed-step-is-not-kept")
def failed(w):
    w.dockerfile(f"FROM base\nRUN UNIQUE /mark\nRUN --mount=type=cache,id={w.name},target=/c test -e /c/again || {{ touch /c/again; exit 1; }}\n")
    failed = w.try_build()
    assert failed.code in (64, 66), failed.output
    built = w.build()
    assert w.tree(built)["/mark"]


@scenario("steps-before-a-failure-are-kept")
def before_failure(w):
    w.dockerfile("FROM base\nRUN UNIQUE /mark\nRUN exit 1\n")
    assert w.try_build().result is None
    w.dockerfile("FROM base\nRUN UNIQUE /mark\n")
    w.cached(w.build())


@scenario("copy-from-stage-looks-at-content")
def stage_content(w):
    w.dockerfile("FROM base AS one\nRUN echo same > /x; UNIQUE /other\nFROM base\nCOPY --from=one /x /x\nRUN UNIQUE /mark\n")
    first = w.build()
    w.dockerfile("FROM base AS one\nRUN true; echo same > /x; UNIQUE /other\nFROM base\nCOPY --from=one /x /x\nRUN UNIQUE /mark\n")
    w.ran_again(first, w.build())


@scenario("stage-shared-by-two-dockerfiles")
def shared(w):
    w.dockerfile("FROM base AS deps\nRUN UNIQUE /mark\nFROM deps\nRUN echo one > /o\n")
    first = w.build()
    w.dockerfile("FROM base AS other-name\nRUN UNIQUE /mark\nFROM other-name\nRUN echo two > /o\n", "Second")
    w.ran_again(first, w.build("-f", str(w.context / "Second")))


@scenario("order-of-build-arguments-does-not-matter")
def order(w):
    w.dockerfile("FROM base\nARG A\nARG B\nRUN UNIQUE /mark\n")
    first = w.build("--build-arg", "A=1", "--build-arg", "B=2")
    second = w.build("--build-arg", "B=2", "--build-arg", "A=1")
    w.cached(second)
    assert first.result["content_key"] == second.result["content_key"]


@scenario("tags-do-not-matter")
def tags(w):
    w.dockerfile("FROM base\nRUN UNIQUE /mark\n")
    first = w.build("-t", f"local/{w.name}:a")
    second = w.build("-t", f"local/{w.name}:b")
    w.cached(second)
    assert first.id == second.id and len([tag for tag in second.result["image"]["references"] if w.name in tag]) == 2


@scenario("heredoc-bytes-matter")
def heredoc(w):
    w.dockerfile("FROM base\nCOPY <<A /a\none\nA\nRUN UNIQUE /mark\n")
    first = w.build()
    w.cached(w.build())
    w.dockerfile("FROM base\nCOPY <<A /a\ntwo\nA\nRUN UNIQUE /mark\n")
    w.ran_again(first, w.build(), "/mark")


@scenario("copy-flags-matter")
def flags(w):
    ids = set()
    for flag in ("", "--chown=5", "--chmod=700", "--chown=5 --chmod=700"):
        w.sh("echo a > a")
        w.dockerfile(f"FROM base\nCOPY {flag} a /a\n")
        ids.add(w.tree(w.build())["/a"])
    assert len(ids) == 4, ids


@scenario("linked-copy-outlives-what-is-below")
def linked(w):
    w.sh("echo a > a")
    w.dockerfile("FROM base\nRUN echo one > /below\nCOPY --link a /a\n")
    w.build()
    w.dockerfile("FROM base\nRUN echo two > /below\nCOPY --link a /a\n")
    built = w.build()
    assert w.text(built, "/below") == "two\n" and w.text(built, "/a") == "a\n"
