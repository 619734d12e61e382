"""COPY: where things land, what they become, every flag."""

from corpus import case, d, documented, f, failing, l

case(
    "forms",
    r"""
FROM base
WORKDIR /w
COPY a.txt b.txt ./
COPY a.txt newname
COPY a.txt /abs/dir/
COPY a.txt /abs/deep/file
COPY dir dircontents
COPY dir/ /dc2/
COPY dir /dc3/
COPY . all/
COPY *.txt globbed/
COPY d*/s?b/[xy] /globdeep/
COPY .dot* /dots/
COPY ["sp ace", "/js on/"]
COPY link /linkfile
COPY dirlink /dirlinkdir
COPY dir /usr
COPY a.txt /tmp
COPY exec /usr/local/bin/
COPY ./dir/../a.txt /cleaned
COPY dir/sub dir/.hid /both/
COPY empty /emptydir
COPY emptyfile /
""",
    """
    echo a > a.txt; echo b > b.txt; mkdir -p dir/sub dir/.hid empty; echo x > dir/sub/x; echo y > dir/sub/y
    echo z > dir/sub/z; echo h > dir/.hid/h; echo d > .dot1; echo d > .dotfile; touch 'sp ace' emptyfile
    ln -s a.txt link; ln -s dir dirlink; ln -s ../a.txt dir/up; ln -s nowhere dir/dangling; ln -s /etc/passwd dir/abs
    echo '#!/bin/sh' > exec; chmod 755 exec; chmod 600 b.txt; chmod 711 dir/sub
    """,
)
case("file", "FROM base\nCOPY a /x\n", "echo a > a")
case("file-into-directory", "FROM base\nCOPY a /opt\nCOPY a /srv/\n", "echo a > a")
case("file-makes-parents", "FROM base\nCOPY a /n/e/w/x\nCOPY a /n/o/\n", "echo a > a")
case("file-relative", "FROM base\nWORKDIR /w/x\nCOPY a .\nCOPY a b/c\nCOPY a ../up\nCOPY a ./\n", "echo a > a")
case("directory-contents", "FROM base\nCOPY d /x\n", "mkdir d; echo a > d/a; mkdir d/e")
case("directory-merges", "FROM base\nCOPY d /etc\n", "mkdir -p d/conf.d; chmod 777 d d/conf.d; echo b > d/conf.d/b; echo m > d/motd")
case("dot", "FROM base\nWORKDIR /w\nCOPY . .\n", "mkdir -p a/b; echo c > a/b/c")
case("several-to-directory", "FROM base\nCOPY a b c /x/\n", "echo a > a; echo b > b; mkdir c; echo d > c/d")
case("wildcards", "FROM base\nCOPY a* /1/\nCOPY ?b /2/\nCOPY [a-b]? /3/\nCOPY [^a]b /4/\nCOPY */x /5/\n", "for n in aa ab bb cb; do echo $n > $n; done; mkdir d e; echo d > d/x; echo e > e/x")
documented(
    "wildcard-escaped", "buildah stumbles over a name that is a pattern",
    "FROM base\nCOPY a[[]0].txt /x\nCOPY [\"b[*]\", \"/y\"]\n", "echo 1 > 'a[0].txt'; echo 2 > a0.txt; echo 3 > 'b*'; echo 4 > bb",
    tree={"/x": f("1\n"), "/y": f("3\n")},
)
case("json-form", 'FROM base\nCOPY ["a b", "c", "/t o/"]\n', "echo 1 > 'a b'; echo 2 > c")
case("symlink-kept-in-directory", "FROM base\nCOPY d /d\n", "mkdir d; ln -s x d/l; ln -s /etc/passwd d/abs; ln -s ../../up d/up")
case("symlink-as-source-followed", "FROM base\nCOPY l /f\nCOPY dl /d\nCOPY chain /c\n", "echo a > a; ln -s a l; ln -s l chain; mkdir d; echo x > d/x; ln -s d dl")
case("into-symlinked-directory", "FROM base\nRUN mkdir /real && ln -s /real /link && ln -s ../real /opt/rel\nCOPY a /link/\nCOPY a /opt/rel/b\nCOPY d /link\n", "echo a > a; mkdir d; echo x > d/x")
case("over-symlink-to-file", "FROM base\nRUN echo old > /t && ln -s t /l\nCOPY a /l\n", "echo a > a")
case(
    "over-things",
    r"""
FROM base
RUN mkdir -p /t/sub /t/isdir /t/keep && chmod 700 /t /t/sub && chown 7:8 /t/sub && echo old > /t/f && chmod 600 /t/f \
    && ln -s /t/keep /t/tolink && echo k > /t/keep/k && ln -s f /t/flink && echo wasfile > /t/wasfile
COPY ctx /t
COPY f2 /t/f
COPY f2 /t/flink
COPY f2 /t/isdir
COPY --chown=3:4 ctx/sub /t/sub
""",
    "mkdir -p ctx/sub; chmod 755 ctx ctx/sub; echo new > ctx/f; chmod 644 ctx/f; echo s > ctx/sub/s; echo 2 > f2",
)
# buildah replaces the file; BuildKit says "cannot copy to non-directory".
failing("subdirectory-over-file", "FROM base\nRUN mkdir /t && echo x > /t/x\nCOPY d /t\n", 3, "cannot copy a directory onto", "mkdir -p d/x; echo a > d/x/a")
case(
    "modes", "FROM base\nCOPY modes /m\n",
    "mkdir modes; cd modes; for m in 400 444 600 666 700 777 1777 000; do echo $m > f$m; chmod $m f$m; done; mkdir sticky priv; chmod 1777 sticky; chmod 700 priv",
)
documented(
    "modes-set-id", "buildah clears the set-id bits of a context's files",
    "FROM base\nCOPY m /m\n", "mkdir m; echo u > m/u; chmod 4755 m/u; echo g > m/g; chmod 2755 m/g; mkdir m/d; chmod 2775 m/d",
    tree={"/m": d(), "/m/u": f("u\n", 0o4755), "/m/g": f("g\n", 0o2755), "/m/d": d(0o2775)},
)
case("owners-are-roots", "FROM base\nUSER bob\nCOPY d /d\n", "mkdir d; echo a > d/a; chown -R 55:66 d")
case("times", "FROM base\nCOPY a /a\nCOPY d /d\n", "echo a > a; mkdir d; echo b > d/b; touch -d @1000 a d/b")
case(
    "chown",
    r"""
FROM base
COPY --chown=www-data d /o1
COPY --chown=www-data:adm d /o2
COPY --chown=1234 d /o3
COPY --chown=1234:5678 d/a /new/dirs/o4
COPY --chown=1234:adm d/ /usr/local/share
COPY --chown=0 d /o5
COPY --chown=bob:0 d /o6
""",
    "mkdir d; echo a > d/a; mkdir d/e; chown 55:66 d/a d/e",
)
case("chown-of-stage", "FROM base AS a\nRUN mkdir /d && touch /d/x && chown 5:6 /d/x\nFROM base\nCOPY --from=a /d /kept\nCOPY --from=a --chown=bob /d /changed\n")
case("chown-existing-directory", "FROM base\nCOPY --chown=bob d /opt\n", "mkdir d; echo a > d/a")
case("chmod", "FROM base\nCOPY --chmod=755 d /m1\nCOPY --chmod=0640 d/a /m2\nCOPY --chmod=4755 d/a /m3\nCOPY --chmod=1777 d/a /m4\n", "mkdir -p d/e; echo a > d/a; echo b > d/e/b; chmod 600 d/a")
documented(
    "chmod-symbolic", "buildah knows octal modes only",
    "FROM base\nCOPY --chmod=u=rwX,go=rX d /1\nCOPY --chmod=a+x d/a /2\nCOPY --chmod=go-r,u+s d/a /3\nCOPY --chmod=g=u,o= d/a /4\n",
    "mkdir d; echo a > d/a; echo x > d/x; chmod 744 d/x",
    tree={
        "/1": d(), "/1/a": f("a\n", 0o644), "/1/x": f("x\n", 0o755),
        "/2": f("a\n", 0o755), "/3": f("a\n", 0o4600), "/4": f("a\n", 0o660),
    },
)
documented(
    "chmod-and-chown", "buildah knows either",
    "FROM base\nCOPY --chmod=700 --chown=bob:adm a /n/a\n", "echo a > a",
    tree={"/n": d(0o755, "1500:4"), "/n/a": f("a\n", 0o700, "1500:4")},
)
NO_LINK = "buildah 1.28 has no --link"
documented("link", NO_LINK, "FROM base\nCOPY --link a /x/a\nCOPY --link d /d\n", "echo a > a; mkdir d; echo b > d/b",
    tree={"/x": d(), "/x/a": f("a\n"), "/d": d(), "/d/b": f("b\n")})
