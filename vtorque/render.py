# SPDX-License-Identifier: Apache-2.0
"""Plans to text: domain XML, cloud-config, the job wrapper. Pure; policy lives in `plan`.

Templates say how, never whether. What comes out is parsed again and compared
with the plan, so that a site's own template cannot start another guest than
the one that was decided on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vtorque import cloudcheck, datadisk, domaincheck
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError
from vtorque.guestscripts import ends_cleanly
from vtorque.job import node_file_path
from vtorque.model import GuestKeys, JobPlan, Templates, VmPlan

if TYPE_CHECKING:
    import jinja2

GUEST_LIBRARY = "/usr/local/lib/vtorque"
RUN_JOB = f"{GUEST_LIBRARY}/run-job"
AWAIT_SETUP = f"{GUEST_LIBRARY}/await-setup"
MPIRUN = f"{GUEST_LIBRARY}/bin/mpirun"
SITE_SCRIPT = f"{GUEST_LIBRARY}/site-script"
JOB_FILES = "/run/vtorque-job"
KNOWN_HOSTS = f"{JOB_FILES}/known_hosts"
JOB_KEY = f"{JOB_FILES}/key"
"""What the job's wrapper puts into the guests, so that they know one another."""

# One cloud-config a family; the word of the request picks the family.
_FAMILY = {"debian": "debian", "ubuntu": "debian", "redhat": "redhat", "centos": "redhat", "osv": "osv"}

# A link, because NetworkManager leaves one alone that is not its own; before guest-setup,
# because a share's server may have a name: cloud-init's own resolv_conf comes later, and not on every family.
_RESOLV_CONF = 'printf "%s" "$1" >/etc/resolv.vtorque && ln -sf resolv.vtorque /etc/resolv.conf'
_SELINUX = (
    "command -v setsebool >/dev/null || exit 0; setsebool use_nfs_home_dirs on; "
    "restorecon /etc/passwd /etc/shadow /etc/group"
)
# cloud-init installs packages long after bootcmd, and runs runcmd after that.
_HOLD = "! grep -q ^ready /run/vtorque/status || mv /run/vtorque/status /run/vtorque/held"
_START = 'systemctl daemon-reload && systemctl start --no-block "$@"'
_UNITS = "/etc/systemd/system"
_POWER_BUTTON, _SITE_EPILOGUE = "vtorque-power-button.service", "vtorque-site-epilogue.service"
_RELEASE = "[ ! -e /run/vtorque/held ] || mv /run/vtorque/held /run/vtorque/status"


NO_SCRIPTS: Mapping[str, str] = MappingProxyType({})
"""A site that has none of its own for guests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A file that cloud-init writes in the guest."""

    path: str
    permissions: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """All text that makes one guest; `user_data` holds its private host key."""

    domain_xml: str
    user_data: str
    meta_data: str
    network_config: str


def guest(
    plan: JobPlan, vm: VmPlan, *, site: SiteConfig, keys: GuestKeys, announce: str, templates: Path | Templates,
    scripts: Mapping[str, str] = NO_SCRIPTS,
) -> Rendered:
    """Everything that makes `vm`; `announce` is the node's address on the guests' bridge, or empty.

    `templates` are all that there are, or the directory of ours, before which the site's own is looked into.
    `scripts` are the site's own that this guest runs, by name.

    Raises ConfigError when a template is missing or broken, or when what it
    makes differs from the plan.
    """
    family = _family(plan)
    values: dict[str, Any] = {
        "plan": plan,
        "vm": vm,
        "site": site,
        "keys": keys,
        "announce": announce,
        "scripts": scripts,
        "metadata": json.loads(plan.request.metadata or "{}"),
        "base_format": "qcow2" if plan.image.path.suffix == ".qcow2" else "raw",
    }
    environment = _environment(templates, site)
    values |= _osv(plan) if family == "osv" else _linux(environment, values, family)
    rendered = Rendered(
        domain_xml=_render(environment, "domain.xml", values),
        user_data=_render(environment, f"user-data.{family}.yaml", values),
        meta_data=_render(environment, "meta-data.yaml", values),
        network_config=_render(environment, "network-config.yaml", values),
    )
    domaincheck.domain(rendered.domain_xml, plan, vm, site=site, templates=_texts(environment))
    cloudcheck.user_data(rendered.user_data, values, family)
    cloudcheck.document("meta-data.yaml", rendered.meta_data, {"local-hostname": vm.hostname})
    return rendered


