"""ADD: like COPY, and archives, URLs and git."""

from corpus import case, d, documented, f, failing, l, scenario

ARCHIVE = """
mkdir -p s/d; echo a > s/a; chmod 4755 s/a; ln -s a s/l; ln s/a s/h; chown 12:34 s/d; chmod 2770 s/d; echo x > s/d/x
touch -d @1000 s/a s/d/x; touch -d @2000 s/d s; tar -C s --sort=name -cf t.tar .
"""
for name, make in {
    "plain": "cp t.tar t", "gzip": "gzip -n < t.tar > t", "bzip2": "bzip2 < t.tar > t", "xz": "xz < t.tar > t",
}.items():
    case(
        f"archive-{name}", "FROM base\nADD t /x/\n", ARCHIVE + make,
        instead={"/x": d()}, because="what an archive says of its own top is not for a directory that is there; buildah takes it over",
    )
documented(
    "archive-zstd", "buildah 1.28 does not take zstd apart", "FROM base\nADD t.zst /x/\n",
    "echo a > a; touch -d @9 a; tar --owner=0 --group=0 -cf - a | zstd -q > t.zst", tree={"/x": d(), "/x/a": f("a\n", more="time=9")},
)
documented(
    "archive-keeps-owners", "buildah gives them to --chown's user", "FROM base\nADD --chown=9:9 t.tar /x/\n",
    "echo a > a; tar --owner=5 --group=6 -cf t.tar a", tree={"/x": d(0o755, "9:9"), "/x/a": f("a\n", 0o644, "5:6")},
)
case("copy-takes-nothing-apart", "FROM base\nCOPY t.tar /x/\n", "printf 'not really' > t.tar")
case("not-an-archive", "FROM base\nADD nt.tar.gz /x/\nADD f.gz /y/\n", "echo not > nt.tar.gz; echo plain | gzip -n > f.gz")
case("file-and-directory", "FROM base\nADD a.txt /f\nADD d /d\nADD a.txt d /both/\n", "echo a > a.txt; mkdir d; echo b > d/b")
case("archive-in-directory-stays", "FROM base\nADD d /d\n", "mkdir d; printf x > d/x; tar --mtime=@5 -cf /dev/null d; cp d/x d/t.tar")
case("archives-by-wildcard", "FROM base\nADD *.tar /x/\n", "echo 1 > 1; echo 2 > 2; tar --owner=0 --group=0 -cf a.tar 1; tar --owner=0 --group=0 -cf b.tar 2")
case("archive-over-existing", "FROM base\nADD t.tar /etc\n", "mkdir -p e/conf.d; echo m > e/motd; echo b > e/conf.d/b; chmod 700 e/conf.d; tar -C e --owner=0 --group=0 -cf t.tar conf.d motd")
case("archive-to-missing-directory", "FROM base\nADD t.tar /n/e/w\n", "echo a > a; tar --owner=0 --group=0 -cf t.tar a")
case("archive-with-parents-only-named", "FROM base\nADD t.tar /x\n", "mkdir -p p/q; echo r > p/q/r; chmod 750 p; tar --owner=0 --group=0 -cf t.tar p/q/r")
case("archive-long-names", "FROM base\nADD t.tar /x\n", "n=$(printf 'n%.0s' $(seq 150)); mkdir $n; echo a > $n/$n; ln -s $n/$n l; tar --owner=0 --group=0 -cf t.tar $n l")
documented(
    "archive-that-tells-of-its-top", "buildah takes over what it says",
    "FROM base\nRUN mkdir /x\nADD t.tar /x\nADD t.tar /new\n", "mkdir s; echo a > s/a; chmod 710 s; chown 5:6 s; chown 0:0 s/a; tar -C s -cf t.tar .",
    tree={"/x": d(), "/x/a": f("a\n"), "/new": d(), "/new/a": f("a\n")},
)
case("archive-pax", "FROM base\nADD t.tar /x\n", "echo a > ünï; tar --format=pax --owner=70000 --group=200000 --mtime=@7.5 -cf t.tar ünï")
case("chmod", "FROM base\nADD --chmod=711 a /x\n", "echo a > a")
case("chown", "FROM base\nADD --chown=bob:adm d /d\n", "mkdir d; echo a > d/a")
case("empty-archive", "FROM base\nADD t.tar /x/\n", "tar -cf t.tar -T /dev/null")
documented("heredoc", "buildah 1.28 has no here-documents", "FROM base\nADD <<A /a/b\nx\nA\n", tree={"/a": d(), "/a/b": f("x\n")})
documented("exclude", "buildah 1.28 has no --exclude", "FROM base\nADD --exclude=b d /d\n", "mkdir d; echo a > d/a; echo b > d/b", tree={"/d": d(), "/d/a": f("a\n")})
documented("link", "buildah 1.28 has no --link", "FROM base\nADD --link t.tar /x/\n", "echo a > a; tar --owner=0 --group=0 -cf t.tar a", tree={"/x": d(), "/x/a": f("a\n")})
documented("unpack-false", "buildah 1.28 has no --unpack", "FROM base\nADD --unpack=false t.tar /x/\n", "printf 'abc' > t.tar", tree={"/x": d(), "/x/t.tar": f("abc")})