documented("link-chown-number", NO_LINK, "FROM base\nCOPY --link --chown=7:8 --chmod=600 a /x/\n", "echo a > a",
    tree={"/x": d(0o755, "7:8"), "/x/a": f("a\n", 0o600, "7:8")})
documented("link-from-stage", NO_LINK, "FROM base AS s\nRUN mkdir /o && echo a > /o/a\nFROM base\nCOPY --link --from=s /o/ /o/\n",
    tree={"/o": d(), "/o/a": f("a\n")})
documented("link-false", NO_LINK, "FROM base\nRUN mkdir /real && ln -s real /l\nCOPY --link=false a /l/\n", "echo a > a",
    tree={"/real": d(), "/real/a": f("a\n"), "/l": l("real")})
documented("link-over-symlink", NO_LINK + ": the destination of one is made anew, links on the way are not followed",
    "FROM base\nRUN mkdir /real && ln -s real /l\nCOPY --link a /l/a\n", "echo a > a",
    tree={"/real": d(), "/l": d(), "/l/a": f("a\n")})
NO_PARENTS = "buildah 1.28 has no --parents"
documented("parents", NO_PARENTS, "FROM base\nCOPY --parents ./x/a.txt ./y/a.txt /p/\nCOPY ./x/a.txt ./y/a.txt /n/\n",
    "mkdir x y; echo x > x/a.txt; echo y > y/a.txt",
    tree={"/p": d(), "/p/x": d(), "/p/y": d(), "/p/x/a.txt": f("x\n"), "/p/y/a.txt": f("y\n"), "/n": d(), "/n/a.txt": f("y\n")})
