# SPDX-License-Identifier: Apache-2.0
"""The `-vm` options: where they stand, which of them counts, and what the site makes of them."""

import fcntl
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import KEY, an_image
from vtorque import diskserver, request, resolve, vmoptions
from vtorque.config import SiteConfig
from vtorque.errors import RequestError
from vtorque.model import Image, VmRequest
from vtorque.resolve import Resolved, Room
from vtorque.vmoptions import COMMAND_LINE, Source

SITE = SiteConfig(img_default="debian-12.qcow2", vcpus_default=2, ram_default=2048)
ALL_ON = SITE.but(vrdma_enabled=True, unclot_enabled=True, iocm_enabled=True)


def find(name: str) -> Image:
    return an_image(name=name, distro=next((each for each in request.DISTROS if each in name), "debian"))


def resolved(
    *texts: str, site: SiteConfig = SITE, room: Room | None = None, directory: Path = Path("/nowhere")
) -> Resolved:
    sources = [Source(origin=COMMAND_LINE, text=text) for text in texts]
    return resolve.resolve(
        vmoptions.collect(sources), site, find_image=find, room=room or Room(), directory=directory,
        request_id="0123456789abcdef", public_key=KEY,
    )


def asked(*texts: str, **how: Any) -> VmRequest:
    return resolved(*texts, **how).request


def refusal(*texts: str, **how: Any) -> str:
    with pytest.raises(RequestError) as caught:
        resolved(*texts, **how)
    return caught.value.one_line()


class TestValues:
    def test_what_is_not_asked_for_comes_from_the_site(self) -> None:
        wanted = asked()
        assert (wanted.image, wanted.distro, wanted.arch) == ("debian-12.qcow2", "debian", "x86_64")
        assert (wanted.vcpus, wanted.memory_mib, wanted.vms_per_node) == (2, 2048, 1)
        assert (wanted.pinning, wanted.fs_type, wanted.disk, wanted.metadata) == ("true", "sharedfs", "", "")

    def test_every_default_of_the_site_counts(self) -> None:
        site = ALL_ON.but(img_default="osv.img", vms_per_node_default=3, vcpu_pinning_default="auto",
            filesystem_type_default="ramdisk", vrdma_enabled_default=True, unclot_enabled_default=True,
            unclot_shmem_default=99, iocm_enabled_default=True, iocm_min_cores_default=2, iocm_max_cores_default=3,
        )
        wanted = asked(site=site)
        assert (wanted.vms_per_node, wanted.pinning, wanted.fs_type) == (3, "auto", "ramdisk")
        assert (wanted.vrdma, wanted.unclot, wanted.unclot_shmem_mib) == (True, True, 99)
        assert (wanted.iocm, wanted.iocm_min_cores, wanted.iocm_max_cores) == (True, 2, 3)

    def test_several_options_add_up_and_the_last_of_a_key_wins(self) -> None:
        wanted = asked("vcpus=4,ram=8G", "vms_per_node=2,RAM=1T")
        assert (wanted.vcpus, wanted.memory_mib, wanted.vms_per_node) == (4, 1 << 20, 2)

    @pytest.mark.parametrize(
        ("text", "mib"), [("512M", 512), ("2048", 2048), ("1048576K", 1024), ("8GB", 8192), ("8gib", 8192)]
    )
    def test_memory_has_a_unit_or_is_mib(self, text: str, mib: int) -> None:
        assert asked(f"ram={text}").memory_mib == mib

    @pytest.mark.parametrize("word", ["enabled", "true", "YES", "0"])
    def test_the_manuals_words_for_yes_and_zero_is_one(self, word: str) -> None:
        assert asked(f"vrdma={word}", site=ALL_ON).vrdma
        assert asked(f"vcpu_pinning={word}").pinning == "true"

    @pytest.mark.parametrize("word", ["disabled", "False", "no", "1"])
    def test_the_manuals_words_for_no_and_one_is_one(self, word: str) -> None:
        assert not asked(f"vrdma={word}", site=ALL_ON).vrdma
        assert asked(f"vcpu_pinning={word}").pinning == "false"

    def test_an_image_may_be_named_by_its_path_in_the_catalogue_only(self) -> None:
        assert asked("img=/opt/vm-images/a.qcow2").image == "a.qcow2"
        assert "must be the name of" in refusal("img=/tmp/a.qcow2")
        assert asked("img=a.qcow2@3").image == "a.qcow2@3"

    def test_the_distribution_is_the_users_word_or_the_images_own(self) -> None:
        assert asked("img=my-centos7.qcow2").distro == "centos"
        assert asked("img=ubuntu.img,distro=Debian").distro == "debian"

    def test_unclot_is_for_osv_and_says_so(self) -> None:
        made = resolved("unclot=true,unclot_shmem=2G", site=ALL_ON)
        assert not made.request.unclot and made.request.unclot_shmem_mib == 0
        assert made.notes == ("-vm unclot=: only OSv guests have UNCLOT, not debian; the job runs without it",)
        wanted = asked("unclot=true,unclot_shmem=2G,img=osv.img", site=ALL_ON)
        assert (wanted.unclot, wanted.unclot_shmem_mib) == (True, 2048)

    @pytest.mark.parametrize("name", ["vrdma", "iocm", "unclot"])
    def test_what_the_cluster_has_not_is_said_to_whoever_asks(self, name: str) -> None:
        made = resolved(f"{name}=true")
        assert made.notes == (f"-vm {name}=: {name} is off on this cluster, the job runs without it",)
        assert not getattr(made.request, name)
        assert resolved().notes == (), "a default is nobody's wish"

    def test_iocm_keeps_within_the_sites_cores(self) -> None:
        site = ALL_ON.but(iocm_min_cores=2, iocm_max_cores=4)
        wanted = asked("iocm=yes,iocm_min_cores=2,iocm_max_cores=4", site=site)
        assert (wanted.iocm_min_cores, wanted.iocm_max_cores) == (2, 4)
        assert "demands at least 2" in refusal("iocm=yes,iocm_min_cores=1", site=site)
        assert "allows at most 4" in refusal("iocm=yes,iocm_min_cores=2,iocm_max_cores=5", site=site)
        assert "more than iocm_max_cores=2" in refusal("iocm=yes,iocm_min_cores=3,iocm_max_cores=2", site=site)


