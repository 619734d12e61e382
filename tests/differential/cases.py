"""The corpus of `run.sh`: Dockerfiles, what their contexts are made by, and what is known to differ.

A case's `files` is a shell script run as root in the empty context. `fails` says that a build must not succeed. `apart`
maps a path or a field of the config (a regular expression over the whole of it) to the reason why Berth is right to
differ there: mostly that buildah is not BuildKit, whose behaviour is the one that Dockerfiles are written for.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Case:
    name: str
    dockerfile: str
    files: str = ""
    args: list[str] = field(default_factory=list)
    fails: bool = False
    apart: dict[str, str] = field(default_factory=dict)


CASES: list[Case] = []

NO_WORKDIR = "buildah makes a WORKDIR only when something runs in it"
HARD_LINKS = "hard links of a context become files of their own"


def case(name: str, dockerfile: str, files: str = "", **more) -> None:
    CASES.append(Case(name, dockerfile.lstrip("\n"), files, **more))


case("base", "FROM debian:bookworm\n")

case(
    "env-quoting",
    r"""
FROM debian:bookworm
ENV A=one B="two words" C='single $A' D=esc\ aped E=$A-${B} F="${A}x$B"
ENV LEGACY the rest   of "the line" $A
ENV EMPTY= Q="" ESC="a\"b" DOLLAR=\$A BS="a\\b" TAB="a	b"
ENV A=changed SEES=$A
ENV AFTER=$A
ENV MULTI=1 \
    # a comment in between
    LINE=2 \

    LAST=3
ENV X-Y=dash url=http://a:b@c/?d=e&f#g
RUN env | sort | grep -v -e ^HOME -e ^PWD -e ^SHLVL -e ^_= -e ^HOSTNAME -e ^container > /env
""",
)

case(
    "env-forms",
    r"""
FROM debian:bookworm
ENV x=val empty= path=/usr/local/lib.tar.gz
ENV a=${x:-w} b=${none:-w} c=${empty:-w} d=${x:+p} e=${none:+p} f=${empty:+p}
ENV g=${none:-${x}} h=${none:-"quo ted"} i="${none:-a b}" j=${none:-$x-${none:-deep}}
ENV k=\${x} l='${x}' m="\${x}" n=${x}y$x
WORKDIR /a/${x}/${none:-dflt}
LABEL l1=$x "l 2"="${x} y" l3=${none:-}
USER ${none:-nobody}
EXPOSE ${port:-8080} ${empty:-9}/udp
""",
    apart={"/a(/.*)?": NO_WORKDIR},
)

case(
    "env-forms-trim",
    r"""
