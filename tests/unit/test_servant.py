# SPDX-License-Identifier: Apache-2.0
"""How somebody is asked through a socket: what goes along, what comes back, and what is believed of it.

Who is asked is a thread here; what a child of ours is else is in tests/contract/test_apart.py.
"""

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vtorque import servant
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, DeadlineExceeded, InternalError, StateError, VtorqueError
from vtorque.servant import Caller, Gone, Handle


def soon() -> Deadline:
    return Deadline(20)


class OwnError(StateError):
    """One that only who is asked knows."""


class Served:
    """Has a verb for each way to answer."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.given: list[int] = []

    def opened(self, name: str, *, deadline: Deadline) -> Handle:
        found = os.open(self._root / name, os.O_RDONLY)
        self.given.append(found)
        return Handle(found)

    def perhaps(self, *, deadline: Deadline) -> Handle | None:
        return None

    def copied(self, *, deadline: Deadline, handle: int) -> Handle:
        return Handle(os.dup(handle))

    def written(self, text: str, *, deadline: Deadline, handle: int) -> int:
        return os.write(handle, text.encode())

    def said(self, text: object, *, deadline: Deadline) -> object:
        return text

    def failed(self, kind: str, *, deadline: Deadline) -> None:
        kinds: dict[str, Exception] = {
            "own": OwnError("no\x1b[2J", hint="try\nagain", details="a\nb"), "config": ConfigError("no"),
            "other": KeyError("x"), "bare": OSError(), "text": OSError("only a text"),
            "hostile": OSError(errno.EACCES, "no\x1b[2J", "/x\ny"),
            "exists": FileExistsError(errno.EEXIST, "there", Path("/x")),
        }
        raise kinds[kind]


@contextlib.contextmanager
def asked(serve: Callable[[socket.socket], None]) -> Iterator[Caller]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs,), daemon=True)
    thread.start()
    caller = Caller("it", ours)
    try:
        yield caller
    finally:
        caller.dismiss()
        thread.join(20)
        theirs.close()


@pytest.fixture
def served(tmp_path: Path) -> Served:
    (tmp_path / "file").write_text("text")
    return Served(tmp_path)


@pytest.fixture
def caller(served: Served) -> Iterator[Caller]:
    with asked(lambda orders: servant.serve(served, orders)) as found:
        yield found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settled(count: Callable[[], int], expected: int) -> bool:
    """Who is asked closes his own after he has answered."""
    return any(count() <= expected for _ in soon().ticks(doing="wait for descriptors to be closed"))


def test_a_descriptor_comes_back_and_is_the_callers(caller: Caller, served: Served) -> None:
    before = open_files()
    found = caller.ask("opened", "file", deadline=soon())
    assert isinstance(found, int)
    with os.fdopen(found) as file:
        assert file.read() == "text"
    assert settled(open_files, before), "neither side keeps one"
    assert caller.ask("perhaps", deadline=soon()) is None


def test_descriptors_go_along(caller: Caller, tmp_path: Path) -> None:
    before = open_files()
    with (tmp_path / "a").open("w") as one:
        assert caller.ask("written", "xy", deadline=soon(), handle=one.fileno()) == 2
        found = caller.ask("copied", deadline=soon(), handle=one.fileno())
        os.write(found, b"z")
        os.close(found)
    assert (tmp_path / "a").read_text() == "xyz"
    assert settled(open_files, before)


@pytest.mark.parametrize("text", ["a descriptor", {"a": [1, None]}, "\0\n", ""])
def test_words_come_back_as_they_are(caller: Caller, text: object) -> None:
    assert caller.ask("said", text, deadline=soon()) == text


def test_what_the_system_says_comes_back_as_such(caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        caller.ask("opened", "missing", deadline=soon())
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(tmp_path / "missing"))
    with pytest.raises(FileExistsError, match="there: '/x'"):
        caller.ask("failed", "exists", deadline=soon())
    with pytest.raises(PermissionError) as hostile:
        caller.ask("failed", "hostile", deadline=soon())
    assert str(hostile.value).isprintable()
    for kind in ("bare", "text"):
        with pytest.raises(OSError, match=r"Errno 0"):
            caller.ask("failed", kind, deadline=soon())


@pytest.mark.parametrize(("kind", "arrives"), [("own", StateError), ("config", ConfigError), ("other", InternalError)])
def test_other_errors_are_the_nearest_that_both_know(
    caller: Caller, kind: str, arrives: type[VtorqueError]
) -> None:
    with pytest.raises(VtorqueError) as error:
        caller.ask("failed", kind, deadline=soon())
    assert type(error.value) is arrives
    assert error.value.brief.isprintable() and error.value.hint.isprintable()


@pytest.mark.parametrize("verb", ["missing", "_root", "__init__", "__class__", "given"])
def test_there_are_no_verbs_but_verbs(caller: Caller, verb: str) -> None:
    with pytest.raises(InternalError):
        caller.ask(verb, deadline=soon())


def answering(line: bytes, *handles: str) -> Callable[[socket.socket], None]:
    """Somebody who answers one order in a way of his own."""

    def serve(orders: socket.socket) -> None:
        _, (asker, *_), _, _ = socket.recv_fds(orders, 1, 2)
        with socket.socket(fileno=asker) as call, contextlib.ExitStack() as held:
            call.recv(1 << 16)
            opened = [held.enter_context(Path(each).open()).fileno() for each in handles]
            if line:
                socket.send_fds(call, [line], opened)

    return serve


@pytest.mark.parametrize("handles", [0, 1])
@pytest.mark.parametrize("line", [
    b"", b"\n", b"[]\n", b"7\n", b"{}\n", b'{"failed": ""}\n', b'{"failed": 7}\n', b'{"failed": "OSError"}\n',
    b'{"failed": "OSError", "found": []}\n', b'{"failed": "OSError", "found": ["x", "", ""]}\n',
    b'{"failed": "OSError", "found": 7}\n', b'{"failed": "OSError", "found": {"a": 1, "b": 2, "c": 3}}\n',
    b"[" * 9000 + b"\n", b'{"failed": "ConfigError"}\n',
], ids=range(14))
def test_an_answer_that_makes_no_sense_is_none_and_leaves_nothing_open(line: bytes, handles: int) -> None:
    before = open_files()
    with (
        asked(answering(line, *["/dev/null"] * handles)) as caller,
        pytest.raises(Gone),
    ):
        caller.ask("it", deadline=soon())
    assert settled(open_files, before)


@pytest.mark.parametrize("failed", ["SystemExit", "KeyboardInterrupt", "Blame", "known", "os", "VtorqueErrors"])
def test_nobody_makes_us_raise_what_is_no_error_of_ours(failed: str) -> None:
    line = json.dumps({"failed": failed, "brief": "b", "hint": "", "details": ""}).encode() + b"\n"
    with asked(answering(line)) as caller, pytest.raises(InternalError):
        caller.ask("it", deadline=soon())


def test_a_descriptor_that_nobody_has_announced_is_not_kept() -> None:
    before = open_files()
    with asked(answering(b'{"failed": "", "found": 7}\n', "/dev/null")) as caller:
        assert caller.ask("it", deadline=soon()) == 7
    assert settled(open_files, before)


def test_who_is_not_there_any_more_is_missed() -> None:
    def go(orders: socket.socket) -> None:
        orders.close()

    with asked(go) as caller:
        for _ in range(2):
            with pytest.raises(Gone):
                caller.ask("it", deadline=soon())


def test_who_does_not_answer_is_waited_for_no_longer_than_he_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servant, "_MARGIN_SECONDS", 0.0)
    over = threading.Event()

    def hang(orders: socket.socket) -> None:
        _, handles, _, _ = socket.recv_fds(orders, 1, 2)
        over.wait(20)
        for each in handles:
            os.close(each)

    with asked(hang) as caller:
        with pytest.raises(DeadlineExceeded, match="it did not answer in time: said"):
            caller.ask("said", deadline=Deadline(0.05))
        over.set()


def test_several_ask_at_the_same_time(caller: Caller) -> None:
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = caller.ask("said", number, deadline=soon())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {number: number for number in range(20)}


@pytest.mark.parametrize("verb", ["__init__", "__class__", "_root", "__setattr__"])
def test_only_what_is_public_may_be_asked_for(caller: Caller, served: Served, verb: str) -> None:
    with pytest.raises(InternalError, match="not for others"):
        caller.ask(verb, "x", deadline=soon())
    assert not served.given


def test_an_order_that_makes_no_sense_is_refused_and_closes_what_came_along(caller: Caller) -> None:
    before = open_files()
    orders = (b"", b"[]", b"{}", b'{"verb": 7}', b'{"verb": "said", "words": 1, "seconds": 1}', b"\xff")
    for order in orders:
        ours, theirs = socket.socketpair()
        with ours, theirs, (Path("/dev/null")).open() as along:
            socket.send_fds(caller.orders, [b"\0"], [theirs.fileno(), along.fileno()])
            ours.sendall(order + b"\n")
            theirs.close()
            assert b'"failed": "InternalError"' in ours.makefile("rb").readline()
    assert settled(open_files, before)
    assert caller.ask("said", 7, deadline=soon()) == 7


def test_many_orders_at_once_are_carried_out_at_once() -> None:
    """Sixteen that wait for one another: one after the other none would come to its end."""
    together = threading.Barrier(16)

    class Slow:
        def meet(self, *, deadline: Deadline) -> int:
            return together.wait(20)

    with asked(lambda orders: servant.serve(Slow(), orders)) as caller, ThreadPoolExecutor(16) as pool:
        met = pool.map(lambda _: caller.ask("meet", deadline=soon()), range(16))
        assert sorted(met) == list(range(16))