documented("parents-pivot", NO_PARENTS, "FROM base\nCOPY --parents ./x/./y/*.txt /p/\n", "mkdir -p x/y; echo a > x/y/a.txt; echo b > x/y/b.txt; touch x/y/c",
    tree={"/p": d(), "/p/y": d(), "/p/y/a.txt": f("a\n"), "/p/y/b.txt": f("b\n")})
documented("parents-of-stage", NO_PARENTS, "FROM base AS s\nRUN mkdir -p /a/b && echo x > /a/b/x\nFROM base\nCOPY --parents --from=s /a/b/x /p/\n",
    tree={"/p": d(), "/p/a": d(), "/p/a/b": d(), "/p/a/b/x": f("x\n")})
documented("parents-double-star", NO_PARENTS, "FROM base\nCOPY --parents src/**/*.c /p/\n",
    "mkdir -p src/a/b; echo 1 > src/1.c; echo 2 > src/a/2.c; echo 3 > src/a/b/3.c; touch src/a/x.h",
    tree={"/p": d(), "/p/src": d(), "/p/src/a": d(), "/p/src/a/b": d(), "/p/src/1.c": f("1\n"), "/p/src/a/2.c": f("2\n"), "/p/src/a/b/3.c": f("3\n")})
NO_EXCLUDE = "buildah 1.28 has no --exclude"
TREE = "mkdir -p d/sub/deep; for f in d/a.txt d/b.md d/sub/c.txt d/sub/d.md d/sub/deep/e.txt; do basename $f > $f; done"
documented("exclude", NO_EXCLUDE, "FROM base\nCOPY --exclude=*.txt d /d\n", TREE,
    tree={"/d": d(), "/d/b.md": f("b.md\n"), "/d/sub": d(), "/d/sub/c.txt": f("c.txt\n"), "/d/sub/d.md": f("d.md\n"), "/d/sub/deep": d(),
        "/d/sub/deep/e.txt": f("e.txt\n")})
documented("exclude-double-star", NO_EXCLUDE, "FROM base\nCOPY --exclude=**/*.txt --exclude=sub/d.md d /d\n", TREE,
    tree={"/d": d(), "/d/b.md": f("b.md\n"), "/d/sub": d(), "/d/sub/deep": d()})