class TestRoom:
    def test_vcpus_and_memory_fit_what_the_job_asks_for(self) -> None:
        wanted = asked("vcpus=auto,ram=auto,vms_per_node=2", room=Room(cores=9, memory_mib=8192))
        assert wanted.vcpus == 4
        assert wanted.memory_mib == 3936, "half of it, less what QEMU takes itself"

    def test_iocms_cores_are_not_the_guests(self) -> None:
        assert asked("vcpus=AUTO,iocm=true,iocm_max_cores=3", site=ALL_ON, room=Room(cores=8)).vcpus == 5

    def test_auto_needs_something_to_fit_into(self) -> None:
        assert refusal("vcpus=auto") == "-vm vcpus='auto': needs cores to fit into (like -l nodes=1:ppn=8)"
        assert refusal("ram=auto") == "-vm ram='auto': needs memory to fit into (like -l mem=16gb)"
        assert "2 guests do not fit into the 1 cores" in refusal("vcpus=auto,vms_per_node=2", room=Room(cores=1))
        assert "ram=0 MiB" in refusal("ram=auto", room=Room(memory_mib=-5))


class TestFiles:
    def test_scripts_are_kept_byte_for_byte(self, tmp_path: Path) -> None:
        (tmp_path / "p.sh").write_bytes(b"#!/bin/sh\n\xff\n")
        made = resolved("vm_prologue=p.sh", directory=tmp_path)
        assert made.request.vm_prologue and not made.request.vm_epilogue
        assert made.scripts == {"vm_prologue": b"#!/bin/sh\n\xff\n"}

    def test_a_mapping_of_cpus_comes_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "map").write_text("# two guests\n0,2\n\n4, 6  # the second\n")
        assert asked("vcpu_pinning=map,vms_per_node=2", directory=tmp_path).pinning == "0,2;4,6"
        assert refusal("vcpu_pinning=map", directory=tmp_path) == (
            "-vm vcpu_pinning='0,2;4,6': must have a line of 2 CPUs for each guest of a node, 1 in all; "
            "has 2, of 2 and 2 CPUs")
        (tmp_path / "map").write_text("0,0\n")
        assert "names a CPU twice" in refusal("vcpu_pinning=map", directory=tmp_path)

    def test_a_disk_is_carried_by_its_real_path(self, tmp_path: Path) -> None:
        (tmp_path / "data.img").write_bytes(bytes(512))
        (tmp_path / "link.img").symlink_to("data.img")
        for text, new_mib in (("link.img", 0), ("link.img:20G", 20 << 10)):
            wanted = asked(f"disk={text}", directory=tmp_path)
            assert (wanted.disk, wanted.disk_new_mib) == (str(tmp_path / "data.img"), new_mib)

    def test_a_disk_that_is_not_there_is_made_when_its_size_is_said(self, tmp_path: Path) -> None:
        assert asked("disk=new.qcow2:1G", directory=tmp_path).disk_new_mib == 1024
        assert not (tmp_path / "new.qcow2").exists(), "by the node, when the job starts"
        assert refusal("disk=new.img", directory=tmp_path) == (
            "-vm disk='new.img': there is no such file (disk=new.img:20G makes one)")
        assert "you may make no file in" in refusal("disk=no/new.img:1G", directory=tmp_path)
        assert "'big' is not a size" in refusal("disk=new.img:big", directory=tmp_path)
        assert "must be the absolute path of" in refusal("disk=new.iso:1G", directory=tmp_path)
        assert "must be 1 to 16777216 MiB" in refusal("disk=new.img:17T", directory=tmp_path)

    def test_a_disk_that_no_node_would_take_is_refused_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "dir.img").mkdir()
        (tmp_path / "empty.img").touch()
        (tmp_path / "fake.qcow2").write_bytes(bytes(1 << 16))
        for name, says in (
            ("dir.img", "is not a regular file"), ("empty.img", "is empty"), ("fake.qcow2", "is not qcow2"),
        ):
            assert says in refusal(f"disk={name}", directory=tmp_path)
        assert asked("disk=empty.img:1M", directory=tmp_path).disk_new_mib == 1

    def test_whoever_wants_a_disk_that_is_in_use_is_told_by_whom(self, tmp_path: Path) -> None:
        path = tmp_path / "data.img"
        path.write_bytes(bytes(512))
        diskserver.note_of(path).write_text("job 7.srv on node n1\n")
        assert resolved("disk=data.img", directory=tmp_path).notes == (), "it was, once"
        with path.open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
            assert resolved("disk=data.img", directory=tmp_path).notes == (
                "-vm disk=: in use by job 7.srv on node n1; the job fails if it still is when it starts",)

    def test_a_disk_size_is_not_below_the_images_nor_above_the_sites(self, tmp_path: Path) -> None:
        (tmp_path / "a.img").write_bytes(bytes(3 << 20))

        def sized(size: str, most: int = 0, name: str = "a.img") -> int:
            return resolve.resolve(
                vmoptions.collect([Source(origin=COMMAND_LINE, text=f"img={name},disk_size={size}")]),
                SITE.but(max_disk_size=most), room=Room(), directory=tmp_path,
                find_image=lambda name: an_image(name=name, path=tmp_path / name),
                request_id="0123456789abcdef", public_key=KEY,
            ).request.disk_size_mib

        assert (sized("3M"), sized("16T"), sized("20G", most=20 << 10), sized("1M", name="b.img")) == (
            3, 16 << 20, 20 << 10, 1), "an image that nobody can read here is left to the node"
        for size, most, says in (
            ("2M", 0, "disk_size=2 MiB: image a.img has 3 MiB, and a disk cannot shrink"),
            ("21G", 20 << 10, "-vm disk_size=21504 MiB: this cluster allows at most 20480 MiB"),
            ("17T", 0, "-vm disk_size=17825792 MiB: must be 1 to 16777216 MiB"),
            ("big", 0, "-vm disk_size=: 'big' is not a size"),
        ):
            with pytest.raises(RequestError) as caught:
                sized(size, most)
            assert says in caught.value.one_line()
        settings = {each.key: (each.value, each.origin) for each in resolved("disk_size=20G").settings}
        assert settings["disk_size"] == ("20G", "command line")
        assert {each.key: each.value for each in resolved().settings}["disk_size"] == ""

    def test_metadata_is_carried_when_it_harms_nobody(self, tmp_path: Path) -> None:
        path = tmp_path / "m.yaml"
        path.write_text("timezone: Europe/Berlin\n")
        assert asked("metadata=m.yaml", directory=tmp_path).metadata == '{"timezone":"Europe/Berlin"}'
        for text, says in (
            ("runcmd: [id]\n", "'runcmd' is not a key that users may set (there are: timezone, locale)"),
            ("timezone: [a]\n", "timezone cannot be"), ("- a\n", "not a cloud-config"), ("a: &x 1\nb: *x\n", "aliases"),
            ("a: [\n", "not YAML"), ("x" * 5000, "more than 4096 bytes"), ("", "not a cloud-config"),
        ):
            path.write_text(text)
            assert says in refusal("metadata=m.yaml", directory=tmp_path)
        assert "must be the name of a .yaml file" in refusal("metadata=m.txt", directory=tmp_path)

    @pytest.mark.parametrize("key", ["vm_prologue", "vm_epilogue", "disk", "metadata", "vcpu_pinning"])
    def test_a_missing_file_is_named(self, key: str, tmp_path: Path) -> None:
        said = refusal(f"{key}=absent.yaml", directory=tmp_path)
        assert said.startswith(f"-vm {key}=") and "absent.yaml" in said

    def test_what_is_no_script_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "p").write_bytes(b"\x7fELF")
        assert "does not begin with #!" in refusal("vm_epilogue=p", directory=tmp_path)