def _environment(templates: Path | Templates, site: SiteConfig) -> jinja2.Environment:
    if isinstance(templates, Path):
        return _cached_environment((site.template_dir, str(templates)), ())
    return _cached_environment((), templates)


@cache
def _cached_environment(directories: tuple[str, ...], texts: Templates) -> jinja2.Environment:
    import jinja2  # 50 ms that only a start has to pay for

    environment = jinja2.Environment(
        loader=jinja2.DictLoader(dict(texts)) if texts else jinja2.FileSystemLoader(directories),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["xml"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON strings are YAML strings as long as no surrogate pairs are written.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


@cache
def _texts(environment: jinja2.Environment) -> Templates:
    """All templates that are text."""
    found = {}
    for name in environment.list_templates():
        with contextlib.suppress(UnicodeError):
            found[name] = _source(environment, name)
    return tuple(found.items())


def _render(environment: jinja2.Environment, name: str, values: Mapping[str, object]) -> str:
    import jinja2

    try:
        return environment.get_template(name).render(values)
    except jinja2.TemplateNotFound as error:
        raise ConfigError(f"template {error.name} is missing") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"template {name}: {error}") from error


def _family(plan: JobPlan) -> str:
    if plan.request.distro not in _FAMILY:
        raise ConfigError(f"guests of distro {plan.request.distro} are not supported yet")
    return _FAMILY[plan.request.distro]


def _source(environment: jinja2.Environment, name: str) -> str:
    """A template's text as it is: shell scripts get their data as arguments, never by substitution."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _osv(plan: JobPlan) -> dict[str, Any]:
    """OSv runs one program: it has no users, and mounts with the numbers of the job's."""
    owner = f"uid={plan.account.uid},gid={plan.account.group.gid}"
    return {"mounts": [[mount.source, str(mount.target), "nfs", owner, "0", "0"] for mount in plan.mounts]}


def _linux(environment: jinja2.Environment, values: Mapping[str, Any], family: str) -> dict[str, Any]:
    site: SiteConfig = values["site"]
    words = {"debian": site.sw_packages_debian, "redhat": site.sw_packages_redhat}[family]
    bootcmd = [_setup_command(environment, values)]
    if site.name_server:
        bootcmd.insert(0, ["sh", "-c", _RESOLV_CONF, "resolv-conf", _resolv_conf(site)])
    if family == "redhat":
        bootcmd.append(["sh", "-c", _SELINUX])
    installs = bool(words) or site.security_updates
    late = _late_commands(values["vm"], values["scripts"])
    if installs or late:
        bootcmd.append(["sh", "-c", _HOLD])
        late.append(["sh", "-c", _RELEASE])
    return {
        "guest_files": _guest_files(environment, values) + _late_files(environment, values),
        "time_servers": _once(filter(None, (site.ntp_server_1, site.ntp_server_2))),
        "packages": _once(words),
        "bootcmd": bootcmd,
        "installs": installs,
        "runcmd": late,
    }


def _late_commands(vm: VmPlan, scripts: Mapping[str, str]) -> list[list[str]]:
    """What is done when all files are written and all packages installed, before the guest is ready."""
    commands = [["sh", SITE_SCRIPT, name] for name in scripts if name.startswith("prologue")]
    if ends_cleanly(vm, scripts):
        units = [_POWER_BUTTON, *(_SITE_EPILOGUE for name in scripts if name.startswith("epilogue"))]
        commands.append(["sh", "-c", _START, "start", *units])
    return commands


def _late_files(environment: jinja2.Environment, values: Mapping[str, Any]) -> list[GuestFile]:
    """The site's own scripts, and what lets the guest shut down by itself."""
    plan, vm, scripts = values["plan"], values["vm"], values["scripts"]
    files = []
    if scripts:
        words = "".join(f"{word}\n" for word in (plan.job.id, plan.account.name, vm.rank))
        files += [(SITE_SCRIPT, "0755", _source(environment, "site-script.sh")),
                  (f"{GUEST_LIBRARY}/site.words", "0644", words)]
    if ends_cleanly(vm, scripts):
        files += [(f"{GUEST_LIBRARY}/power-button", "0755", _source(environment, "power-button.sh")),
                  (f"{_UNITS}/{_POWER_BUTTON}", "0644", _source(environment, "power-button.service"))]
    for name, text in scripts.items():
        files.append((f"{GUEST_LIBRARY}/site/{name}", "0700", text))
        if name.startswith("epilogue"):
            unit = _render(environment, "site-epilogue.service", {"name": name})
            files.append((f"{_UNITS}/{_SITE_EPILOGUE}", "0644", unit))
    return [GuestFile(path=path, permissions=permissions, content=content) for path, permissions, content in files]


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _resolv_conf(site: SiteConfig) -> str:
    lines = [f"nameserver {address}" for address in site.name_server.split()]
    if search := site.search_domain or site.domain:
        lines.append(f"search {search}")
    return "".join(f"{line}\n" for line in lines)


def _guest_files(environment: jinja2.Environment, values: Mapping[str, Any]) -> list[GuestFile]:
    plan, keys = values["plan"], values["keys"]
    paths = {"known_hosts": KNOWN_HOSTS, "job_key": JOB_KEY}
    user_key = f"restrict,pty,X11-forwarding {plan.request.public_key}\n"
    probe_key = f'restrict,command="{AWAIT_SETUP}" {keys.probe_public}\n'
    return [
        GuestFile(path=path, permissions=permissions, content=content)
        for path, permissions, content in (
            ("/etc/ssh/sshd_config.d/10-vtorque.conf", "0644", _render(environment, "sshd.conf", values)),
            (f"/etc/ssh/authorized_keys.d/{plan.account.name}", "0644", user_key + probe_key),
            (AWAIT_SETUP, "0755", _source(environment, "await-setup.sh")),
            (RUN_JOB, "0755", _source(environment, "run-job.sh")),
            (MPIRUN, "0755", _source(environment, "mpirun.sh")),
            (MPIRUN.replace("mpirun", "mpiexec"), "0755", _source(environment, "mpirun.sh")),
            ("/etc/profile.d/00-vtorque.sh", "0644", f"PATH={MPIRUN.rpartition('/')[0]}:$PATH\n"),
            ("/etc/ssh/ssh_config.d/10-vtorque.conf", "0644", _render(environment, "ssh.conf", paths)),
        )
    ]


def _setup_command(environment: jinja2.Environment, values: Mapping[str, Any]) -> list[str]:
    plan, vm, site = values["plan"], values["vm"], values["site"]
    account = plan.account
    words = ["user", account.name, str(account.uid), str(account.group.gid), str(account.home), account.shell]
    for group in account.groups:
        words += ["group", group.name, str(group.gid)]
    words += ["hosts", f"{vm.hostname}.{site.domain} {vm.hostname}" if site.domain else vm.hostname]
    # The job's wrapper fills these, as the user, when it knows all of the job's guests.
    words += ["own", JOB_FILES, "/etc/hosts", node_file_path(plan.job.id)]
    if values["announce"]:
        words += ["announce", values["announce"]]
    for mount in plan.mounts:
        words += [
            "mount", str(site.nfs_timeout), mount.fstype, mount.options, mount.source, str(mount.target)
        ]
    words += datadisk.words(plan, vm)
    return ["sh", "-c", _source(environment, "guest-setup.sh"), "guest-setup", *words]