FROM debian:bookworm
ENV path=/usr/local/lib.tar.gz
ENV a=${path#*/} b=${path##*/} c=${path%.*} d=${path%%.*} e=${path/lib/LIB} f=${path//l/L}
""",
    apart={"config/Env": "buildah knows none of the forms with a pattern"},
)

case(
    "arg-scopes",
    r"""
ARG TAG=bookworm
ARG GLOBAL=glob
ARG UNUSED
FROM debian:${TAG} AS one
ARG GLOBAL
ARG LOCAL=loc
ARG BOTH=arg
ENV BOTH=env FROM_ARG=$LOCAL-$GLOBAL-$TAG
RUN echo "$GLOBAL|$LOCAL|$BOTH|$TAG" > /one
FROM one AS two
RUN echo "$GLOBAL|$LOCAL|$BOTH|$TAG" > /two
FROM debian:bookworm
ARG LOCAL
ARG GIVEN=default
ARG NODEF
COPY --from=two /one /two /
RUN echo "$LOCAL|$GLOBAL|${GIVEN}|${NODEF}" > /three
LABEL given=$GIVEN nodef="x${NODEF}x"
""",
    args=["--build-arg", "GIVEN=from outside", "--build-arg", "NODEF=n"],
    apart={"/two": "a stage's arguments are also those of the stages built on it; buildah forgets them"},
)

case(
    "arg-many",
    r"""
FROM debian:bookworm
ARG A=1 B=2 C="three words"
ARG D=$A$B
ENV OUT="$A $B $C $D"
RUN echo "$A $B $C $D" > /out
""",
)

case(
    "env-over-arg",
    r"""
FROM debian:bookworm
ARG V=arg
ENV V=${V:-none}-env
RUN echo $V > /v
""",
    args=["--build-arg", "V=given"],
)

case(
    "apt",
    r"""
FROM debian:bookworm
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends \
        tree \
        jq \
        iputils-ping \
    && rm -rf /var/lib/apt/lists/*
RUN useradd -m -s /bin/bash agent && echo 'agent ALL=(ALL) NOPASSWD:ALL' > /etc/agent-sudoers
WORKDIR /app
RUN chown agent:agent /app
USER agent
RUN tree / -L 1 > /dev/null && echo '{"a":1}' | jq -c . > out.json && mkdir -p ~/work && touch ~/work/x
CMD ["bash"]
""",
    apart={},
)

case(
    "users",
    r"""
FROM debian:bookworm
RUN groupadd -g 2000 staff2 && useradd -u 1500 -g 2000 -m bob && useradd -r -s /usr/sbin/nologin svc
USER bob
WORKDIR /home/bob/deep/er
RUN id > id; echo $HOME > home; touch "by bob"; umask > umask
USER 1500:0
RUN id > id2
USER bob:staff
RUN id > id3
USER 4242
WORKDIR rel
RUN id > /tmp/id4; echo $HOME > /tmp/home4
USER 0
WORKDIR /rooted
RUN id -un > who
USER svc:2000
RUN id > /tmp/id5
""",
    apart={
        "/home/bob/deep.*": "BuildKit gives a WORKDIR to the USER, buildah to root",
    },
)

case(
    "workdir-chain",
    r"""
FROM debian:bookworm
WORKDIR /a
WORKDIR b/../c
WORKDIR ./d/
WORKDIR e//f
RUN pwd > /pwd
ENV D=/var/x
WORKDIR $D/y
WORKDIR "quo ted"
RUN pwd >> /pwd
WORKDIR /usr/lib
WORKDIR /
WORKDIR last/
""",
    apart={"/last": NO_WORKDIR},
)

case(
    "workdir-symlink",
    r"""
FROM debian:bookworm
RUN mkdir /real && ln -s /real /link && ln -s ../real/sub /rel
WORKDIR /link/in
RUN pwd -P > /pwd; touch here
COPY a /link/copied
COPY a /link/
COPY dir /link
WORKDIR /bin/x
COPY dir/ .
""",
    "echo a > a; mkdir dir; echo b > dir/b",
)

case(
    "multi-stage",
    r"""
FROM debian:bookworm AS base
RUN mkdir -p /out/sub/deep && echo a > /out/a && echo b > /out/sub/b && ln -s a /out/rel && ln -s /out/sub /out/abs \
    && ln /out/a /out/hard && chown -R 33:44 /out/sub && chmod 2750 /out/sub && chmod 4755 /out/a \
    && mkdir /out/empty && touch "/out/sp ace" && echo dot > /out/.dot && ln -s nowhere /out/dangling
FROM base AS second
RUN echo second > /out/second && rm /out/sub/b
FROM debian:bookworm AS unused
RUN exit 1
FROM debian:bookworm
COPY --from=base /out /o1
COPY --from=base /out/ /o2/
COPY --from=0 /out/sub /o3
COPY --from=second /out/. /o4/
COPY --from=base /out/a /out/second* /out/sub/b /o5/
COPY --from=base out/a /o6
COPY --from=base --chown=bin:adm /out/sub /o7
COPY --from=base /out/rel /o8
COPY --from=base /out/abs /o9
COPY --from=base /out/abs/ /o10/
COPY --from=base /out/s* /o11/
COPY --from=debian:bookworm /etc/debian_version /dv
COPY --from=base --chmod=700 /out/sub /o12
COPY --from=base ["/out/sp ace", "/o13/"]
""",
)

case(
    "multi-stage-target",
    r"""
FROM debian:bookworm AS one
RUN echo 1 > /one
ENTRYPOINT ["/one"]
FROM one AS two
RUN echo 2 > /two
CMD ["two"]
FROM debian:bookworm AS three
RUN false
""",
    args=["--target", "two"],
)

case(
    "copy-forms",
    r"""
FROM debian:bookworm
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
    echo '#!/bin/sh' > exec; chmod 755 exec; chmod 600 b.txt; chmod 711 dir/sub; ln a.txt dir/hard
    """,
    apart={"/w/all/(a.txt|dir/hard)": HARD_LINKS},
)

case(
    "copy-modes",
    r"""
FROM debian:bookworm
COPY modes /m
COPY --chmod=755 modes /m2
COPY --chmod=0640 modes/a /m3
COPY --chmod=4755 modes/a /m4
COPY --chown=www-data modes /o1
COPY --chown=www-data:adm modes /o2
COPY --chown=1234 modes /o3
COPY --chown=1234:5678 modes/a /new/dirs/o4
COPY --chown=:adm modes/a /o5
COPY --chown=1234:adm modes/ /usr/local/share
""",
    """
    mkdir -p modes/d; cd modes
    for m in 400 444 600 666 700 777 4755 2755 1777 000; do echo $m > f$m; chmod $m f$m; done
    echo a > a; mkdir sticky setgid priv; chmod 1777 sticky; chmod 2775 setgid; chmod 700 priv; chown 55:66 a d
    """,
    apart={
        "/.*/(f2755|f4755|setgid)": "buildah clears the set-id bits of a context's files",
    },
)