documented("exclude-directory", NO_EXCLUDE, "FROM base\nCOPY --exclude=sub d /d\n", TREE, tree={"/d": d(), "/d/a.txt": f("a.txt\n"), "/d/b.md": f("b.md\n")})
documented("exclude-of-wildcard", NO_EXCLUDE, "FROM base\nCOPY --exclude=b* x/* /d/\n", "mkdir x; echo a > x/a; echo b > x/b1",
    tree={"/d": d(), "/d/a": f("a\n")})
documented("exclude-from-stage", NO_EXCLUDE, "FROM base AS s\nRUN mkdir /o && echo a > /o/a && echo b > /o/b\nFROM base\nCOPY --from=s --exclude=b /o /o\n",
    tree={"/o": d(), "/o/a": f("a\n")})
documented("hard-links-of-a-context", "buildah keeps them, BuildKit's transfer of a context too but not its copy: their bytes are what counts",
    "FROM base\nCOPY a /a\nCOPY b /b\n", "echo a > a; ln a b", tree={"/a": f("a\n"), "/b": f("a\n")})
case("unicode-names", "FROM base\nCOPY ü* /ü/\n", "echo 1 > 'ünï'; echo 2 > 'ü x'")
case("no-newline-at-end", "FROM base\nCOPY a /a", "printf a > a")
case("empty-directory", "FROM base\nCOPY e /e\nCOPY . /all/\n", "mkdir e; rm -f Dockerfile.x")
case("big-file", "FROM base\nCOPY big /big\n", "seq 1 400000 > big")
case("many-files", "FROM base\nCOPY m /m\n", "mkdir m; for n in $(seq 150); do echo $n > m/f$n; done")
documented("glob-that-matches-nothing-beside-one-that-does", "buildah refuses a pattern that matches nothing",
    "FROM base\nCOPY a none* /x/\n", "echo a > a", tree={"/x": d(), "/x/a": f("a\n")})

failing("directory-over-file", "FROM base\nRUN echo x > /x\nCOPY d /x\n", 3, "", "mkdir d; echo a > d/a")
failing("file-over-directory", "FROM base\nRUN mkdir -p /t/x/y\nCOPY d /t\n", 3, "", "mkdir -p d; echo a > d/x")
failing("missing", "FROM base\nCOPY nothing /x\n", 2, "nothing")
failing("missing-of-several", "FROM base\nCOPY a nothing /x/\n", 2, "nothing", "touch a")
failing("one-argument", "FROM base\nCOPY a\n", 2, "", "touch a")
failing("user-missing", "FROM base\nCOPY --chown=nosuch a /x\n", 2, "nosuch", "touch a")
failing("group-missing", "FROM base\nCOPY --chown=0:nosuch a /x\n", 2, "nosuch", "touch a")
failing("chmod-bad", "FROM base\nCOPY --chmod=z a /x\n", 2, "", "touch a")
failing("flag-unknown", "FROM base\nCOPY --chmodd=755 a /x\n", 2, "chmodd", "touch a")
failing("link-to-nowhere", "FROM base\nCOPY l /x\n", 2, "", "ln -s nowhere l")
failing("link-out-of-the-context", "FROM base\nCOPY out /o\n", 2, "", "ln -s /etc/shadow out")
case("several-to-what-is-no-directory-yet", "FROM base\nCOPY a b /x\n", "echo a > a; echo b > b")
documented(
    "over-what-the-machine-mounts", "buildah keeps its own /etc/hosts out of layers and lends it",
    "FROM base AS ran\nRUN true\nFROM base AS given\nCOPY f /etc/hosts\nCOPY f /etc/resolv.conf\nFROM base\n"
    "COPY --from=given /etc/hosts /hosts\nCOPY --from=given /etc/resolv.conf /\nCOPY --from=ran /etc /lent\n"
    "RUN ls /lent | grep -c -e hosts -e resolv > /count; rm -r /lent\n",
    "echo mine > f",
    tree={"/hosts": f("mine\n"), "/resolv.conf": f("mine\n"), "/count": f("0\n")},
)
failing("to-a-kernel-file-system", "FROM base\nCOPY f /dev/f\n", 2, "no part of an image", "echo x > f")