failing("archive-cut-off", "FROM base\nADD t.tar.gz /x/\n", 2, "", "seq 100000 > a; tar -cz a | head -c 20000 > t.tar.gz")
failing("missing", "FROM base\nADD nothing /x\n", 2, "nothing")
failing("checksum-of-a-file", "FROM base\nADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 a /x\n", 2, "(?i)checksum", "touch a")
failing("url-without-name", "FROM base\nADD http://127.0.0.1:9/ /x/\n", 2, "")
failing("checksum-malformed", "FROM base\nADD --checksum=md5:00 http://127.0.0.1:9/x /x\n", 2, "")


@scenario("url")
def url(w):
    with w.server({"/file.txt": b"served\n", "/q": b"q\n"}) as at:
        w.dockerfile(f"FROM base\nADD {at}/file.txt /d/\nADD {at}/q /named\nADD --chmod=755 --chown=bob {at}/q /flags\n")
        built = w.build()
        tree = w.tree(built)
        assert tree["/d/file.txt"] == f("served\n", 0o600), tree["/d/file.txt"]
        assert tree["/named"] == f("q\n", 0o600), tree["/named"]
        assert tree["/flags"] == f("q\n", 0o755, "1500:2000"), tree["/flags"]
        w.cached(w.build())


@scenario("url-changed")
def changed(w):
    pages = {"/f": b"one"}
    with w.server(pages) as at:
        w.dockerfile(f"FROM base\nRUN UNIQUE /mark1\nADD {at}/f /f\nRUN UNIQUE /mark2\n")
        first = w.build()
        pages["/f"] = b"two"
        second = w.build()
        w.ran_again(first, second, "/mark2")
        assert w.text(second, "/f") == "two"


@scenario("url-checksum")
def checksum(w):
    import hashlib

    with w.server({"/f": b"bytes"}) as at:
        right = hashlib.sha256(b"bytes").hexdigest()
        w.dockerfile(f"FROM base\nADD --checksum=sha256:{right} {at}/f /f\n")
        assert w.text(w.build(), "/f") == "bytes"
        w.dockerfile(f"FROM base\nLABEL a=b\nADD --checksum=sha256:{'0' * 64} {at}/f /f\n")
        built = w.try_build()
        assert built.code in (64, 66) and "Dockerfile:3" in built.output and right in built.output, built.output


@scenario("url-archive-is-not-taken-apart")
def archive(w):
    w.sh("echo a > a; tar -cf ../t.tar a")
    data = (w.work / "t.tar").read_bytes()
    with w.server({"/t.tar": data}) as at:
        w.dockerfile(f"FROM base\nADD {at}/t.tar /x/\nRUN UNIQUE /mark\n")
        assert w.tree(w.build())["/x/t.tar"].startswith(f"f 600 0:0 {len(data)} sha256:")


@scenario("url-not-found")
def not_found(w):
    with w.server({}) as at:
        w.dockerfile(f"FROM base\nADD {at}/nothing.txt /x\n")
        built = w.try_build()
        assert built.result is None and "404" in built.output and "Dockerfile:2" in built.output, built.output


@scenario("git")
def git(w):
    w.sh("git init -q -b main; git config user.email a@b; git config user.name n; echo 1 > f; mkdir sub; echo s > sub/s; ln -s f l; git add .; git commit -qm 1; git tag v1; "
         "echo 2 > f; git commit -qam 2; git update-server-info", where=w.fresh("repo"))
    pages = w.files_below(w.work / "repo" / ".git", "/r.git")
    with w.server(pages) as at:
        w.dockerfile(f"FROM base\nADD {at}/r.git /main\nADD {at}/r.git#v1 /tag\nADD {at}/r.git#v1:sub /sub\n")
        tree = w.tree(w.build())
        assert tree["/main/f"] == f("2\n") and tree["/tag/f"] == f("1\n"), (tree.get("/main/f"), tree.get("/tag/f"))
        assert tree["/sub/s"] == f("s\n") and tree["/main/l"] == l("f"), (tree.get("/sub/s"), tree.get("/main/l"))
        assert "/main/.git" not in tree


@scenario("url-that-cannot-be-reached-is-not-the-dockerfiles-fault")
def unreachable(w):
    w.dockerfile("FROM base\nADD http://127.0.0.1:9/x /x\n")
    built = w.try_build()
    assert built.code not in (0, 64, 66), built.code
    assert "Dockerfile:2" in built.output and "127.0.0.1:9" in built.output, built.output
