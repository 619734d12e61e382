"""What is asked besides the Dockerfile: options, several at a time, those that go away."""

import threading

from corpus import scenario


@scenario("equal-requests-at-once-are-one-build")
def equal(w):
    w.dockerfile("FROM base\nRUN sleep 1; UNIQUE /mark\n")
    built, threads = [], [threading.Thread(target=lambda: built.append(w.try_build())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [one.output for one in built if one.result is None]
    assert not failed, failed[0]
    assert len({one.id for one in built}) == 1, [one.id for one in built]


@scenario("build-goes-on-for-who-still-waits")
def goes_on(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c touch /c/{w.name}; sleep 3; UNIQUE /mark\n")
    first = w.start()
    w.until_cached_file(w.name)
    built = []
    second = threading.Thread(target=lambda: built.append(w.try_build()))
    second.start()
    # The second is to have joined by the time that the first goes.
    w.sleep(1)
    first.kill()
    first.wait()
    second.join()
    assert built[0].result is not None, built[0].output
    w.cached(w.build())


@scenario("build-ends-when-nobody-waits")
def ends(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c touch /c/{w.name}; sleep 4; touch /c/finished\n")
    first = w.start()
    w.until_cached_file(w.name)
    first.kill()
    first.wait()
    w.sleep(6)
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c ls /c > /o\n", "Look")
    left = w.text(w.build("-f", str(w.context / "Look")), "/o")
    assert "finished" not in left, "the step went on"
    # What a step has written there stays, whatever became of the step.
    assert left == f"{w.name}\n", f"the cache mount holds {left!r}"


@scenario("no-network")
def no_network(w):
    w.dockerfile("FROM base\nRUN ls /sys/class/net | tr '\\n' ' ' > /n\n")
    assert w.text(w.build("--network", "no-network"), "/n") == "lo "


@scenario("build-argument-from-the-environment")
def build_argument(w):
    w.dockerfile("FROM base\nARG A\nRUN echo $A > /a\n")
    assert w.text(w.build("--build-arg", "A", env={"A": "from outside"}), "/a") == "from outside\n"


@scenario("dockerfile-outside-of-the-context")
def outside(w):
    w.sh("echo a > a; printf 'FROM base\\nCOPY . /c/\\n' > ../Outside")
    tree = w.tree(w.build("-f", str(w.work / "Outside")))
    assert "/c/a" in tree and "/c/Outside" not in tree


@scenario("several-tags")
def tags(w):
    w.dockerfile("FROM base\nLABEL a=b\n")
    built = w.build("-t", f"local/{w.name}:1", "-t", f"registry.example:5000/{w.name}")
    named = built.result["image"]["references"]
    assert f"docker.io/local/{w.name}:1" in named and f"registry.example:5000/{w.name}:latest" in named, named


@scenario("image-that-cannot-be-had-is-not-the-dockerfiles-fault")
def unreachable(w):
    w.dockerfile("FROM 127.0.0.1:9/nosuch/image:1\n")
    built = w.try_build()
    assert built.code not in (0, 64, 66), built.code
    assert "Dockerfile:1" in built.output and "127.0.0.1:9" in built.output, built.output


@scenario("image-is-what-a-sandbox-runs")
def sandbox(w):
    w.dockerfile("FROM base\nENV A=1\nWORKDIR /srv\nUSER bob\nRUN echo made > /tmp/made\n")
    tag = f"local/{w.name}:1"
    w.build("-t", tag)
    made = w.berth.must("sandbox", "create", tag).strip()
    try:
        printed = w.berth.must("sandbox", "exec", made, "--", "sh", "-c", "echo $A $PWD $(id -un) $(cat /tmp/made)")
        assert printed == "1 /srv bob made\n", printed
    finally:
        w.berth.must("sandbox", "rm", made)