case(
    "copy-over",
    r"""
FROM debian:bookworm
RUN mkdir -p /t/sub /t/isdir /t/keep && chmod 700 /t /t/sub && chown 7:8 /t/sub && echo old > /t/f && chmod 600 /t/f \
    && ln -s /t/keep /t/tolink && echo k > /t/keep/k && ln -s f /t/flink && echo wasfile > /t/wasfile
COPY ctx /t
COPY f2 /t/f
COPY f2 /t/flink
COPY f2 /t/isdir
COPY --chown=3:4 ctx/sub /t/sub
""",
    """
    mkdir -p ctx/sub; chmod 755 ctx ctx/sub; echo new > ctx/f; chmod 644 ctx/f; echo s > ctx/sub/s; echo 2 > f2
    """,
)

case("copy-dir-over-file", "FROM debian:bookworm\nRUN echo x > /x\nCOPY d /x\n", "mkdir d; echo a > d/a", fails=True)
case(
    "copy-subdir-over-file",
    "FROM debian:bookworm\nRUN mkdir /t && echo x > /t/x\nCOPY d /t\n",
    "mkdir -p d/x; echo a > d/x/a",
)
case(
    "copy-file-over-dir",
    "FROM debian:bookworm\nRUN mkdir -p /t/x/y\nCOPY d /t\n",
    "mkdir -p d; echo a > d/x",
    fails=True,
)
case("copy-missing", "FROM debian:bookworm\nCOPY nothing /x\n", fails=True)
case(
    "copy-glob-none",
    "FROM debian:bookworm\nCOPY nothing* /x\n",
    apart={"build": "BuildKit takes a pattern that matches nothing for nothing to do"},
)
case("copy-two-to-file", "FROM debian:bookworm\nCOPY a b /x\n", "touch a b")
case("copy-escape", "FROM debian:bookworm\nCOPY ../etc/passwd /x\n", fails=True)
case("copy-user-missing", "FROM debian:bookworm\nCOPY --chown=nosuch a /x\n", "touch a", fails=True)
case("run-fails", "FROM debian:bookworm\nRUN echo out; echo err >&2; exit 7\n", fails=True)
case("run-missing-program", 'FROM debian:bookworm\nRUN ["/no/such", "x"]\n', fails=True)
case("run-user-missing", "FROM debian:bookworm\nUSER nosuch\nRUN true\n", fails=True)
case("run-no-shell", "FROM scratch\nCOPY a /\nRUN true\n", "touch a", fails=True)
case("from-bad-stage", "FROM debian:bookworm\nCOPY --from=7 /a /b\n", fails=True)
case("only-comment", "# nothing\n", fails=True)
case("unknown-instruction", "FROM debian:bookworm\nRUNN true\n", fails=True)
case("no-from", "RUN true\n", fails=True)
case("empty-env", "FROM debian:bookworm\nENV\n", fails=True)
case("target-missing", "FROM debian:bookworm AS a\n", args=["--target", "b"], fails=True)

