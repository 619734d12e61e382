"""Build checks: the names and lines that BuildKit warns with, and no others."""

from base import PATH
from corpus import documented, failing

WHY = "buildah has no build checks"


def warns(name: str, dockerfile: str, *expected: tuple[str, int], files: str = "", tree: dict | None = None, config: dict | None = None, **more) -> None:
    documented(name, WHY, dockerfile, files, tree, config, warns=list(expected), **more)


SH = ["/bin/sh", "-c"]
warns("clean", 'FROM base AS a\nENV A=1\nWORKDIR /srv\nCMD ["x"]\nLABEL a=b\n', config={"Env": [PATH, "A=1"], "WorkingDir": "/srv", "Cmd": ["x"], "Labels": {"a": "b"}})
warns("stage-name-casing", "FROM base AS Upper\n", ("StageNameCasing", 1))
warns("from-as-casing", "FROM base as a\n", ("FromAsCasing", 1))
warns("from-as-casing-lower", "from base as a\n")
warns("no-empty-continuation", "FROM base\nENV A=1 \\\n\n    B=2\n", ("NoEmptyContinuation", 4), config={"Env": [PATH, "A=1", "B=2"]})
warns("comment-in-continuation-is-fine", "FROM base\nENV A=1 \\\n    # why\n    B=2\n", config={"Env": [PATH, "A=1", "B=2"]})
warns("instruction-casing", "FROM base\nenv A=1\nLABEL a=b\n", ("ConsistentInstructionCasing", 2), config={"Env": [PATH, "A=1"], "Labels": {"a": "b"}})
warns("instruction-casing-mixed-word", "FROM base\nEnV A=1\n", ("ConsistentInstructionCasing", 2), config={"Env": [PATH, "A=1"]})
warns("instruction-casing-all-lower", "from base\nenv A=1\n", config={"Env": [PATH, "A=1"]})
warns("duplicate-stage-name", "FROM base AS a\nFROM base AS a\n", ("DuplicateStageName", 2))
warns("reserved-stage-name", "FROM base AS context\n", ("ReservedStageName", 1))
warns("json-args-cmd", "FROM base\nCMD x\n", ("JSONArgsRecommended", 2), config={"Cmd": [*SH, "x"]})
warns("json-args-entrypoint", "FROM base\nENTRYPOINT x\n", ("JSONArgsRecommended", 2), config={"Entrypoint": [*SH, "x"], "Cmd": None})
warns("json-args-with-shell-is-fine", 'FROM base\nSHELL ["/bin/sh", "-c"]\nCMD x\n', config={"Cmd": [*SH, "x"], "Shell": SH})
warns("maintainer", "FROM base\nMAINTAINER me\n", ("MaintainerDeprecated", 2), config={"Author": "me"})
warns("undefined-argument-in-from", "FROM base${TAG}\n", ("UndefinedArgInFrom", 1))
warns("undefined-variable", "FROM base\nLABEL a=$NOSUCH\n", ("UndefinedVar", 2), config={"Labels": {"a": ""}})
warns("defined-variable-is-fine", "FROM base\nARG A\nENV P=$PATH\nLABEL a=$A b=${C:-d}\n", config={"Env": [PATH, "P=" + PATH.removeprefix("PATH=")], "Labels": {"a": "", "b": "d"}})
warns("workdir-relative", "FROM base\nWORKDIR srv\n", ("WorkdirRelativePath", 2), config={"WorkingDir": "/srv"})
warns("workdir-relative-after-absolute", "FROM base\nWORKDIR /\nWORKDIR srv\n", config={"WorkingDir": "/srv"})
warns("two-cmds", 'FROM base\nCMD ["a"]\nCMD ["b"]\n', ("MultipleInstructionsDisallowed", 2), config={"Cmd": ["b"]})
warns("two-entrypoints", 'FROM base\nENTRYPOINT ["a"]\nENTRYPOINT ["b"]\n', ("MultipleInstructionsDisallowed", 2), config={"Entrypoint": ["b"], "Cmd": None})
warns("cmd-in-two-stages-is-fine", 'FROM base AS a\nCMD ["a"]\nFROM base\nCMD ["b"]\n', config={"Cmd": ["b"]})
warns("two-healthchecks", 'FROM base\nHEALTHCHECK CMD ["a"]\nHEALTHCHECK CMD ["b"]\n', ("MultipleInstructionsDisallowed", 2), config={"Healthcheck": {"Test": ["CMD", "b"]}})
warns("legacy-env", "FROM base\nENV A b\n", ("LegacyKeyValueFormat", 2), config={"Env": [PATH, "A=b"]})
warns("legacy-label", "FROM base\nLABEL a b\n", ("LegacyKeyValueFormat", 2), config={"Labels": {"a": "b"}})
warns("redundant-target-platform", "FROM --platform=$TARGETPLATFORM base\n", ("RedundantTargetPlatform", 1))
warns("constant-platform", "FROM --platform=linux/amd64 base\n", ("FromPlatformFlagConstDisallowed", 1))
warns("secret-in-arg", "FROM base\nARG AWS_SECRET_ACCESS_KEY\n", ("SecretsUsedInArgOrEnv", 2))
warns("secret-in-env", "FROM base\nENV DB_PASSWORD=x\n", ("SecretsUsedInArgOrEnv", 2), config={"Env": [PATH, "DB_PASSWORD=x"]})
warns("public-key-is-no-secret", "FROM base\nENV PUBLIC_KEY=x KEYS=y\n", config={"Env": [PATH, "PUBLIC_KEY=x", "KEYS=y"]})
warns("invalid-default-in-from", "ARG TAG\nFROM base:${TAG}\n", ("InvalidDefaultArgInFrom", 2), args=["--build-arg", "TAG=latest"])
warns("copy-ignored-file", "FROM base\nCOPY d /d\n", files="mkdir d; touch d/a; echo d/a > .dockerignore", tree={"/d": "d 755 0:0"})
warns("expose-protocol-casing", "FROM base\nEXPOSE 80/TCP\n", ("ExposeProtoCasing", 2), config={"ExposedPorts": {"80/tcp": {}}})
warns("skipped", "# check=skip=StageNameCasing,FromAsCasing\nFROM base as Upper\nMAINTAINER x\n", ("MaintainerDeprecated", 3), config={"Author": "x"})
warns("skipped-all", "# check=skip=all\nFROM base as Upper\nMAINTAINER x\n", config={"Author": "x"})
warns("several", "FROM base as A\nCMD x\n", ("FromAsCasing", 1), ("StageNameCasing", 1), ("JSONArgsRecommended", 2), config={"Cmd": [*SH, "x"]})

failing("as-errors", "# check=error=true\nFROM base as a\n", 2, "FromAsCasing")
