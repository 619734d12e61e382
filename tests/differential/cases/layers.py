"""What layers keep of files: removal, metadata, links, attributes, odd names."""

from corpus import case, d, documented, f, failing

case(
    "whiteouts",
    r"""
FROM base
RUN mkdir -p /w/d/e /w/o /w/r /w/moved && touch /w/f /w/d/a /w/d/e/b /w/o/lower /w/o/both /w/r/x /w/k && echo m > /w/moved/m \
    && mkdir /w/filetodir.d && echo f > /w/filetodir && mkdir -p /w/dirtofile/sub && ln -s f /w/linktodir && mkdir /w/dirtolink
RUN rm /w/f && rm -rf /w/d/e && rm -rf /w/o && mkdir /w/o && touch /w/o/both /w/o/new && rm -rf /w/r
RUN rm /w/filetodir && mkdir /w/filetodir && touch /w/filetodir/in && rm -rf /w/dirtofile && echo now > /w/dirtofile \
    && rm /w/linktodir && mkdir /w/linktodir && touch /w/linktodir/x && rmdir /w/dirtolink && ln -s d /w/dirtolink
RUN mv /w/moved /w/renamed && mv /w/k /w/kk && echo again > /w/f && mkdir -p /w/r/y
RUN rm -rf /w/o/* && touch /w/.wh-like && mv /w/renamed /w/moved
RUN rm -rf /usr/share/doc /usr/share/man && mkdir /usr/share/doc && rm -f /etc/motd && touch /usr/share/doc/only
""",
)
case("remove-of-base", "FROM base\nRUN rm /etc/motd && rm -r /usr/share/doc\n")
case("remove-and-make-again", "FROM base\nRUN rm -r /usr/share/doc && mkdir /usr/share/doc && touch /usr/share/doc/new\n")
case("remove-then-copy", "FROM base\nRUN rm -r /usr/share/doc\nCOPY a /usr/share/doc/\n", "echo a > a")
case("rename-directory-of-base", "FROM base\nRUN mv /usr/share/doc /usr/share/docs\n")
case("metadata-of-base", "FROM base\nRUN chmod 700 /usr/share && chown 5:6 /usr/share/doc && chown -h 7:8 /bin/ls && chown 33 /etc/passwd && chmod 711 /\nRUN chmod u+s /etc/motd && chmod 1777 /srv\nRUN chown -R 1000:1000 /usr/share/doc\n")
case("set-id", "FROM base\nRUN touch /a /b && chmod 4755 /a && chmod 2711 /b && mkdir /c && chmod 3777 /c\nRUN mkdir /c/inherits && touch /c/f\n")
case("hard-links", "FROM base\nRUN echo a > /a && ln /a /b && ln /a /opt/c && ln -s a /s\nRUN touch /between\nRUN rm /etc/motd\n")
case("hard-link-of-base-changed", "FROM base\nRUN echo more >> /opt/hard\n", varies={"/opt/(hard|setuid)": "the links of the base may break"})
case("attributes-of-base-kept", "FROM base\nRUN touch /x\nFROM scratch\nCOPY --from=0 /opt /opt\n")
case("capability-copied", "FROM base\nRUN chmod 711 /opt\nFROM base\nCOPY --from=0 /opt/cap /cap\n")
documented("attributes-lost-by-cp", "busybox's cp leaves them out, so none may appear", "FROM base\nRUN cp -a /opt/attr /attr\n", tree={"/attr": f("attr\n")}, varies={"/attr": "its time"})
case("fifo", "FROM base\nRUN mkfifo -m 600 /fifo\n")
case("odd-names", r"""
FROM base
RUN mkdir "/sp ace" && touch "/sp ace/ünï" '/quo"te' "/back\\slash" /-dash "$(printf '/new\nline')" \
    && ln -s "ünï" "/sp ace/l" && mkdir -m 000 /closed && touch -d @1 /old && truncate -s 5M /sparse
RUN touch /$(head -c 250 /dev/zero | tr '\0' n) && mkdir -p /$(seq -s / 1 60) && ln -s $(head -c 300 /dev/zero | tr '\0' t) /longlink
FROM base
COPY --from=0 /sp* /quo* /-dash /closed /old /1 /all/
""")
documented("invalid-utf8-names", "buildah finds no such names", "FROM base\nRUN mkdir /d && touch /d/$(printf 'a\\377b')\nFROM base\nCOPY --from=0 /d /copied/\n", tree={"/copied": d(), "/copied/a\\xffb": f("")})
failing("invalid-utf8-matches", "FROM base\nRUN touch /$(printf 'a\\377b')\nFROM base\nCOPY --from=0 /a* /copied/\n", 4, "not UTF-8: /a.b")
case("empty-steps", "FROM base\nRUN true\nRUN true\nENV A=1\nRUN :\nRUN touch /a && rm /a\n")
case("owners", "FROM base\nRUN touch /a && chown 1:2 /a && mkdir /b && chown 65534:65534 /b && ln -s x /c && chown -h 3:4 /c\n")
case("times", "FROM base\nRUN touch -d @1000 /a && mkdir /d && touch -d @2000 /d\nRUN true\nFROM scratch\nCOPY --from=0 /a /a\n")
case("sockets-are-left-out", "FROM base\nRUN rm -f /s; timeout 1 nc -lU /s; rm -f /s; true\n")
documented("proc-dev-sys-stay-empty", "buildah leaves its own mounts there", "FROM base\nRUN touch /dev/shm/x /dev/x 2>/dev/null; ls /proc/1 > /dev/null\n")
failing("names-that-no-layer-can-hold", "FROM base\nRUN touch /.wh.file && mkdir /x && touch /x/.wh..wh..opq /x/a\n", 2, "\\.wh\\.")