case(
    "add-tar",
    r"""
FROM debian:bookworm
ADD t.tar.gz /gz/
ADD t.tar.xz /xz
ADD t.tar.bz2 /bz2
ADD t.tar /plain/
ADD t.tar.zst /zst/
ADD notatar.tar.gz /nt/
ADD file.gz /fg/
ADD dir /dir
ADD a.txt /file
COPY t.tar.gz /copied/
ADD --chown=9:9 t.tar.gz /owned/
ADD t.tgz t.tar /two/
""",
    """
    mkdir -p s/d; echo a > s/a; chmod 4755 s/a; ln -s a s/l; ln s/a s/h; chown 12:34 s/d; chmod 2770 s/d; echo x > s/d/x
    mkfifo s/fifo; tar -C s --mtime=@0 -cf t.tar .; rm s/fifo
    gzip -nk t.tar; xz -k t.tar; bzip2 -k t.tar; zstd -q t.tar; cp t.tar.gz t.tgz
    echo not > notatar.tar.gz; echo plain | gzip -n > file.gz; mkdir dir; cp t.tar.gz dir/; echo a > a.txt
    """,
    apart={
        "/owned.*": "BuildKit's ADD of an archive keeps the owners of the archive",
        "/zst.*": "buildah does not take zstd apart",
        "/.*/fifo": "Berth leaves FIFOs and devices of an archive out, and says so",
    },
)

case(
    "add-tar-parents",
    r"""
FROM debian:bookworm
RUN mkdir -p /t/usr && chmod 700 /t/usr && ln -s usr /t/lnk && echo o > /t/file
ADD t.tar /t
""",
    """
    mkdir -p s/usr/new s/lnk s/file; chmod 755 s/usr; echo n > s/usr/new/n; echo l > s/lnk/l; echo f > s/file/f
    tar -C s -cf t.tar usr file
    """,
)

case(
    "shell",
    r"""
FROM debian:bookworm
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
RUN set -o | grep -q 'pipefail.*on'; [[ a == a* ]] && echo {1..3} > /bash
CMD echo $HOME
ENTRYPOINT exec top -b
HEALTHCHECK CMD curl -f http://localhost/
SHELL ["/bin/sh", "-c"]
RUN echo $0 > /sh
""",
    apart={"config/(Cmd|Entrypoint)": "buildah takes SHELL for RUN alone"},
)

case("shell-pipefail", 'FROM debian:bookworm\nSHELL ["/bin/bash", "-o", "pipefail", "-c"]\nRUN false | true\n', fails=True)

case(
    "heredocs",
    r'''
# syntax=docker/dockerfile:1
FROM debian:bookworm
ENV V=value
RUN <<EOF
set -e
echo "one $V $0" > /one
cat > /nested <<INNER
inner $V
INNER
EOF
RUN <<'EOF'
echo "two $V" > /two
EOF
RUN <<EOF bash
echo "${BASH_VERSION:+bash} $V" > /three
EOF
RUN <<-EOF
	echo tabbed > /four
	EOF
RUN cat <<A > /five && cat <<B > /six
a $V
A
b $V
B
COPY <<EOF /copied
v=$V ${V} "quoted" \$V
  indented
EOF
COPY <<'EOF' /raw
v=$V "q" \$V
EOF
COPY <<-EOF <<two.txt /dir/
	tab $V
	EOF
second
two.txt
COPY --chmod=755 --chown=1:2 <<run.sh /usr/bin/
#!/bin/sh
run.sh
RUN perl - <<EOF || cat <<EOT > /eight
die;
EOF
eight
EOT
''',
    apart={"/copied": "buildah keeps the backslash of an escaped dollar"},
)

case(
    "heredoc-interpreter",
    """
FROM debian:bookworm
RUN <<EOF
#!/usr/bin/perl
open(F, ">/perl"); print F "perl\\n";
EOF
""",
    apart={"build": "buildah does not put the script where its chroot finds it"},
)

