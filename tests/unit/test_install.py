# SPDX-License-Identifier: Apache-2.0
"""What an installation decides, from what is there: no file system is touched here."""

import grp
import pwd
from itertools import product
from pathlib import Path

import pytest

from vtorque import hostlist
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError, RequestError
from vtorque.install import account, nodes, parts, pbshook, slurm
from vtorque.install.nodes import Answer
from vtorque.install.parts import Item, Setup, slurm_place
from vtorque.install.steps import Made, Seen, Step, Verb, digest, to_install, to_uninstall

PATH = Path("/p/hook")
BEFORE = Path("/p/hook.orig")
HOOK = Item(path=PATH, aside="hook.orig", target="/opt/vtorque/scripts/hook", is_hook=True)
TEXT = Item(path=PATH, aside="hook.orig", text="ours\n")
OURS = Seen(inode=1, target=HOOK.target, is_ours=True)
OLDER = Seen(inode=1, target="/opt/vt0/scripts/hook", is_ours=True)
SITES, OTHER = Seen(inode=2, digest=digest(b"site's")), Seen(inode=3, digest=digest(b"other"))
DIRECTORIES = {Path("/"): Seen(inode=9, is_directory=True), Path("/p"): Seen(inode=9, is_directory=True)}
PREFIX = Path("/opt/vtorque")


def made(*, kept: bool, item: Item = HOOK) -> Made:
    return Made(path=PATH, aside="hook.orig", kept=kept, target=item.target,
                digest="" if item.target else digest(item.text.encode()))


def verbs(steps: tuple[Step, ...]) -> list[str]:
    return [str(step.verb) for step in steps]


def seen(there: Seen | None, beside: Seen | None = None) -> dict[Path, Seen]:
    found = {**DIRECTORIES}
    if there is not None:
        found[PATH] = there
    if beside is not None:
        found[BEFORE] = beside
    return found


@pytest.mark.parametrize("there, beside, earlier, does, kept", [
    (None, None, None, ["link"], False),
    (SITES, None, None, ["keep", "link"], True),
    (SITES, SITES, None, ["link"], True),
    (OURS, None, None, [], False),
    (OURS, SITES, None, [], True),
    (OLDER, SITES, True, ["link"], True),
    (None, SITES, True, ["link"], True),
    (OURS, SITES, True, [], True),
    (OURS, None, False, [], False),
    (OTHER, None, False, ["keep", "link"], True),
])
def test_a_hook_is_linked_and_what_was_there_is_kept(
    there: Seen | None, beside: Seen | None, earlier: bool | None, does: list[str], kept: bool
) -> None:
    before = [] if earlier is None else [made(kept=earlier)]
    changes = to_install([HOOK], seen(there, beside), before, force=False)
    assert verbs(changes.steps) == does
    assert [each.kept for each in changes.made] == [kept]


@pytest.mark.parametrize("there, beside, earlier", [
    (OTHER, SITES, None), (OTHER, SITES, True), (None, SITES, None), (DIRECTORIES[Path("/p")], None, None),
])
def test_what_would_be_lost_or_begin_to_run_is_refused(
    there: Seen | None, beside: Seen | None, earlier: bool | None
) -> None:
    before = [] if earlier is None else [made(kept=earlier)]
    with pytest.raises(ConfigError):
        to_install([HOOK], seen(there, beside), before, force=False)


@pytest.mark.parametrize("item", [HOOK, TEXT], ids=["hook", "text"])
@pytest.mark.parametrize("there, kept", product([None, SITES], [False, True]))
def test_undone_after_each_step_it_is_as_before(item: Item, there: Seen | None, kept: bool) -> None:
    """Every state between two steps, and the way back from it."""
    ours = OURS if item is HOOK else Seen(inode=1, digest=digest(b"ours\n"))
    record = made(kept=there is not None, item=item)
    states = [(there, None), (ours, there)] if there is None else [(there, None), (there, there), (ours, there)]
    for now, beside in states:
        world = seen(now, beside)
        for step in to_uninstall([record], [], world, force=kept).steps:
            if step.verb is Verb.RESTORE:
                world[PATH] = world.pop(BEFORE)
            elif step.verb is Verb.REMOVE:
                del world[step.path]
        assert world == seen(there)


