"""RUN: its forms, what it runs with, and here-documents."""

from base import PATH
from corpus import case, d, documented, f, failing, l

case(
    "quoting",
    r"""
FROM base
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
RUN test -t 0 || echo notty >> /l; cat >> /l
RUN umask >> /m; pwd >> /m; echo $PATH >> /m; echo "$HOME" >> /m; whoami >> /m
""",
)
case("shell-form", "FROM base\nRUN echo $0 > /o\nRUN echo a; echo b\nRUN echo x &&\\\n  echo y > /p\n")
case("exec-form", 'FROM base\nRUN ["sh", "-c", "echo \\"quoted\\" > /o"]\nRUN ["touch", "/a b"]\n')
case("exec-form-not-json", "FROM base\nRUN ['sh', '-c'] || echo shell > /o\n")
case("shell-instruction", 'FROM base\nSHELL ["/bin/sh", "-ec", "-x"]\nRUN echo $- | grep -o e > /o\nSHELL ["/bin/sh", "-c"]\nRUN echo $- > /p\n')
case("home", "FROM base\nRUN echo $HOME > /1\nUSER bob\nRUN echo $HOME > /tmp/2\nENV HOME=/x\nRUN echo $HOME > /tmp/3\n")
case("users", "FROM base\nRUN chmod 777 /srv\nWORKDIR /srv\nUSER bob\nRUN id > 1\nUSER 1500:0\nRUN id > 2\nUSER bob:staff\nRUN id > 3\nUSER 4242\nRUN id > 4; echo $HOME > 5\nUSER svc\nRUN id > 6; echo $HOME > 7\n",
    varies={"/srv/[1-7]": "the names in what id prints depend on the program"})
documented("groups-of-a-user", "buildah's chroot gives none of the further groups", "FROM base\nUSER bob\nRUN id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ' > /tmp/g\n",
    tree={"/tmp/g": f("4 2000 3000 ", owner="1500:2000")}, config={"User": "bob"})
case("umask", "FROM base\nRUN umask > /u; touch /f; mkdir /d\n")
case("background", "FROM base\nRUN (sleep 300; touch /late) >/dev/null 2>&1 & echo started > /s\n")
case("stdin-is-empty", "FROM base\nRUN cat > /o; read x || echo end >> /o\n")
case("exit-code-of-pipe", "FROM base\nRUN false | true\n")
case("forty-steps", "FROM base\n" + "".join(f"RUN echo {n} > /f{n} && echo {n} >> /all && rm -f /f{n - 2}\n" for n in range(40)))
case("etc-files", "FROM base\nRUN echo '10.0.0.1 foo' >> /etc/hosts; touch /run/x /tmp/t\nCOPY hosts /etc/hosts\nCOPY hostname /etc/\n", "echo 1.2.3.4 h > hosts; echo hn > hostname")
documented("etc-hosts-is-not-written", "where the builder mounts something, nothing stays; buildah leaves empty files", "FROM base\nRUN cat /etc/hosts /etc/resolv.conf > /dev/null; echo x >> /etc/hosts\n")
documented("network-none", "buildah's chroot has one network", "FROM base\nRUN --network=none ls /sys/class/net | tr '\\n' ' ' > /n\nRUN --network=default true\n", tree={"/n": f("lo ")})
documented("security-sandbox", "buildah 1.28 has no --security", "FROM base\nRUN --security=sandbox echo ok > /o\n", tree={"/o": f("ok\n")})
failing("security-insecure", "FROM base\nRUN --security=insecure true\n", 2, "insecure")
failing("network-host", "FROM base\nRUN --network=host true\n", 2, "host")
failing("network-unknown", "FROM base\nRUN --network=moon true\n", 2, "moon")
failing("fails", "FROM base\nRUN echo out; echo err >&2; exit 7\n", 2, "exit code 7|exited with 7|\\b7\\b", prints=["out", "err"])
failing("fails-later", "FROM base\nRUN true\n\n# comment\nRUN true && \\\n    false\n", 5, "")
failing("fails-in-other-stage", "FROM base AS a\nRUN exit 9\nFROM base\nCOPY --from=a / /a\n", 2, "")
failing("missing-program", 'FROM base\nRUN ["/no/such", "x"]\n', 2, "/no/such")
failing("missing-shell", 'FROM base\nSHELL ["/bin/nosh", "-c"]\nRUN true\n', 3, "nosh")
failing("user-missing", "FROM base\nUSER nosuch\nRUN true\n", 3, "nosuch")
failing("no-shell", "FROM scratch\nCOPY a /\nRUN true\n", 3, "", "touch a")
failing("killed", "FROM base\nRUN kill -9 $$\n", 2, "")
failing("empty", "FROM base\nRUN\n", 2, "")
failing("flag-unknown", "FROM base\nRUN --nosuch=1 true\n", 2, "nosuch")
failing("pipefail", 'FROM base\nSHELL ["/bin/sh", "-o", "pipefail", "-c"]\nRUN false | true\n', 3, "")