case(
    "run-quoting",
    r"""
FROM debian:bookworm
ENV X="a b"
RUN echo "$X" '$X' \
  # comment
  "tail" > /a
RUN echo a\
b > /b
RUN printf '%s\n' "a\\b" 'c\d' > /c
RUN echo 'multi \
line' > /d
RUN ["/bin/sh", "-c", "echo $X ${X} > /e"]
RUN ["/bin/echo", "not", "expanded $X"]
RUN [ -d /etc ] && echo yes > /f
RUN echo $$ | grep -q '^[0-9]' && echo "$(echo sub) `echo tick`" > /g
RUN 	echo	tab	> /h   
run echo lower > /i
RUN echo "# not a comment" > /j #but this is
RUN X=inner; echo $X > /k
RUN echo {a,b} > /l; test -t 0 || echo notty >> /l; cat >> /l
RUN umask >> /m; pwd >> /m; echo $PATH >> /m; echo "$HOME" >> /m; whoami >> /m; env | cut -d= -f1 | sort >> /m
""",
    apart={"/m": "chroot isolation has a few variables of its own"},
)

case(
    "escape-directive",
    "# escape=`\nFROM debian:bookworm\nRUN echo a `\n  b > /a\nENV X=a`\\b Y=C:\\dir\nRUN echo $Y > /y\n",
    apart={"config/Env|/y": "buildah expands with a backslash whatever the directive says"},
)

case("crlf", "FROM debian:bookworm\r\nENV A=1\r\nRUN echo $A \\\r\n  two > /a\r\nCMD [\"x\"]\r\n")

case(
    "ignore",
    "FROM debian:bookworm\nCOPY . /c/\n",
    """
    mkdir -p a/b/c node_modules/x sub/node_modules/y docs keep/deep logs
    for f in a/1.log a/b/2.log a/b/c/3.txt top.log node_modules/x/i sub/node_modules/y/j docs/README.md docs/x.md \
        keep/deep/f keep/g logs/l.txt .git .env '#hash' 'sp ace' 'trail ' ; do echo "$f" > "$f"; done
    printf '%s\\n' '# comment' '*.log' '**/node_modules' 'docs' '!docs/README.md' 'keep/*' '!keep/deep' '' '  .env  ' \
        '/logs/' 'a/b/c/../2.log' '#hash' 'Dockerfile' '.dockerignore' > .dockerignore
    """,
)

case(
    "ignore-star",
    "FROM debian:bookworm\nCOPY . /c/\n",
    """
    mkdir -p src/pkg/in other; echo 1 > src/a; echo 2 > src/pkg/b; echo 3 > src/pkg/in/c; echo o > other/o; echo t > t
    printf '*\\n!src\\nsrc/pkg/in\\n!src/pkg/in/c\\n' > .dockerignore
    """,
)

case("ignore-source", "FROM debian:bookworm\nCOPY secret /s\n", "touch secret; echo secret > .dockerignore", fails=True)

case(
    "ignore-named",
    "FROM debian:bookworm\nCOPY . /c/\n",
    "mv Dockerfile My.Dockerfile; touch a b; echo a > .dockerignore; echo b > My.Dockerfile.dockerignore",
    args=["-f", "{context}/My.Dockerfile"],
)

case(
    "entrypoint-cmd",
    r"""
FROM debian:bookworm AS parent
CMD ["parent", "cmd"]
ENTRYPOINT ["/parent"]
FROM parent
ENTRYPOINT ["/child", "$HOME"]
""",
)
case("cmd-after-entrypoint", 'FROM debian:bookworm\nENTRYPOINT ["e"]\nCMD a "b" $C\n')
case("cmd-before-entrypoint", 'FROM debian:bookworm\nCMD ["c"]\nENTRYPOINT e "f" $G\n')
case("entrypoint-reset", 'FROM debian:bookworm\nENTRYPOINT ["e"]\nCMD ["c"]\nENTRYPOINT []\nCMD []\n')
case("cmd-single-quotes", "FROM debian:bookworm\nCMD ['a', 'b']\n")

