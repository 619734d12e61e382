"""The ignore file: a table of patterns over one context, and which file counts."""

from corpus import case, failing

CONTEXT = """
mkdir -p a/b/c node_modules/x sub/node_modules/y docs keep/deep logs
for f in a/1.log a/b/2.log a/b/c/3.txt top.log node_modules/x/i sub/node_modules/y/j docs/README.md docs/x.md \
    keep/deep/f keep/g logs/l.txt .env '#hash' 'sp ace' 'trail ' '!bang' 'st*r' stor; do echo "$f" > "$f"; done
"""
for name, patterns in {
    "nothing": [""],
    "name-at-the-top": ["top.log"],
    "name-is-not-deep": ["1.log"],
    "star": ["*.log"],
    "star-one-level": ["*/*.log"],
    "star-does-not-cross": ["a/*.txt"],
    "double-star-suffix": ["**/*.log"],
    "double-star-name": ["**/node_modules"],
    "double-star-middle": ["a/**/3.txt"],
    "double-star-end": ["a/**"],
    "double-star-alone": ["**", "!docs"],
    "question-mark": ["a/?.log"],
    "class": ["a/[0-9].log"],
    "class-negated": ["a/[^0-9].log", "[^a-l]*"],
    "directory": ["docs"],
    "directory-slash": ["docs/"],
    "leading-slash": ["/docs", "/logs/"],
    "leading-dot-slash": ["./docs", "./a/./b"],
    "dot-dot-cleaned": ["a/b/../1.log"],
    "spaces-trimmed": ["  .env  ", "sp ace"],
    "comment": ["# docs", "#hash", "logs"],
    "hash-escaped": ["\\\\#hash"],
    "blank-lines": ["", "docs", "", "  ", "logs"],
    "negation": ["docs", "!docs/README.md"],
    "negation-of-star": ["*", "!a"],
    "negation-then-again": ["a", "!a/b", "a/b/c"],
    "negation-order": ["!docs/README.md", "docs"],
    "negation-with-star": ["docs/*", "!docs/README*"],
    "negation-deep": ["**/*.log", "!**/2.log"],
    "negation-of-a-parent": ["keep/*", "!keep/deep"],
    "all-but-one-deep": ["*", "!a/b/c/3.txt"],
    "bang-alone-in-name": ["\\\\!bang"],
    "star-escaped": ["st\\\\*r"],
    "dockerfile-itself": ["Dockerfile", ".dockerignore"],
    "dot": ["."],
    "windows-line-ends": ["docs\\r", "logs\\r"],
    "duplicate": ["a", "a", "!a", "a"],
    "case-matters": ["DOCS", "Top.log"],
}.items():
    lines = "".join(f"{pattern}\\n" for pattern in patterns)
    case(name, "FROM base\nCOPY . /c/\n", CONTEXT + f"printf '{lines}' > .dockerignore".replace("%", "%%"))
case("byte-order-mark", "FROM base\nCOPY . /c/\n", CONTEXT + "printf '\\357\\273\\277docs\\nlogs\\n' > .dockerignore")
case("no-newline-at-end", "FROM base\nCOPY . /c/\n", CONTEXT + "printf 'docs\\nlogs' > .dockerignore")
case("applies-to-subdirectory-sources", "FROM base\nCOPY docs /d/\nCOPY a /a/\n", CONTEXT + "printf 'docs/x.md\\n**/*.log\\n' > .dockerignore")
case("applies-to-wildcards", "FROM base\nCOPY *.* /d/\n", CONTEXT + "printf 'top.log\\n' > .dockerignore")
case("not-to-other-stages", "FROM base AS s\nRUN touch /secret\nFROM base\nCOPY --from=s /secret /s\n", "echo secret > .dockerignore")
case("named", "FROM base\nCOPY . /c/\n", "mv Dockerfile My.Dockerfile; touch a b; echo a > .dockerignore; echo b > My.Dockerfile.dockerignore", args=["-f", "{context}/My.Dockerfile"])
case("dockerfile-dockerignore-wins", "FROM base\nCOPY . /c/\n", "touch a b; echo a > .dockerignore; echo b > Dockerfile.dockerignore")
case("named-in-subdirectory", "FROM base\nCOPY . /c/\n", "mkdir sub; mv Dockerfile sub/D; touch a b sub/x; echo a > .dockerignore; printf 'b\\nsub/x\\n' > sub/D.dockerignore", args=["-f", "{context}/sub/D"])
case("empty-specific-file", "FROM base\nCOPY . /c/\n", "touch a; echo a > .dockerignore; : > Dockerfile.dockerignore")
failing("source", "FROM base\nCOPY secret /s\n", 2, "secret", "touch secret; echo secret > .dockerignore")
failing("source-in-ignored-directory", "FROM base\nCOPY d/secret /s\n", 2, "secret", "mkdir d; touch d/secret; echo d > .dockerignore")
failing("bad-pattern", "FROM base\nCOPY . /s\n", None, "\\[", "printf '[\\n' > .dockerignore")