def test_a_directory_is_made_once_outer_ones_first_and_removed_inner_ones_first() -> None:
    one, two = (Item(path=Path("/a/b", name), aside="x~", text="x") for name in ("one", "two"))
    changes = to_install([one, two], {Path("/"): DIRECTORIES[Path("/")]}, [], force=False)
    assert [str(step) for step in changes.steps] == [
        "make     /a, a directory of root's, mode 0755", "make     /a/b, a directory of root's, mode 0755",
        "write    /a/b/one, root's, mode 0644", "write    /a/b/two, root's, mode 0644",
    ]
    there = dict.fromkeys((Path("/a"), Path("/a/b")), OTHER)
    back = to_uninstall(changes.made, [Path("/a"), Path("/a/b")], there, force=False)
    assert [(step.verb, str(step.path)) for step in back.steps] == [(Verb.UNMAKE, "/a/b"), (Verb.UNMAKE, "/a")]


@pytest.mark.parametrize("system, wants", [
    ("torque", ["epilogue", "epilogue.parallel", "epilogue.precancel", "prologue.parallel", "prologue"]),
    ("openpbs", []), ("slurm", ["vtorque", "vtorque"]),
])
def test_what_ends_a_job_is_there_before_what_starts_one(system: str, wants: list[str]) -> None:
    setup = Setup(system=system, prefix=PREFIX, site=SiteConfig())
    assert [item.path.name for item in parts.items(setup, {}, {}, {}) if item.is_hook] == wants


@pytest.mark.parametrize("system", parts.SYSTEMS)
def test_a_front_end_gets_no_hooks_and_nothing_that_runs(system: str) -> None:
    sources = dict.fromkeys(parts.source_names(), "text")
    setup = Setup(system=system, prefix=PREFIX, site=SiteConfig(), front_end=True)
    places = {str(item.path.parent) for item in parts.items(setup, sources, {}, {})}
    assert places and all(place.startswith(("/etc/profile.d", "/usr/local/share")) for place in places)


def known(monkeypatch: pytest.MonkeyPatch, *, user: bool, group: bool, uid: int = 990) -> None:
    """Whether the name service knows a user vtorque, and a group."""
    def getpwnam(name: str) -> pwd.struct_passwd:
        if not user:
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", uid, uid, "", "/nonexistent", "/usr/sbin/nologin"))

    def getgrnam(name: str) -> grp.struct_group:
        if not group:
            raise KeyError(name)
        return grp.struct_group((name, "x", uid, []))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(grp, "getgrnam", getgrnam)


@pytest.mark.parametrize("system", parts.SYSTEMS)
def test_a_node_without_the_account_gets_it_before_all_else(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    node = Setup(system=system, prefix=PREFIX, site=SiteConfig())
    front_end = Setup(system=system, prefix=PREFIX, site=SiteConfig(), front_end=True)
    rest = "--no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vtorque"
    known(monkeypatch, user=False, group=False)
    (command,) = account.first(node, Path("/"))
    assert " ".join(command) == f"useradd --system --user-group {rest}"
    known(monkeypatch, user=False, group=True)
    (command,) = account.first(node, Path("/"))
    assert " ".join(command) == f"useradd --system --gid vtorque {rest}"
    assert account.first(front_end, Path("/")) == ()
    assert account.first(node, Path("/srv/image")) == (), "nothing is run in another's tree"
    known(monkeypatch, user=True, group=False)
    assert account.first(node, Path("/")) == (), "wherever it comes from"


def test_an_account_that_is_root_is_refused_but_keeps_nobody_from_taking_us_out(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, user=True, group=True, uid=0)
    with pytest.raises(ConfigError, match="user 'vtorque' is root"):
        account.first(Setup(system="torque", prefix=PREFIX, site=SiteConfig()), Path("/"))
    assert len(list(account.left(Path("/"), front_end=False))) == 1


@pytest.mark.parametrize("setting, path, own", [
    ("", "/etc/slurm/prolog.d/vtorque", ""),
    ("/usr/local/sbin/prolog", "/etc/slurm/vtorque/prolog", "/usr/local/sbin/prolog"),
    ("/etc/slurm/vtorque/prolog", "/etc/slurm/vtorque/prolog", ""),
    ("/etc/slurm/prolog.d/vtorque", "/etc/slurm/prolog.d/vtorque", ""),
    ("/etc/slurm/prolog.d/*", "/etc/slurm/prolog.d/vtorque", ""),
    ("/site/pro.d/*.sh", "/site/pro.d/50-vtorque.sh", ""),
    ("/site/pro.d/[0-9]*", "/site/pro.d/50-vtorque", ""),
    ("/site/pro.d/on-*", "/site/pro.d/on-vtorque", ""),
])
def test_slurmd_finds_ours_and_ours_the_sites_own(setting: str, path: str, own: str) -> None:
    assert slurm_place({"prolog": setting}, "Prolog") == (Path(path), own)


@pytest.mark.parametrize(
    "setting", ["/a/x*,/b/y", "/a,/b", "/site/a,b", "prolog", "*", "/site/*/prolog", "/site/[a-c]?"]
)
def test_a_prolog_that_ours_cannot_stand_beside_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="neither one program nor a pattern"):
        slurm_place({"prolog": setting}, "Prolog")


