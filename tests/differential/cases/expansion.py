"""Variables: every form, in every instruction that knows them."""

from base import PATH
from corpus import case, d, documented, f, failing

NO_PATTERNS = "buildah knows none of the forms with a pattern"
NO_BARE = "buildah knows these forms with a colon only"

# Value of x, the form, what comes of it. `unset` is in no environment, `empty` is set to nothing.
for name, form, value in [
    ("default-unset", "${unset:-w}", "w"),
    ("default-empty", "${empty:-w}", "w"),
    ("default-set", "${x:-w}", "foobarbaz"),
    ("default-nested", "${unset:-${empty:-${x}}}", "foobarbaz"),
    ("default-of-nothing", "a${unset:-}b", "ab"),
    ("alternative-unset", "a${unset:+w}b", "ab"),
    ("alternative-empty", "a${empty:+w}b", "ab"),
    ("alternative-set", "${x:+w}", "w"),
    ("alternative-nested", "${x:+$y-${x}}", "a/b.c.d-foobarbaz"),
    ("unset-is-nothing", "a$unset${unset}b", "ab"),
    ("name-ends", "$x.txt$x-y${x}z", "foobarbaz.txtfoobarbaz-yfoobarbazz"),
    ("escaped", r"\$x\${x}", "$x${x}"),
    ("single-quotes", "'$x'", "$x"),
    ("double-quotes", '"$x b"', "foobarbaz b"),
    ("quotes-in-default", '${unset:-"two words"}', "two words"),
]:
    case(f"form-{name}", f"FROM base\nENV x=foobarbaz y=a/b.c.d empty=\nENV out={form}\n")

for name, form, value in [
    ("prefix-short", "${x#f*b}", "arbaz"),
    ("prefix-long", "${x##f*b}", "az"),
    ("suffix-short", "${x%b*}", "foobar"),
    ("suffix-long", "${x%%b*}", "foo"),
    ("replace-first", "${x/ba/fo}", "fooforbaz"),
    ("replace-all", "${x//ba/fo}", "fooforfoz"),
    ("replace-by-nothing", "${x//ba/}", "foorz"),
    ("prefix-no-match", "${x#bar}", "foobarbaz"),
    ("suffix-no-match", "${x%foo}", "foobarbaz"),
    ("question-mark", "${x#f??}", "barbaz"),
    ("path-prefix", "${y##*/}", "b.c.d"),
    ("path-suffix", "${y%%.*}", "a/b"),
    ("replace-pattern", "${y/b.?/X}", "a/X.d"),
    ("pattern-of-unset", "a${unset#x}b", "ab"),
    ("pattern-from-variable", "${x#$z}", "barbaz"),
]:
    documented(
        f"form-{name}",
        NO_PATTERNS,
        f"FROM base\nENV x=foobarbaz y=a/b.c.d z=foo\nENV out={form}\n",
        config={"Env": [PATH, "x=foobarbaz", "y=a/b.c.d", "z=foo", f"out={value}"]},
    )

failing("form-required", "FROM base\nARG x\nENV out=\"${x:?give me x}\"\n", 3, "give me x")
documented(
    "form-required-given", NO_BARE, "FROM base\nARG x=1\nENV out=\"${x:?give me x}${x?or not}\"\n", config={"Env": [PATH, "out=11"]}
)
documented(
    "forms-without-colon",
    NO_BARE,
    "FROM base\nENV empty= x=1\nENV a=<${empty-w}> b=<${unset-w}> c=<${empty+w}> d=<${unset+w}> e=<${x+w}>\n",
    config={"Env": [PATH, "empty=", "x=1", "a=<>", "b=<w>", "c=<w>", "d=<>", "e=<w>"]},
)
failing("form-unknown", "FROM base\n\nENV out=${x!y}\n", 3, "")
failing("form-unclosed", "FROM base\nENV out=${x\n", 2, "")