HERE = "buildah 1.28 has no here-documents"
documented("heredoc", HERE, "FROM base\nENV V=v\nRUN <<EOF\nset -e\necho \"one $V\" > /one\ncat > /nested <<INNER\ninner $V\nINNER\nEOF\n",
    tree={"/one": f("one v\n"), "/nested": f("inner v\n")}, config={"Env": [PATH, "V=v"]})
documented("heredoc-quoted", HERE, "FROM base\nENV V=v\nRUN <<'EOF'\necho \"two $V\" > /two\nEOF\n", tree={"/two": f("two v\n")}, config={"Env": [PATH, "V=v"]})
documented("heredoc-to-command", HERE, "FROM base\nRUN <<EOF cat > /o\n$HOME `echo t`\nEOF\n", tree={"/o": f("/root t\n")})
documented("heredoc-to-command-quoted", HERE, "FROM base\nRUN cat <<'EOF' > /o\n$HOME `echo t`\nEOF\n", tree={"/o": f("$HOME `echo t`\n")})
documented("heredoc-tabs", HERE, "FROM base\nRUN <<-EOF\n\techo tabbed > /o\n\tEOF\n", tree={"/o": f("tabbed\n")})
documented("heredoc-several", HERE, "FROM base\nENV V=v\nRUN cat <<A > /five && cat <<B > /six\na $V\nA\nb $V\nB\n", tree={"/five": f("a v\n"), "/six": f("b v\n")}, config={"Env": [PATH, "V=v"]})
documented("heredoc-shebang", HERE, "FROM base\nRUN <<EOF\n#!/bin/awk -f\nBEGIN { print \"awk\" > \"/o\" }\nEOF\n", tree={"/o": f("awk\n")})
documented("heredoc-shell-instruction", HERE, 'FROM base\nSHELL ["/bin/sh", "-ec"]\nRUN <<EOF\necho $- | grep -o e > /o\nEOF\n', tree={"/o": f("e\n")}, config={"Shell": ["/bin/sh", "-ec"]})
documented("heredoc-fails-late-only", HERE, "FROM base\nRUN <<EOF\nfalse\necho on > /o\nEOF\n", tree={"/o": f("on\n")})
failing("heredoc-set-e", "FROM base\nRUN <<EOF\nset -e\nfalse\necho on\nEOF\n", 2, "")
failing("heredoc-unclosed", "FROM base\nRUN <<EOF\necho\n", 2, "EOF")
documented("heredoc-copy", HERE,
    "FROM base\nENV V=v\nCOPY <<EOF /copied\nv=$V ${V} \"quoted\" \\$V\n  indented\nEOF\nCOPY <<'EOF' /raw\nv=$V \"q\" \\$V\nEOF\nCOPY <<-EOF <<two.txt /dir/\n\ttab $V\n\tEOF\nsecond\ntwo.txt\n",
    tree={"/copied": f('v=v v "quoted" $V\n  indented\n'), "/raw": f('v=$V "q" \\$V\n'), "/dir": d(), "/dir/EOF": f("tab v\n"), "/dir/two.txt": f("second\n")},
    config={"Env": [PATH, "V=v"]})
documented("heredoc-copy-flags", HERE, "FROM base\nCOPY --chmod=755 --chown=1:2 <<run.sh /usr/bin/\n#!/bin/sh\nrun.sh\nRUN run.sh && ls -l /usr/bin/run.sh\n",
    tree={"/usr/bin/run.sh": f("#!/bin/sh\n", 0o755, "1:2")})
documented("heredoc-copy-with-file", HERE, "FROM base\nCOPY a <<b /d/\nfrom here\nb\n", "echo a > a", tree={"/d": d(), "/d/a": f("a\n"), "/d/b": f("from here\n")})
documented("heredoc-empty", HERE, "FROM base\nCOPY <<E /e\nE\nRUN <<E\nE\n", tree={"/e": f("")})
documented("heredoc-comment-lines-stay", HERE, "FROM base\nCOPY <<E /e\n# kept\n\n  # too\nE\n", tree={"/e": f("# kept\n\n  # too\n")})
documented("heredoc-backslash-stays", HERE, "FROM base\nCOPY <<'E' /e\na \\\nb\nE\n", tree={"/e": f("a \\\nb\n")})