def test_slurm_conf_lacks_nothing_when_the_lines_are_in_it() -> None:
    site = SiteConfig()
    lines = slurm.missing_lines(site, {})
    conf = {name.lower(): value for name, _, value in (line.partition("=") for line in lines)}
    assert sorted(conf) == ["batchstarttimeout", "epilog", "prolog", "prologepilogtimeout", "prologflags"]
    assert slurm.missing_lines(site, conf) == []


def test_openpbs_hook_is_enabled_when_it_is_complete_and_has_time_enough() -> None:
    setup = Setup(system="openpbs", prefix=PREFIX, site=SiteConfig(timeout=600))
    said = pbshook.create(setup)
    assert said[0].endswith("enabled = false") and said[-1].endswith("enabled = true")
    assert "set hook vtorque alarm = 645" in said


def test_openpbs_hook_silences_no_nodes_own_epilogue_or_prologue() -> None:
    """Of which the server knows nothing, wherever the hook is made."""
    said = "\n".join(pbshook.create(Setup(system="openpbs", prefix=PREFIX, site=SiteConfig())))
    assert "execjob_end,execjob_abort" in said
    assert "execjob_epilogue" not in said and "execjob_prologue" not in said


def test_pdshs_output_is_sorted_out_by_node() -> None:
    stdout = "n2: note     set it\nn2: installed, 3 changes made\nn1: vtorque 1\nn1: nothing to do\n"
    stderr = (
        "n3: ssh: connect to host n3 port 22: Connection refused\npdsh@fe: n3: ssh exited with exit code 255\n"
        "n4: vmgr: there is no /x (set TORQUE_HOME)\npdsh@fe: n4: ssh exited with exit code 1\n"
        "pdsh@fe: n5: command timeout\n"
    )
    assert nodes._sorted_out(("n1", "n2", "n3", "n4", "n5", "n6"), stdout, stderr) == [
        Answer(node="n1", status=0, says="nothing to do"),
        Answer(node="n2", status=0, says="installed, 3 changes made", notes=("set it",)),
        Answer(node="n3", status=255, says="ssh: connect to host n3 port 22: Connection refused"),
        Answer(node="n4", status=1, says="vmgr: there is no /x (set TORQUE_HOME)"),
        Answer(node="n5", status=255, says="command timeout"),
        Answer(node="n6", status=255, says="nothing was heard of it"),
    ]


@pytest.mark.parametrize("names, text", [
    (["n1"], "n1"), (["login"], "login"), (["login", "n1", "n2"], "login,n[1-2]"),
    (["cn008", "cn009", "cn010", "cn012"], "cn[008-010,012]"), (["n8", "n9", "n10"], "n[8-10]"),
    (["n3", "n1", "n2"], "n[3,1-2]"), (["n09", "n10", "n9"], "n[09-10,9]"), (["n9", "n010"], "n[9,010]"),
    (["r1n1.x", "r1n2.x", "r2n1.x", "n2"], "r1n[1-2].x,r2n1.x,n2"), (["b", "a"], "b,a"),
    (["n9999999999", "n10000000000"], "n9999999999,n10000000000"),
])
def test_many_names_are_folded_to_the_list_that_stands_for_them(names: list[str], text: str) -> None:
    assert nodes.fold(names) == text
    assert list(hostlist.expand(text)) == names


def test_a_note_of_many_nodes_is_said_once_with_their_names() -> None:
    answers = [Answer(node=f"n{number}", status=number == 2, says="", notes=("a", "b") if number == 3 else ("a",))
               for number in (1, 2, 3)]
    assert nodes.notes(answers) == ["n[1-3]: a", "n3: b"]


def test_nodes_are_named_once_in_their_order() -> None:
    assert nodes.names("n[3,1-2],n1") == ("n3", "n1", "n2")
    with pytest.raises(RequestError, match="host list"):
        nodes.names("n[1-")
