# SPDX-License-Identifier: Apache-2.0
"""Which packages an image is built with, and when it is built at all; a stand-in installs them."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from vtorque import imagebuild, images
from vtorque.errors import ImageError, RequestError
from vtorque.model import Image

pytestmark = pytest.mark.runs

NAME = "debian-12.qcow2"
OWN = imagebuild.RECIPES["debian-12"].packages
# What the real one does about a package that there is not.
MMDEBSTRAP = """\
#!/bin/sh
printf '%s\\n' "$INITRD" "$@" >"$0.words"
printf '%s\\n' 'Building dependency tree...' 'E: Unable to locate package no-such' 'E: mmdebstrap failed to run' >&2
exit 25
"""


class Builder:
    """Builds into a catalogue of its own, as far as a mirror would be needed."""

    def __init__(self, root: Path) -> None:
        self.pool, self._called = root / "pool", root / "mmdebstrap.words"
        self.said: list[str] = []

    def build(self, *packages: str, name: str = "", force: bool = False) -> Image:
        return imagebuild.build(
            "debian-12", self.pool, progress=self.said.append, packages=packages, name=name, force=force
        )

    def installs(self, *packages: str, name: str = "", force: bool = False) -> list[str]:
        """What a build asks for beyond the recipe's own packages."""
        self._called.unlink(missing_ok=True)
        with pytest.raises(ImageError, match=f"^cannot build {name or NAME}: E: Unable to locate package no-such$"):
            self.build(*packages, name=name, force=force)
        initrd, *given = self._called.read_text().splitlines()
        assert initrd == "No"
        (words,) = [word for word in given if word.startswith("--include=")]
        asked = words.removeprefix("--include=").split(",")
        assert tuple(asked[:len(OWN)]) == OWN
        return asked[len(OWN):]

    def has(self, name: str = NAME, *, packages: str | None = None) -> None:
        """Put an image there that was built with these packages, or came from elsewhere."""
        disk = self.pool.parent / "disk"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
        entry = {"name": name, "distro": "debian", "arch": "x86_64", "description": ""}
        images.publish(self.pool, entry | ({} if packages is None else {"packages": packages}), {name: disk})


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    program = tmp_path / "mmdebstrap"
    program.write_text(MMDEBSTRAP)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return Builder(tmp_path)


def test_packages_are_installed_beside_the_recipes_own_each_once(builder: Builder) -> None:
    assert builder.installs() == []
    assert builder.installs("openmpi-bin", "g++", "openmpi-bin") == ["g++", "openmpi-bin"]
    assert not list(builder.pool.iterdir()), "a build that fails leaves nothing"


def test_an_image_with_just_these_packages_is_not_built_again(builder: Builder) -> None:
    builder.has(packages="g++ openmpi-bin")
    assert builder.build("openmpi-bin", "g++").path == builder.pool / NAME
    assert builder.said == [f"{NAME} is there"]


@pytest.mark.parametrize("packages", [(), ("openmpi-bin",), ("g++", "openmpi-bin", "python3")])
def test_one_with_others_is(builder: Builder, packages: Iterable[str]) -> None:
    builder.has(packages="g++ openmpi-bin")
    assert builder.installs(*packages) == list(packages)


def test_nor_does_an_image_count_that_is_forced_damaged_of_another_name_or_from_elsewhere(builder: Builder) -> None:
    builder.has(packages="")
    assert builder.build().name == NAME
    builder.installs(force=True)
    builder.installs(name="debian-12-mpi.qcow2")
    (builder.pool / NAME).write_bytes(b"damaged")
    builder.installs()
    builder.has("other.qcow2")
    builder.installs(name="other.qcow2")


@pytest.mark.parametrize(
    "word", ["", "-o=x", "a", "openssh-server-", "Vim", "a,b", "a b", "?installed", "a=1", "a/sid", "ä0"]
)
def test_what_is_no_package_is_refused(builder: Builder, word: str) -> None:
    with pytest.raises(RequestError, match="is not the name of a Debian package"):
        builder.build("openmpi-bin", word)


@pytest.mark.parametrize("name", ["../a.qcow2", "a.qcow2@2", "a", "a.img"])
def test_what_is_no_name_of_a_qcow2_is_refused(builder: Builder, name: str) -> None:
    with pytest.raises(RequestError):
        builder.build(name=name)


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(builder: Builder) -> None:
    with pytest.raises(RequestError) as refusal:
        imagebuild.build("debian-11", builder.pool, progress=print)
    assert refusal.value.one_line() == "there is no recipe 'debian-11' (there are: debian-12)"