class TestPlaces:
    def test_the_users_own_defaults_are_the_weakest(self, tmp_path: Path) -> None:
        (tmp_path / ".vtorquerc").write_text("# mine\nram = 1G\n\nvcpus=3 # three\n")
        sources = [*vmoptions.user_defaults(tmp_path), Source(origin="job.sh:2", text="vcpus=4"),
                   Source(origin=COMMAND_LINE, text="img=a.img")]
        found = vmoptions.collect(sources)
        assert {key: (each.value, each.origin) for key, each in found.items()} == {
            "ram": ("1G", "~/.vtorquerc:2"), "vcpus": ("4", "job.sh:2"), "img": ("a.img", "command line"),
        }
        assert vmoptions.user_defaults(tmp_path / "nobody") == []

    def test_an_error_says_where_it_is(self, tmp_path: Path) -> None:
        (tmp_path / ".vtorquerc").write_text("\nvcpu = 3\n")
        with pytest.raises(RequestError) as caught:
            vmoptions.collect(vmoptions.user_defaults(tmp_path))
        assert caught.value.one_line() == "~/.vtorquerc:2: -vm 'vcpu' is not a key (did you mean vcpus?)"
        with pytest.raises(RequestError) as caught:
            resolve.resolve(
                vmoptions.collect([Source(origin="job.sh:7", text="vcpus=four")]), SITE, find_image=find,
                room=Room(), directory=tmp_path, request_id="0" * 16, public_key="",
            )
        assert caught.value.one_line() == "job.sh:7: -vm vcpus=: 'four' is not a whole number"

    def test_each_value_is_explained(self) -> None:
        made = {each.key: (each.value, each.origin) for each in resolved("vcpus=4").settings}
        assert set(made) == set(vmoptions.KEYS)
        assert made["vcpus"] == ("4", "command line")
        assert made["ram"] == ("2G", "site: RAM_DEFAULT")
        assert made["distro"] == ("debian", "image debian-12.qcow2")
        assert made["vrdma"] == ("false", "site: VRDMA_ENABLED")
        assert made["disk"] == ("", "not set")


    def test_what_is_not_there_or_off_is_explained_as_such(self, tmp_path: Path) -> None:
        (tmp_path / "job.sh").write_text("#!/bin/sh\n")
        made = {each.key: (each.value, each.origin) for each in resolved(
            "iocm_min_cores=2,unclot_shmem=2G,vm_prologue=job.sh", directory=tmp_path).settings}
        assert made["iocm_min_cores"] == made["iocm_max_cores"] == ("", "iocm is off")
        assert made["unclot_shmem"] == ("", "unclot is off")
        assert (made["vm_prologue"], made["vm_epilogue"]) == (("job.sh", "command line"), ("", "not set"))
        on = resolved("iocm=0,iocm_min_cores=2", site=ALL_ON)
        made = {each.key: (each.value, each.origin) for each in on.settings}
        assert (made["iocm_min_cores"], made["iocm"]) == (("2", "command line"), ("true", "command line"))

    def test_a_tilde_that_the_shell_has_left_is_the_users_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "p.sh").write_text("#!/bin/sh\n")
        (tmp_path / "d.img").write_bytes(bytes(512))
        made = resolved("vm_prologue=~/p.sh,disk=~/d.img")
        assert made.request.disk == str(tmp_path / "d.img") and list(made.scripts) == ["vm_prologue"]

    def test_a_size_for_a_disk_is_told_its_own_key(self) -> None:
        assert refusal("disk=20G") == (
            "-vm disk='20G': there is no such file (disk_size=20G is the size of each guest's own disk)")


