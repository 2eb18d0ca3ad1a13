# SPDX-License-Identifier: Apache-2.0
"""Job scripts that notice in some way how they are run: what they say and how they end must not depend on `-vm`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

_LATIN = b"\xe9t\xe9"
ODD_NAME = os.fsdecode(b"a b\n'c\" $d " + _LATIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A script, and how it is submitted.

    `arguments` are those of qsub's -F, `variables` those of -v, `directory` is -d, below the home. With `whole`
    it goes all the way through mom, wrapper and `jobrun`.
    """

    script: bytes
    arguments: bytes = b""
    variables: Mapping[str, str] = field(default_factory=dict)
    shell: str = "/bin/bash"
    profile: bytes = b""
    directory: str = ""
    whole: bool = False


def _sh(body: str, *, first: str = "#!/bin/sh", **about: object) -> Case:
    return Case(script=f"{first}\n{body}\n".encode(), **about)  # type: ignore[arg-type]


def kinds(*, long: bool = False) -> dict[str, dict[str, Case]]:
    """All cases by name, kind by kind; `long` ones are no fewer and no shorter than they should be."""
    return {
        "statuses": statuses(long=long), "signals": signals(), "streams": streams(), "inputs": inputs(),
        "processes": processes(), "interpreters": interpreters(), "surroundings": surroundings(),
        "otherwise": otherwise(), "bulk": bulk(long=long),
    }


def statuses(*, long: bool) -> dict[str, Case]:
    """Every exit status, or those that mean something to shells and batch systems, and some more."""
    meant = {0, 1, 2, 126, 127, 128, 129, 137, 143, 192, 254, 255}
    chosen = [status for status in range(256) if long or status in meant or not status % 9]
    return {f"exit {status}": _sh(f"exit {status}") for status in chosen}


def signals() -> dict[str, Case]:
    """A script that every signal ends, or does not."""
    after = "ulimit -c 0; {first}kill -{number} $$; echo lives; exit 5"
    stopped = "grep -q '^State:.T' /proc/$$/status"
    wake = {19: f"(while [ -e /proc/$$ ] && ! {stopped}; do sleep 0.05; done; kill -CONT $$) & "}
    return {
        f"signal {number}": _sh(after.format(number=number, first=wake.get(number, ""))) for number in range(1, 65)
    }


def streams() -> dict[str, Case]:
    """What is printed, and where to."""
    return {
        "every byte": _sh("printf '" + "".join(f"\\{byte:03o}" for byte in range(256)) + "' | tee /dev/stderr"),
        "no newline at the end": _sh("printf out; printf err >&2"),
        "a long line": _sh("head -c 3000000 /dev/zero | tr '\\0' x; echo; head -c 200000 /dev/zero | tr '\\0' y >&2"),
        "streams by name": _sh("echo out >/dev/stdout; echo err >/dev/stderr; echo more >>/proc/self/fd/1"),
        "both streams, by turns": _sh(
            "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done"
        ),
        "closed output": _sh("exec >&- 2>&-; echo lost; exit 3", whole=True),
        "closed everything": _sh("exec <&- >&- 2>&-; sleep 0.1; exit 4"),
        "standard error joined": _sh("exec 2>&1; echo one; echo two >&2; ls /nonexistent"),
        "reader that goes": _sh("yes | head -n 3; echo ${PIPESTATUS[*]}", first="#!/bin/bash"),
        "broken pipe": _sh("{ yes; echo $? >&2; } | true; exit 6", first="#!/bin/bash"),
    }


def inputs() -> dict[str, Case]:
    """What a script can know of its standard input, its terminal and its descriptors."""
    return {
        "reads its input": _sh("cat; read -r line; echo \"$? [$line]\"", whole=True),
        "kind of input": _sh("[ -p /dev/stdin ]; echo $?; [ -t 0 ]; echo $?; tty; stty -echo; stty sane"),
        "no terminal": _sh("{ echo x >/dev/tty; } 2>/dev/null; echo $?; [ -t 1 ]; echo $?; tput cols; stty size"),
        "open descriptors": _sh("cd /proc/self/fd && echo *"),
        "blocked and ignored signals": _sh("grep -E '^Sig(Blk|Ign)' /proc/self/status"),
        "its session": _sh(
            "set -- $(cat /proc/$$/stat); [ $4 = $6 ] && echo shell leads the session; "
            "[ $5 = $6 ] && echo one group; echo tty $7"
        ),
    }


def processes() -> dict[str, Case]:
    """Children that outlive their parents, and what becomes of them."""
    return {
        "background job": _sh("sleep 300 & echo end; exit 3"),
        "background job in a group of its own": _sh("set -m; sleep 300 & echo end", first="#!/bin/bash"),
        "daemon that keeps the output": _sh("setsid sleep 300 & echo end; exit 7", whole=True),
        "daemon without output": _sh("setsid sleep 300 >/dev/null 2>&1 & echo end; exit 8"),
        "kills its child": _sh("sleep 300 & kill -9 $!; wait $!; echo $?"),
        "traps": _sh(
            "all='INT TERM QUIT HUP USR1'; trap 'echo caught' $all; for s in $all; do kill -$s $$; done; "
            "trap 'echo bye' EXIT; exit 9", first="#!/bin/bash"
        ),
        "a child that is interrupted": _sh("sh -c 'kill -INT $$'; echo $?; sh -c 'kill -QUIT $$'; echo $?"),
        "waits for its children": _sh("for i in 1 2 3; do (sleep 0.0$i; echo one) & done; wait; echo all"),
        "replaces itself": _sh("exec sh -c 'echo replaced; exit 11'"),
    }


