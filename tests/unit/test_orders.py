# SPDX-License-Identifier: Apache-2.0
"""What a hook tells a guard arrives as it was, and nothing else is taken for orders."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import KEY, a_job, a_plan, a_request, an_account
from vtorque import orders
from vtorque.backends.transport import KeyPair
from vtorque.boot import Started
from vtorque.demand import Demand
from vtorque.guard import Orders
from vtorque.model import JobId, Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """Every kind of value that orders may hold."""

    id: JobId
    number: int
    share: float
    yes: bool
    path: Path
    uuid: UUID
    maybe: str | None
    pins: tuple[tuple[int, ...], ...]
    pair: tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What JSON may have without a point."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Values in values."""

    name: str
    leaves: tuple[Leaf, ...]
    leaf: Leaf | None


TEXT = st.text()
LEAVES = st.builds(
    Leaf, id=TEXT, number=st.integers(), share=st.floats(allow_nan=False, allow_infinity=False), yes=st.booleans(),
    path=st.builds(Path, TEXT), uuid=st.uuids(), maybe=st.none() | TEXT,
    pins=st.lists(st.lists(st.integers()).map(tuple)).map(tuple), pair=st.tuples(st.integers(), TEXT),
)
NOTHING = {"x": 1}
TREES = st.builds(Tree, name=TEXT, leaves=st.lists(LEAVES, max_size=3).map(tuple), leaf=st.none() | LEAVES)


@given(TREES)
def test_what_is_encoded_is_decoded_again(tree: Tree) -> None:
    assert orders.decode(Tree, orders.encode(tree)) == tree


def test_a_whole_number_of_seconds_is_a_number_of_seconds() -> None:
    assert orders.decode(Seconds, b'{"seconds": 60}') == Seconds(seconds=60.0)


def some_orders() -> Orders:
    plan = a_plan()
    probe = KeyPair(private="-----BEGIN KEY-----\nx\n-----END KEY-----\n", public=KEY)
    wanted = Demand(job=a_job(spool_script=Path("/x/7.srv.SC")), account=an_account(), request=a_request())
    peer = Peer(rank=0, node="n1", hostname="vn1-1", uuid=str(plan.vms[0].uuid), address="::1", host_key=KEY, cpus="")
    return Orders(
        demand=wanted, plan=plan, generation="12 34", started=(Started(vm=plan.vms[0], host_key=KEY, probe=probe),),
        start_seconds=60.0, peers=(peer,),
    )


def test_a_guards_own_orders_arrive_whole() -> None:
    assert orders.decode(Orders, orders.encode(some_orders())) == some_orders()


def damaged(data: Any) -> Iterator[Any]:
    """It with one thing in it missing, or of no type that anything expects."""
    children = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    for key, child in children:
        if isinstance(data, dict):
            yield {name: each for name, each in data.items() if name != key}
        for worse in (NOTHING, *damaged(child)):
            copy = data.copy()
            copy[key] = worse
            yield copy


def test_what_is_missing_or_of_another_type_is_refused_wherever_it_is() -> None:
    whole = json.loads(orders.encode(some_orders()))
    for data in damaged(whole):
        with pytest.raises(ValueError, match=r"^Orders"):
            orders.decode(Orders, json.dumps(data).encode())


@pytest.mark.parametrize(("field", "value"), [
    ("number", True), ("number", 1.0), ("number", "1"), ("share", "1"), ("yes", 1), ("path", 1), ("uuid", "x"),
    ("maybe", 1), ("pins", [1]), ("pair", [1]), ("pair", [1, "x", 2]), ("id", None), ("more", 1),
])
def test_nothing_is_converted_into_what_was_expected(field: str, value: object) -> None:
    leaf = Leaf(
        id=JobId("7.srv"), number=1, share=0.5, yes=True, path=Path("/x"), uuid=UUID(int=1), maybe=None, pins=((1,),),
        pair=(1, "x"),
    )
    data = json.loads(orders.encode(leaf)) | {field: value}
    with pytest.raises(ValueError):
        orders.decode(Leaf, json.dumps(data).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        orders.decode(Leaf, data)


@pytest.mark.parametrize("value", [object(), {1: 2}, [1], b"x", float("nan"), (object(),)])
def test_what_could_not_come_back_is_not_sent(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        orders.encode(value)
