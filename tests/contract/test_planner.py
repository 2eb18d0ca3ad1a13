# SPDX-License-Identifier: Apache-2.0
"""Planning without root's rights: root's own child, and what root itself has to load for it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.builders import a_job, a_request, a_shape, a_site, an_account, an_image, some_keys
from tests.fakes.node import TEMPLATES
from vtorque import files
from vtorque.cli import rooted
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, StateError
from vtorque.model import Order, Question
from vtorque.options import SiteConfig
from vtorque.planning import Planning
from vtorque.servant import NOBODY, Servant

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else"),
]

PREFIX = TEMPLATES.parent
ORDER = Order(slot=0, keys=some_keys(), announce="", scripts=(("prologue", "#!/bin/sh\n" + "\x01" * 60_000),))


def soon() -> Deadline:
    return Deadline(30.0)


def a_question() -> Question:
    return Question(job=a_job(), account=an_account(), request=a_request(), image=an_image(), shape=a_shape())


@contextlib.contextmanager
def started(site: SiteConfig) -> Iterator[Planning]:
    """What a hook has that starts guests."""
    texts = rooted.read_templates(TEMPLATES, Path(site.template_dir))
    told = json.loads(json.dumps(vars(site)))
    child = Servant("planner", partial(rooted._planner, told, texts), identity=NOBODY)
    with contextlib.closing(Planning(site, child, templates=texts)) as planning:
        yield planning


def written(planning: Planning, seed: Path) -> bytes:
    """The seed of a guest, in a file that only root may open."""
    decided = planning.plan(a_question(), deadline=soon())
    with files.created(seed, mode=0o600) as handle:
        planning.write(decided, ORDER, handle=handle, deadline=soon())
    return seed.read_bytes()


def own_templates(directory: Path, text: str) -> SiteConfig:
    """A site whose templates only root may read."""
    directory.chmod(0o700)
    (directory / "meta-data.yaml").write_text(text)
    (directory / "meta-data.yaml").chmod(0o600)
    return a_site(template_dir=str(directory))


def test_templates_that_are_for_roots_eyes_only_are_rendered_by_nobody(tmp_path: Path) -> None:
    with started(own_templates(tmp_path, "local-hostname: {{ vm.hostname }}\nsecret: hush\n")) as planning:
        made = written(planning, tmp_path / "seed")
    assert b"local-hostname: vn1-1\nsecret: hush\n" in made
    # The longest script that a site may have, each of whose characters takes six where it is written.
    assert len(made) > 360_000


def test_a_template_that_somebody_got_the_better_of_has_no_rights(tmp_path: Path) -> None:
    look = (
        "{% set os = cycler.__init__.__globals__.os %}local-hostname: {{ vm.hostname }}\n"
        "ids: {{ [os.getresuid(), os.getresgid(), os.getgroups()] | string | tojson }}\n"
        "reads: {{ os.access('/etc/shadow', 4) | tojson }}\n"
    )
    with started(own_templates(tmp_path, look)) as planning:
        made = written(planning, tmp_path / "seed")
    assert b'ids: "[(65534, 65534, 65534), (65534, 65534, 65534), []]"\nreads: false\n' in made


def test_a_planner_that_is_killed_or_told_nonsense_fails_the_start(tmp_path: Path) -> None:
    ending = own_templates(tmp_path, "{{ cycler.__init__.__globals__.os._exit(0) }}")
    with started(ending) as planning, pytest.raises(StateError, match="what plans guests has ended"):
        written(planning, tmp_path / "seed")
    with (
        started(own_templates(tmp_path, "{{ nothing }}")) as planning,
        pytest.raises(ConfigError, match=r"template meta-data\.yaml: 'nothing' is undefined"),
    ):
        written(planning, tmp_path / "other")


def test_a_planner_fills_no_disk(tmp_path: Path) -> None:
    endless = own_templates(tmp_path, "local-hostname: {{ vm.hostname }}\nmore: {{ 'x' * 20_000_000 }}\n")
    with started(endless) as planning, pytest.raises(OSError, match="File too large"):
        written(planning, tmp_path / "seed")
    assert (tmp_path / "seed").stat().st_size <= 16 << 20


def test_root_loads_neither_templates_nor_what_places_guests_nor_what_makes_seeds(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.contract.test_planner import started, written, a_site\n"
        "others = ('jinja2', 'yaml', 'pycdlib', 'vtorque.plan', 'vtorque.planner', 'vtorque.render', 'vtorque.numa',"
        " 'vtorque.rooms', 'vtorque.seed', 'vtorque.cloudcheck')\n"
        "for name in [name for name in sys.modules if name.startswith(others[:3]) or name in others]:\n"
        "    del sys.modules[name]\n"
        "from vtorque import guard, lifecycle\n"
        "from vtorque.cli import assembly, hooked, pbshook, pbsverbs, pelog\n"
        "with started(a_site()) as planning:\n"
        "    written(planning, Path(sys.argv[2]))\n"
        "print([name for name in others if name in sys.modules])\n"
    )
    words = [sys.executable, "-c", program, str(PREFIX), str(tmp_path / "seed")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PREFIX)
    assert done.stdout == "[]\n"