class TestWrong:
    @pytest.mark.parametrize("text", ["", "img", "img=", "=x", "img=a.img,,vcpus=1", "vcpus=1,", ",", " =1", "img= "])
    def test_a_text_that_is_not_key_and_value_is_named(self, text: str) -> None:
        assert "is not key=value" in refusal(text)

    def test_an_unknown_key_is_told_its_neighbour(self) -> None:
        assert refusal("vcpu=4") == "-vm 'vcpu' is not a key (did you mean vcpus?)"
        assert "there are: img, ram" in refusal("zzzzzzz=4")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("vcpus=0", "-vm vcpus=0: must be 1 to 1024"),
            ("vcpus=four", "-vm vcpus=: 'four' is not a whole number"),
            ("vcpus=٤", "-vm vcpus=: '٤' is not a whole number"),
            ("vcpus=-1", "-vm vcpus=: '-1' is not a whole number"),
            ("vms_per_node=257", "-vm vms_per_node=257: must be 1 to 256"),
            ("ram=63M", "-vm ram=63 MiB: must be 64 to 16777216 MiB"),
            ("ram=1.5G", "-vm ram=: '1.5G' is not a size: digits, then K, M, G or T"),
            ("arch=arm64", "-vm arch='arm64': must be x86_64"),
            ("distro=gentoo", "-vm distro='gentoo': must be one of debian, ubuntu, redhat, centos, osv"),
            ("fs_type=nfs", "-vm fs_type='nfs': must be sharedfs or ramdisk"),
            ("vrdma=maybe", "-vm vrdma='maybe': must be true, yes, enabled or 0, or false, no, disabled or 1"),
            ("unclot_shmem=x", "-vm unclot_shmem=: 'x' is not a size: digits, then K, M, G or T"),
            ("img=a", "-vm img='a': must be the name of a .qcow2 or .img file in the catalogue (like img=a.qcow2)"),
            ("img=a/b.img", "-vm img='a/b.img': must be the name of a .qcow2 or .img file in the catalogue"),
        ],
    )
    def test_a_refusal_names_key_value_and_what_is_allowed(self, text: str, says: str) -> None:
        assert refusal(text) == says

    @given(st.lists(st.text(alphabet=st.characters(), max_size=40), max_size=4))
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_no_text_gets_further_than_a_refusal(self, texts: list[str]) -> None:
        try:
            wanted = asked(*texts)
        except RequestError as error:
            assert "\n" not in error.one_line()
        else:
            assert request.decode(request.encode(wanted)) == wanted

    @given(st.sampled_from(sorted(vmoptions.KEYS)), st.text(min_size=1, max_size=40))
    @settings(max_examples=500, derandomize=True, deadline=None)
    def test_a_value_is_taken_or_refused_in_one_line(self, key: str, value: str) -> None:
        try:
            wanted = asked(f"{key}={value}", site=ALL_ON)
        except RequestError as error:
            assert "\n" not in error.one_line()
        else:
            assert request.decode(request.encode(wanted)) == wanted
