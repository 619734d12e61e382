"""RUN --mount: bind, cache, tmpfs, secret, ssh."""

from corpus import documented, f, failing, scenario

WHY = "here the mount's own semantics are what is asked for, and buildah 1.28 has other ones"
documented("bind", WHY, "FROM base\nRUN --mount=type=bind,source=d,target=/m cat /m/a > /o\n", "mkdir d; echo a > d/a", tree={"/o": f("a\n")}, varies={"/m": "the place of the mount may stay"})
documented("bind-is-the-default", WHY, "FROM base\nRUN --mount=source=d,target=/mnt cat /mnt/a > /o\n", "mkdir d; echo a > d/a", tree={"/o": f("a\n")})
documented("bind-whole-context", WHY, "FROM base\nRUN --mount=target=/mnt ls /mnt | grep -v Dockerfile > /o\n", "touch x y; echo y > .dockerignore; echo .dockerignore >> .dockerignore", tree={"/o": f("x\n")})
documented("bind-file", WHY, "FROM base\nRUN --mount=type=bind,source=a,target=/etc/motd cat /etc/motd > /o\nRUN cat /etc/motd >> /o\n", "echo a > a", tree={"/o": f("a\nwelcome\n")})
documented("bind-dst-and-src", WHY, "FROM base\nRUN --mount=type=bind,src=a,dst=/mnt/../srv/x,ro cat /srv/x > /o; rm -f /srv/x; true\n", "echo a > a", tree={"/o": f("a\n")}, varies={"/srv/x": "the place of the mount may stay"})
documented("bind-read-only", WHY, "FROM base\nRUN --mount=type=bind,source=d,target=/mnt touch /mnt/x 2>/dev/null || echo refused > /o\n", "mkdir d; touch d/a", tree={"/o": f("refused\n")})
documented("bind-writable-is-thrown-away", WHY, "FROM base\nRUN --mount=type=bind,source=d,target=/mnt,rw echo new > /mnt/x && cat /mnt/x > /o\nRUN --mount=type=bind,source=d,target=/mnt ls /mnt >> /o\n", "mkdir d; touch d/a", tree={"/o": f("new\na\n")})
documented("bind-from-stage", WHY, "FROM base AS s\nRUN mkdir /out && echo s > /out/s\nFROM base\nRUN --mount=type=bind,from=s,source=/out,target=/mnt cat /mnt/s > /o\n", tree={"/o": f("s\n")})
documented("bind-from-image", WHY, "FROM base\nRUN --mount=from=base,source=/etc,target=/mnt cat /mnt/motd > /o\n", tree={"/o": f("welcome\n")})
documented("bind-relative-target", WHY, "FROM base\nWORKDIR /srv\nRUN --mount=source=a,target=a cat a > /o; true\n", "echo a > a", tree={"/o": f("a\n")}, config={"WorkingDir": "/srv"}, varies={"/srv/a": "the place of the mount may stay"})
documented("bind-variables", WHY, "FROM base\nARG D=d\nRUN --mount=type=bind,source=$D,target=/mnt cat /mnt/a > /o\n", "mkdir d; echo a > d/a", tree={"/o": f("a\n")})
documented("several", WHY, "FROM base\nRUN --mount=source=a,target=/mnt/a --mount=type=tmpfs,target=/tmp --mount=source=b,target=/mnt/b cat /mnt/a /mnt/b > /o; touch /tmp/x\n", "echo a > a; echo b > b", tree={"/o": f("a\nb\n")}, varies={"/mnt/[ab]": "the place of the mount may stay"})
documented("tmpfs", WHY, "FROM base\nRUN --mount=type=tmpfs,target=/usr/share/doc ls /usr/share/doc | wc -l > /o; touch /usr/share/doc/x; ls /usr/share/doc >> /o\n", tree={"/o": f("0\nx\n")})
documented("tmpfs-size", WHY, "FROM base\nRUN --mount=type=tmpfs,target=/mnt,size=1m dd if=/dev/zero of=/mnt/x bs=1024 count=2048 2>/dev/null || echo full > /o\n", tree={"/o": f("full\n")})
documented("secret-missing-is-nothing", WHY, "FROM base\nRUN --mount=type=secret,id=none test ! -e /run/secrets/none && echo nothing > /o\n", tree={"/o": f("nothing\n")}, varies={"/run/secrets": "the place of the mount may stay"})

failing("type-unknown", "FROM base\nRUN --mount=type=moon,target=/x true\n", 2, "moon")
failing("option-unknown", "FROM base\nRUN --mount=type=tmpfs,target=/x,sise=3 true\n", 2, "sise")
failing("no-target", "FROM base\nRUN --mount=type=bind,source=a true\n", 2, "target", "touch a")
failing("bind-missing-source", "FROM base\nRUN --mount=source=nothing,target=/m true\n", 2, "nothing")
failing("bind-missing-stage", "FROM base\nRUN --mount=from=7,target=/m true\n", 2, "")
failing("ssh-is-refused", "FROM base\nRUN --mount=type=ssh true\n", 2, "ssh")
failing("secret-required", "FROM base\nRUN --mount=type=secret,id=none,required=true true\n", 2, "none")
failing("sharing-unknown", "FROM base\nRUN --mount=type=cache,target=/c,sharing=maybe true\n", 2, "maybe")


