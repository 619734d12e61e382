"""ARG: scopes, what is predefined, what wins."""

from base import PATH
from corpus import case, documented, f, failing

case(
    "scopes",
    r"""
ARG TAG=latest
ARG GLOBAL=glob
ARG UNUSED
FROM base:${TAG} AS one
ARG GLOBAL
ARG LOCAL=loc
ARG BOTH=arg
ENV BOTH=env FROM_ARG=$LOCAL-$GLOBAL-$TAG
RUN echo "$GLOBAL|$LOCAL|$BOTH|$TAG" > /one
FROM base
ARG LOCAL
ARG GIVEN=default
ARG NODEF
COPY --from=one /one /
RUN echo "$LOCAL|$GLOBAL|${GIVEN}|${NODEF}" > /three
LABEL given=$GIVEN nodef="x${NODEF}x"
""",
    args=["--build-arg", "GIVEN=from outside", "--build-arg", "NODEF=n"],
)
documented(
    "inherited-by-stage", "buildah forgets the arguments of a stage in those built on it",
    'FROM base AS one\nARG A=1\nARG B=2\nFROM one\nRUN echo "$A$B" > /o\nENV e=$A\n', args=["--build-arg", "B=3"],
    tree={"/o": f("13\n")}, config={"Env": [PATH, "e=1"]},
)
case("many", 'FROM base\nARG A=1 B=2 C="three words"\nARG D=$A$B\nENV OUT="$A $B $C $D"\nRUN echo "$A $B $C $D" > /out\n')
case("env-wins", "FROM base\nARG V=arg\nENV V=env\nRUN echo $V > /v\n", args=["--build-arg", "V=given"])
case("env-from-arg", "FROM base\nARG V=arg\nENV V=${V:-none}-env\nRUN echo $V > /v\n", args=["--build-arg", "V=given"])
documented(
    "later-of-env-and-arg", "BuildKit takes the one that comes later; buildah the ENV",
    "FROM base AS b\nENV V=env W=env\nFROM b\nARG V=arg\nARG W\nRUN echo $V $W > /v\n", args=["--build-arg", "V=given"],
    tree={"/v": f("given env\n")}, config={"Env": [PATH, "V=env", "W=env"]},
)
case("default-overridden", "FROM base\nARG A=1\nRUN echo $A > /a\nARG A=2\nRUN echo $A >> /a\n")
case("before-declared", "FROM base\nRUN echo \"<$A>\" > /a\nARG A=1\nRUN echo \"<$A>\" >> /a\n", args=["--build-arg", "A=2"])
case("given-empty", "FROM base\nARG A=default\nRUN echo \"<$A>\" > /a\n", args=["--build-arg", "A="])
case("declared-without-value", "FROM base\nARG A\nRUN echo \"<${A-unset}>\" > /a\nENV e=x${A}x\n")
case("not-in-the-image", "FROM base\nARG SECRET=s\nRUN test $SECRET = s\n")
case("spaces-and-equals", "FROM base\nARG A\nRUN echo \"$A\" > /a\n", args=["--build-arg", "A=a=b  c=d"])
case("global-needs-declaring", "ARG G=1\nFROM base\nRUN echo \"<$G>\" > /g\nARG G\nRUN echo \"<$G>\" >> /g\n")
case("global-default-replaced", "ARG G=1\nFROM base\nARG G=2\nRUN echo $G > /g\n")
case("global-given", "ARG G=1\nFROM base\nARG G\nRUN echo $G > /g\n", args=["--build-arg", "G=3"])
case("global-of-global", "ARG A=la\nARG B=${A}test\nFROM base:$B\nRUN echo ok > /ok\n")
case("in-two-stages", "FROM base AS a\nARG A=1\nRUN echo $A > /a\nFROM base\nARG A=2\nCOPY --from=a /a /\nRUN echo $A > /b\n")
case("predefined-proxy", "FROM base\nRUN echo $http_proxy $NO_PROXY > /p\n", args=["--build-arg", "http_proxy=http://p", "--build-arg", "NO_PROXY=n"])
documented(
    "predefined-proxy-not-kept", "what buildah does with proxies of its own environment would be in the way",
    "FROM base\nRUN env | grep -i proxy | sort > /p\nRUN rm /p\n", args=["--build-arg", "HTTPS_PROXY=http://p"],
)
case(
    "platform",
    "FROM --platform=linux/amd64 base\nARG TARGETARCH\nARG TARGETPLATFORM\nARG TARGETOS\nARG TARGETVARIANT\nARG BUILDOS\nARG BUILDARCH\n"
    "ARG BUILDPLATFORM\nRUN echo $TARGETARCH $TARGETPLATFORM $TARGETOS \"<$TARGETVARIANT>\" $BUILDOS $BUILDARCH $BUILDPLATFORM > /p\n",
)
documented(
    "platform-in-from", "buildah has no platform arguments in the global scope",
    "FROM --platform=$BUILDPLATFORM base AS build\nFROM --platform=$TARGETPLATFORM base\nARG TARGETARCH\nRUN echo $TARGETARCH > /a\n",
    tree={"/a": f("amd64\n")},
)
documented(
    "platform-undeclared", "buildah offers them undeclared",
    'FROM base\nRUN echo "<$TARGETARCH>" > /a\n', tree={"/a": f("<>\n")},
)
failing("from-argument-empty", "ARG NAME\nFROM ${NAME}\n", 2, "")
failing("from-argument-of-stage", "FROM base AS a\nARG T=latest\nFROM base:${T}\nRUN true\n", 3, "")
failing("bad-name", "FROM base\nARG =x\n", 2, "")
failing("no-name", "FROM base\nARG\n", 2, "(?i)arg")