case(
    "metadata",
    r"""
FROM debian:bookworm
LABEL a=1 b="two words" "c.d"=x \
  e='single $X'
LABEL a=2
LABEL legacy some text
MAINTAINER Some One <a@b>
EXPOSE 80 443/tcp 53/udp 8000-8002
VOLUME /data
VOLUME ["/json", "/with space"]
VOLUME /v1 /v2
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5m --timeout=3s --start-period=1m30s --retries=3 CMD ["curl", "-f", "x"]
USER nobody:nogroup
WORKDIR /srv
ENV E=1
""",
    apart={"config/ExposedPorts": "BuildKit takes ranges apart"},
)
case("healthcheck-none", "FROM debian:bookworm\nHEALTHCHECK CMD true\nHEALTHCHECK NONE\nSTOPSIGNAL 9\n")

case(
    "volume-content",
    r"""
FROM debian:bookworm
RUN mkdir /v && echo before > /v/before
VOLUME /v
RUN echo after > /v/after
COPY a /v/
""",
    "echo a > a",
)

case(
    "onbuild",
    r"""
FROM debian:bookworm AS parent
ENV N=1
ONBUILD ENV TRIGGERED=$N
ONBUILD COPY a /onbuild/
ONBUILD RUN echo "ran $N" > /onbuild/ran
FROM parent AS child
RUN echo child > /child
FROM child
RUN cat /onbuild/ran > /grandchild
""",
    "echo a > a",
)
case("onbuild-kept", "FROM debian:bookworm\nONBUILD RUN echo x\nONBUILD WORKDIR /y\n")

case(
    "whiteouts",
    r"""
FROM debian:bookworm
RUN mkdir -p /w/d/e /w/o /w/r /w/moved && touch /w/f /w/d/a /w/d/e/b /w/o/lower /w/o/both /w/r/x /w/k && echo m > /w/moved/m \
    && mkdir /w/filetodir.d && echo f > /w/filetodir && mkdir -p /w/dirtofile/sub && ln -s f /w/linktodir && mkdir /w/dirtolink
RUN rm /w/f && rm -rf /w/d/e && rm -rf /w/o && mkdir /w/o && touch /w/o/both /w/o/new && rm -rf /w/r
RUN rm /w/filetodir && mkdir /w/filetodir && touch /w/filetodir/in && rm -rf /w/dirtofile && echo now > /w/dirtofile \
    && rm /w/linktodir && mkdir /w/linktodir && touch /w/linktodir/x && rmdir /w/dirtolink && ln -s d /w/dirtolink
RUN mv /w/moved /w/renamed && mv /w/k /w/kk && echo again > /w/f && mkdir -p /w/r/y
RUN rm -rf /w/o/* && touch /w/.wh-like && mv /w/renamed /w/moved
RUN rm -rf /usr/share/doc /usr/share/man && mkdir /usr/share/doc && rm -f /etc/motd /bin/true && touch /usr/share/doc/only
""",
)
# Names that a layer cannot hold.
case("whiteout-names", "FROM debian:bookworm\nRUN touch /.wh.file && mkdir /x && touch /x/.wh..wh..opq /x/a\n", fails=True)

case(
    "lower-metadata",
    r"""
FROM debian:bookworm
RUN chmod 700 /usr/share && chown 5:6 /usr/share/doc && chmod 4711 /bin/ls && chown -h 7:8 /bin/sh && chown 33 /etc/passwd
RUN touch /opt/x && chmod u+s /bin/cat && chmod 1777 /srv && chmod 711 / 
RUN chown -R 1000:1000 /etc/apt
""",
)

case(
    "hard-links",
    r"""
FROM debian:bookworm
RUN echo a > /a && ln /a /b && ln /a /opt/c && ln -s a /s && ln /s /s2
RUN ln /a /d
RUN echo more >> /b
RUN rm /a
RUN ln /usr/bin/env /usr/local/bin/env2
""",
)

case(
    "xattrs",
    r"""
FROM debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libcap2-bin attr && rm -rf /var/lib/apt/lists/*
RUN cp /bin/ls /cap && setcap cap_net_raw,cap_net_bind_service=+ep /cap && touch /x && setfattr -n user.foo -v bar /x \
    && mkdir /xd && setfattr -n user.dir -v d /xd && cp /bin/cat /opt/c && chmod 4755 /opt/c
RUN chmod 755 /cap && touch /xd/new
RUN cp /bin/ls /cap2 && setcap cap_sys_ptrace=+ep /cap2 && mv /cap2 /opt/cap2
FROM debian:bookworm
COPY --from=0 /cap /cap
COPY --from=0 /opt /o
COPY --from=0 /xd /x /attrs/
""",
)