case("in-workdir", "FROM base\nENV D=/srv/x\nWORKDIR $D/y\nWORKDIR ${unset:-z}\nRUN pwd > /pwd\n")
case("in-user", "FROM base\nARG WHO=bob\nUSER ${WHO}:${unset:-adm}\nRUN id -un > /tmp/u; id -gn > /tmp/g\n")
case("in-label", "FROM base\nENV x=1\nLABEL \"key $x\"=\"v $x\" plain=$x single='$x' ${x}key=y\n")
case("in-expose", "FROM base\nARG P=8080\nEXPOSE $P ${unset:-9}/udp\n")
case("in-volume", "FROM base\nENV V=/data\nVOLUME $V ${V}2\n", instead={"/data": None, "/data2": None}, because="BuildKit makes no directory for a volume")
case("in-stopsignal", "FROM base\nARG S=INT\nSTOPSIGNAL SIG$S\n")
case("in-copy", "FROM base\nARG A=a B=b\nCOPY $A.txt ${B}/ /$A/${unset:-d}/\n", "echo a > a.txt; mkdir b; echo b > b/b")
case("in-copy-flags", "FROM base\nARG O=bob:adm\nCOPY --chown=${O} a /a\n", "echo a > a")
case("in-add", "FROM base\nARG N=s\nADD $N.tar /${N}/\n", "echo a > a; touch -d @5 a; tar --owner=0 --group=0 -cf s.tar a")
case("in-env-same-line", "FROM base\nENV a=1\nENV a=2 b=$a\nENV c=$a\n")
case("in-arg-default", "FROM base\nARG A=1\nARG B=${A}2\nARG D=${A:-x}${unset:-y}\nRUN echo $A $B $D > /o\n")
documented(
    "in-arg-same-line", "buildah expands a whole line before it sets anything of it; BuildKit one after the other",
    "FROM base\nARG A=1 B=${A}2\nRUN echo $A $B > /o\n", tree={"/o": f("1 12\n")},
)
case("not-in-cmd", 'FROM base\nENV x=1\nCMD ["$x", "${x}"]\nENTRYPOINT echo $x ${x}\n')
case("not-in-run", "FROM base\nENV x=env\nRUN x=shell; echo $x ${x#s} '$x' \\$x > /o\n")
case("run-exec-form", 'FROM base\nENV x=1\nRUN ["sh", "-c", "echo $x $0 > /o", "${x}"]\n')
case("in-onbuild-later", "FROM base AS p\nENV x=1\nONBUILD ENV y=$x\nFROM p\nENV z=$y\n")
documented(
    "in-stage-name", "buildah builds no stage that only an expansion names",
    "ARG S=one\nFROM base AS one\nRUN echo 1 > /n\nFROM base AS two\nRUN echo 2 > /n\nFROM ${S}\nLABEL s=x\n",
    tree={"/n": f("1\n")}, config={"Labels": {"s": "x"}},
)
case("in-from-tag", "ARG T=latest\nARG N\nFROM ${N:-base}:$T\nRUN echo ok > /ok\n")
case(
    "env-quoting",
    r"""
FROM base
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
RUN env | grep -v -e ^HOME -e ^PWD -e ^SHLVL -e ^_= -e ^HOSTNAME -e ^container | sort > /env
""",
)
case("env-empty-value-kept", "FROM base\nENV A=\nENV B=\"\"\nRUN env | grep -E '^[AB]=' | sort > /o\n")
case("env-path-extended", "FROM base\nENV PATH=/opt/bin:$PATH\nRUN echo $PATH > /o\n")
documented(
    "in-chmod", "buildah does not expand in --chmod",
    "FROM base\nARG M=600\nCOPY --chmod=$M a /a\n", "echo a > a", tree={"/a": f("a\n", 0o600)},
)
documented(
    "heredoc-copy-expands", "buildah 1.28 has no here-documents",
    "FROM base\nENV x=foobar\nCOPY <<A <<'B' /d/\n$x ${x%bar} ${unset:-d} \\$x\nA\n$x ${x%bar}\nB\n",
    tree={"/d": d(), "/d/A": f("foobar foo d $x\n"), "/d/B": f("$x ${x%bar}\n")}, config={"Env": [PATH, "x=foobar"]},
)