def interpreters() -> dict[str, Case]:
    """What the first line says, or does not."""
    return {
        "no first line": Case(script=b"echo \"$0 is run\" | wc -l\nexit 12\n"),
        "no first line, under dash": Case(script=b"echo run; exit 12\n", shell="/bin/dash"),
        "dos line ends": Case(script=b"#!/bin/sh\r\necho a\r\nexit 3\r\n"),
        "dos line ends behind the first": Case(script=b"#!/bin/sh\necho a\r\nexit 3\r\n"),
        "python": Case(script=b"#!/usr/bin/python3\nimport sys\nprint(sys.argv[1:], file=sys.stderr)\nsys.exit(13)\n",
                       arguments=b"a 'b c'"),
        "perl with an argument": Case(script=b"#!/usr/bin/perl -w\nmy $x; print \"a\" . $x; exit 14;\n"),
        "env with arguments": Case(script=b"#!/usr/bin/env -S sh -e\nfalse\necho not here\n"),
        "no such interpreter": Case(script=b"#!/no/such/interpreter\necho a\n"),
        "interpreter that is no program": Case(script=b"#!/etc/passwd\necho a\n"),
        "empty": Case(script=b""),
        "only a newline": Case(script=b"\n"),
        "no newline at the end of the script": Case(script=b"#!/bin/sh\nexit 15"),
        "binary": Case(script=b"\x7fELF\x02\x01\x01" + bytes(200)),
        "syntax error": _sh("if true; then echo a"),
        "unknown command": _sh("no-such-command; echo $?; /etc/passwd; echo $?; /etc; exit $?", first="#!/bin/bash"),
        "reads a file it may not": _sh("cat /etc/shadow; echo $?; sh /etc/shadow; echo $?"),
        "changes itself": _sh("chmod 0 \"$0\"; echo changed; cat \"$0\""),
        "zeros in the script": Case(script=b"#!/bin/sh\necho a\0b\n"),
    }


def surroundings() -> dict[str, Case]:
    """Limits, masks, directories, arguments and the environment."""
    values = {
        "EMPTY": "", "LINES": "a\nb\n\n", "QUOTES": "it's \"$(id)\" `id` \\ !", "BLANKS": "  a\tb  ",
        "BYTES": os.fsdecode(bytes(range(1, 256))), "EQUAL": "a=b=c", "_LOW": "x", "MAIL": "m", "SSH_CLIENT": "me",
        "LONG": "l" * 100_000,
    }
    printed = "; ".join(f'printf "%s|" "${name}"' for name in values)
    large = {f"LARGE_{number:03}": "v" * 8000 for number in range(150)}
    every = b"'" + bytes(byte for byte in range(1, 256) if byte not in b"'\n") + b"'"
    return {
        # Both ways are gone at the same time, in the same directory.
        "umask and input": _sh(
            "umask; : >mask.$$; stat -c %a mask.$$; rm mask.$$; cat; read -r line; echo $?", whole=True
        ),
        "limits": _sh("ulimit -c 0; ulimit -n 20; ulimit -n; ulimit -f 1; head -c 100000 /dev/zero >grown; echo $?",
                      first="#!/bin/bash"),
        "processor time": _sh("ulimit -c 0; ulimit -S -t 1; while :; do :; done"),
        "environment": _sh(printed, variables=values, whole=True),
        "very large environment": _sh("env | grep ^LARGE | sort | sha256sum", variables=large, whole=True),
        # LANG is the node's or the guest's own; the others tell of guests.
        "names of variables": _sh(
            "env | sed 's/=.*//' | sort | grep -Evx 'LANG|DISTRO|PBS_VMS_PN|PBS_VM_NODEFILE'; echo $SHLVL"
        ),
        "arguments": _sh('printf "[%s]" "$#" "$@"', arguments=b"a 'b  c' \"d'e\" '' \\* -x -- " + _LATIN + b" " + every,
                         whole=True),
        "a very long argument": _sh('printf "%s" "$1" | wc -c', arguments=b"x" * 120_000),
        "an argument that is too long": _sh("echo never", arguments=b"x" * 140_000),
        "names that are not UTF-8": Case(
            script=b"#!/bin/sh\nmkdir $$; cd $$; : >'" + _LATIN + b"'; ls | od -c; cd ..; rm -r $$\n"
        ),
        "directory with an odd name": _sh("pwd", directory=ODD_NAME, whole=True),
        "directory behind a link": _sh("pwd; pwd -P", directory="link", whole=True),
        "unreadable directory": _sh("pwd; ls; echo $?", directory="unreadable", whole=True),
        "profile": _sh('pwd; echo "$SAID"', profile=b"SAID=profile; export SAID; cd /usr"),
    }


def otherwise() -> dict[str, Case]:
    """What is not the same, and cannot be."""
    return {
        "kills its shell": _sh("echo before; kill -TERM 0; echo after"),
        "profile that prints": _sh("echo end", profile=b"echo hello", whole=True),
        "directory that is gone": _sh("pwd", profile=b"cd; mkdir $$; cd $$; rmdir ~/$$", whole=True),
    }


def bulk(*, long: bool) -> dict[str, Case]:
    """A lot on both streams at once, which nobody can have guessed."""
    size = (100 if long else 10) << 20
    made = f"openssl enc -aes-128-ctr -K {{key}} -iv 0 -in /dev/zero 2>/dev/null | head -c {size}"
    one, other = (made.format(key=key) for key in ("11", "22"))
    return {"much": _sh(f"{one} & {other} >&2; wait", whole=True)}