case(
    "special-files",
    r"""
FROM debian:bookworm
RUN mkfifo /fifo && mkdir "/sp ace" && touch "/sp ace/ünï" '/quo"te' "/back\\slash" /-dash "$(printf '/new\nline')" \
    && ln -s "ünï" "/sp ace/l" && mkdir -m 000 /closed && touch -d @1 /old && truncate -s 5M /sparse \
    && touch /$(head -c 250 /dev/zero | tr '\0' n) && mkdir -p /$(seq -s / 1 60) && ln -s $(head -c 300 /dev/zero | tr '\0' t) /longlink
FROM debian:bookworm
COPY --from=0 / /all/
""",
    apart={
        "/all/(dev|proc|sys|run|etc/(hosts|hostname|resolv.conf)).*": "mount points",
        "/all/fifo": "BuildKit refuses to copy one between stages, Berth leaves it out",
    },
)

case("empty-layers", "FROM debian:bookworm\nRUN true\nRUN true\nENV A=1\nRUN :\nWORKDIR /tmp\nRUN touch /a && rm /a\n")

case(
    "forty-steps",
    "FROM debian:bookworm\n" + "".join(f"RUN echo {n} > /f{n} && echo {n} >> /all && rm -f /f{n - 2}\n" for n in range(40)),
)

case(
    "scratch",
    r"""
FROM debian:bookworm AS b
RUN mkdir -p /r/etc && cp /etc/passwd /r/etc/ && echo hi > /r/hi
FROM scratch
COPY --from=b /r/ /
COPY a /x/
ENV A=1
USER 12:34
ENTRYPOINT ["/hi"]
""",
    "echo a > a",
    apart={"config/Env": "BuildKit gives scratch a PATH"},
)
case("scratch-nothing", "FROM scratch\nLABEL a=b\n", apart={"config/Env": "BuildKit gives scratch a PATH"})
case(
    "scratch-workdir",
    "FROM scratch\nWORKDIR /a/b\nCOPY a .\n",
    "echo a > a",
    apart={"config/Env": "BuildKit gives scratch a PATH"},
)

case(
    "etc-files",
    r"""
FROM debian:bookworm
RUN echo '10.0.0.1 foo' >> /etc/hosts; ls -la /etc/resolv.conf > /dev/null; touch /run/x /tmp/t /dev/shm/s
RUN mkdir -p /run/lock/x /var/run/y; true
COPY hosts /etc/hosts
COPY hostname /etc/
COPY resolv.conf /etc/resolv.conf
""",
    "echo 1.2.3.4 h > hosts; echo hn > hostname; echo nameserver 9.9.9.9 > resolv.conf",
)

case(
    "dockerfile-oddities",
    "\ufeff# comment\n  # indented comment\n\nfrom debian:bookworm as Build\n   RUN echo indented > /a\nRUN echo one; \\\n\n\n  echo two > /b\n"
    "RUN echo end-of-file > /c",
)
case(
    "platform-args",
    "FROM --platform=linux/amd64 debian:bookworm\nARG TARGETARCH\nARG TARGETPLATFORM\nARG BUILDOS\n"
    "RUN echo $TARGETARCH $TARGETPLATFORM $BUILDOS > /p\n",
)
case("copy-out-of-context", "FROM debian:bookworm\nCOPY out /o\n", "ln -s /etc/shadow out", fails=True)
case(
    "run-background",
    "FROM debian:bookworm\nRUN (sleep 300; touch /late) >/dev/null 2>&1 & echo started > /s\n",
)
case(
    "python",
    r"""
FROM debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal && rm -rf /var/lib/apt/lists/*
ENV PYTHONDONTWRITEBYTECODE=1 PATH=/opt/bin:$PATH
WORKDIR /app
COPY main.py .
RUN python3 main.py
""",
    "echo 'open(\"o\",\"w\").write(\"x\")' > main.py",
    apart={r".*\.pyc": "has times in it", ".*__pycache__": "the same"},
)