@scenario("cache-persists")
def cache(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c echo one >> /c/log && cp /c/log /seen\n")
    first = w.build()
    assert w.text(first, "/seen") == "one\n"
    assert not [path for path in w.tree(first) if path.startswith("/c/")], "the cache is in the image"
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c echo two >> /c/log && cp /c/log /seen\n")
    assert w.text(w.build(), "/seen") == "one\ntwo\n"
    w.cached(w.build())


@scenario("cache-id-is-the-target-by-default")
def cache_id(w):
    target = f"/{w.name}"
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,target={target} touch {target}/one\nRUN --mount=type=cache,target={target}/ ls {target} > /o\n")
    assert w.text(w.build(), "/o") == "one\n"


@scenario("cache-ids-are-apart")
def cache_apart(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name}-1,target=/c touch /c/one\nRUN --mount=type=cache,id={w.name}-2,target=/c ls /c | wc -l > /o\n")
    assert w.text(w.build(), "/o") == "0\n"


@scenario("cache-mode-and-owner")
def cache_mode(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c,mode=0700,uid=5,gid=6 stat -c '%a %u %g' /c > /o\n")
    assert w.text(w.build(), "/o") == "700 5 6\n"


@scenario("cache-read-only")
def cache_ro(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/c,ro touch /c/x 2>/dev/null || echo refused > /o\n")
    assert w.text(w.build(), "/o") == "refused\n"


@scenario("cache-begins-with-another-stage")
def cache_from(w):
    w.dockerfile(f"FROM base AS s\nRUN mkdir /seed && echo seed > /seed/a\nFROM base\nRUN --mount=type=cache,id={w.name},from=s,source=/seed,target=/c cat /c/a > /o\n")
    assert w.text(w.build(), "/o") == "seed\n"


@scenario("cache-locked-is-one-at-a-time")
def cache_locked(w):
    step = f"RUN --mount=type=cache,id={w.name},target=/c,sharing=locked mkdir /c/busy && sleep 1 && rmdir /c/busy && touch /ok"
    w.dockerfile(f"FROM base AS a\n{step}\nFROM base AS b\nRUN true\n{step}\nFROM base\nCOPY --from=a /ok /a\nCOPY --from=b /ok /b\n")
    w.build()


@scenario("secret")
def secret(w):
    w.sh("echo hush-1234567 > ../secret")
    w.dockerfile("FROM base\nRUN --mount=type=secret,id=key cat /run/secrets/key | wc -c > /n; stat -c '%a %u' /run/secrets/key > /m\n"
                 "RUN --mount=type=secret,id=key,target=/root/k,mode=0444,uid=5 stat -c '%a %u' /root/k > /o\nRUN ls /run/secrets 2>/dev/null | wc -l > /after; rm -rf /run/secrets /root/k\n")
    built = w.build("--secret", f"id=key,src={w.work}/secret")
    assert w.text(built, "/n").strip() == "13" and w.text(built, "/m") == "400 0\n" and w.text(built, "/o") == "444 5\n"
    assert w.text(built, "/after") == "0\n"
    w.nowhere("hush-1234567", built)


@scenario("secret-as-environment")
def secret_env(w):
    w.dockerfile("FROM base\nRUN --mount=type=secret,id=key,env=KEY echo ${#KEY} > /n; test ! -e /run/secrets/key\nRUN echo \"<$KEY>\" > /m\n")
    built = w.build("--secret", "id=key,env=HUSH", env={"HUSH": "hush-7654321"})
    assert w.text(built, "/n") == "12\n" and w.text(built, "/m") == "<>\n"
    w.nowhere("hush-7654321", built)


@scenario("secret-does-not-matter-to-the-cache")
def secret_cache(w):
    w.dockerfile("FROM base\nRUN --mount=type=secret,id=key UNIQUE /mark\n")
    w.sh("echo one > ../secret")
    first = w.build("--secret", f"id=key,src={w.work}/secret")
    w.sh("echo two > ../secret")
    second = w.build("--secret", f"id=key,src={w.work}/secret")
    w.cached(second)
    assert first.result["content_key"] == second.result["content_key"]


@scenario("secret-that-is-printed-is-not-in-the-log")
def secret_printed(w):
    w.sh("printf hush-printed > ../secret")
    w.dockerfile("FROM base\nRUN --mount=type=secret,id=key cat /run/secrets/key; exit 1\n")
    built = w.try_build("--secret", f"id=key,src={w.work}/secret")
    assert built.code in (64, 66), built.output
    assert "hush-printed" not in (w.berth.work / "daemon.log").read_text(), "it is in the daemon's log"


@scenario("bind-of-the-context-looks-at-content")
def bind_cache(w):
    w.sh("mkdir d e; echo a > d/a; echo e > e/e")
    w.dockerfile("FROM base\nRUN --mount=source=d,target=/mnt UNIQUE /mark\n")
    first = w.build()
    w.sh("touch -d @99 d/a; echo E > e/e")
    w.ran_again(first, w.build())
    w.sh("echo A > d/a")
    w.ran_again(first, w.build(), "/mark")


@scenario("bind-from-stage-runs-that-stage")
def bind_stage(w):
    w.dockerfile("FROM base AS s\nRUN UNIQUE /made\nFROM base\nRUN --mount=from=s,target=/mnt cp /mnt/made /mark\n")
    first = w.build()
    assert w.text(first, "/mark").count("-") == 4
    w.cached(w.build())


@scenario("mount-points-do-not-hide-what-is-there")
def hidden(w):
    w.dockerfile(f"FROM base\nRUN --mount=type=cache,id={w.name},target=/usr/share/doc touch /usr/share/doc/x\n")
    tree = w.tree(w.build())
    assert "/usr/share/doc/one" in tree and "/usr/share/doc/x" not in tree
