# SPDX-License-Identifier: Apache-2.0
"""Every field that a user, his directory service or an image's maker has a say in, in every document of root's."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import a_plan, a_request, a_site, an_account, an_image, some_keys
from vtorque import render
from vtorque.errors import ConfigError
from vtorque.model import Group, JobPlan

TEMPLATES = Path(__file__).resolve().parents[2] / "templates-vm"

PAYLOADS = (
    "x</name><devices><disk/></devices>", "x' type='block' y='", 'x"><emulator>/bin/sh</emulator>', "]]>", "&#10;&amp;",
    "{{ 7 * 191 }}", "{% for x in range(9) %}x{% endfor %}", "{{ plan.__class__.__mro__ }}", "## template: jinja",
    "x\nruncmd: [reboot]\n", "x\n- [reboot]\n", "'\nusers: [root]\n#", "!!python/object/apply:os.system [id]",
    "*alias", "&anchor", "#include http://x/", "#cloud-boothook", "no", "0777", "1e3", "~", "<<", "\u0085", "\ufeff",
    "\U0001f600", "\u202e", "$(reboot)", "`reboot`", "; reboot", "-rf", "%s%n", "x" * 5000,
)
# What no field of a plan could hold: XML and YAML have no place for them.
CONTROLS = ("\x00", "\x0b", "\x1b[2J", "\x7f", "\ufffe", "\ud800")

MAKE: dict[str, Callable[[str], dict[str, Any]]] = {
    "path of the image": lambda text: {"image": an_image(path=Path(f"/images/{text}.qcow2"))},
    "command line of the image": lambda text: {"image": an_image(
        kernel=Path("/images/k"), initrd=Path("/images/i"), cmdline=text,
    )},
    "account": lambda text: {"account": an_account(
        name=text, home=Path(f"/home/{text}"), shell=text, groups=(Group(name=text, gid=3000),),
    )},
    "request": lambda text: {"request": a_request(
        disk=f"/home/{text}.img", public_key=f"ssh-ed25519 {text}",
        metadata=json.dumps({"timezone": text, "locale": text}),
    )},
}


def documents(plan: JobPlan, templates: Path = TEMPLATES) -> render.Rendered:
    return render.guest(plan, plan.vms[0], site=a_site(), keys=some_keys(), announce="10.0.0.1", templates=templates)


def skeleton(made: render.Rendered) -> tuple[object, ...]:
    """What there is in the documents, whatever the values are."""
    root = ElementTree.fromstring(made.domain_xml)
    # Of YAML the fast reader will do: the check that is tested has its own.
    texts = (made.user_data, made.meta_data, made.network_config)
    elements = Counter((element.tag, tuple(sorted(element.keys()))) for element in root.iter())
    return elements, *(tuple(shape(yaml.load(text, yaml.CSafeLoader))) for text in texts)


def shape(value: object, where: str = "") -> Iterator[str]:
    """Every place of a tree with the type of what is there."""
    yield f"{where} {type(value).__name__}"
    if isinstance(value, dict):
        for key in sorted(value):
            yield from shape(value[key], f"{where}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from shape(each, f"{where}[{index}]")


@cache
def honest(field: str) -> tuple[object, ...]:
    return skeleton(documents(a_plan(**MAKE[field]("harmless"))))


def escapes(field: str, text: str, templates: Path = TEMPLATES) -> bool:
    """Whether a value is anything but a value in one of the documents; one that is refused is not."""
    try:
        made = documents(a_plan(**MAKE[field](text)), templates)
    except ConfigError:
        return False
    return skeleton(made) != honest(field) or "1337" in "".join((made.domain_xml, made.user_data, made.meta_data))


@pytest.mark.parametrize("field", MAKE)
def test_a_value_stays_a_value_or_is_refused(field: str) -> None:
    assert [text for text in (*PAYLOADS, *CONTROLS) if escapes(field, text)] == []


@pytest.mark.parametrize(
    ("template", "was", "becomes", "field"),
    [
        ("domain.xml", "{{ plan.image.cmdline }}", "{{ plan.image.cmdline | safe }}", "command line of the image"),
        ("user-data.common.yaml", "{{ value | tojson }}", "{{ value }}", "request"),
    ],
)
def test_a_template_that_does_not_quote_is_caught(
    tmp_path: Path, template: str, was: str, becomes: str, field: str
) -> None:
    for path in TEMPLATES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / template).read_text()
    assert was in text
    (tmp_path / template).write_text(text.replace(was, becomes))
    xml = template == "domain.xml"
    # Of elements that a template has: another would be refused for that.
    hostile = "x</cmdline><cmdline>y" if xml else "x\npower_state: {mode: reboot}"
    assert escapes(field, hostile, tmp_path) and not escapes(field, hostile)


def test_guests_have_no_screen_no_usb_no_sound_and_no_memory_in_common() -> None:
    """Consoles that everybody on the network may open, and one shared memory for all jobs of a node."""
    root = ElementTree.fromstring(documents(a_plan()).domain_xml)
    there = {element.tag for element in root.iter()}
    assert not there & {"graphics", "video", "redirdev", "hostdev", "sound", "shmem", "parallel"}
    assert not [tag for tag in there if "qemu" in tag]
    assert {usb.get("model") for usb in root.iter("controller") if usb.get("type") == "usb"} <= {"none"}
