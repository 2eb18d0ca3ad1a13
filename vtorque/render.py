# SPDX-License-Identifier: Apache-2.0
"""Plans to text: domain XML, cloud-config, the job wrapper. Pure; policy lives in `plan`.

Templates say how, never whether. What comes out is parsed again and compared
with the plan, so that a site's own template cannot start another guest than
the one that was decided on.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from vtorque import rendercheck
from vtorque.config import SiteConfig
from vtorque.errors import ConfigError
from vtorque.model import JobPlan, VmPlan

GUEST_LIBRARY = "/usr/local/lib/vtorque"
RUN_JOB = f"{GUEST_LIBRARY}/run-job"
AWAIT_SETUP = f"{GUEST_LIBRARY}/await-setup"
MPIRUN = f"{GUEST_LIBRARY}/bin/mpirun"
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
_RELEASE = "[ ! -e /run/vtorque/held ] || mv /run/vtorque/held /run/vtorque/status"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKeys:
    """A guest's own SSH host key, and root's key that may only ask whether it is ready."""

    host_private: str
    host_public: str
    probe_public: str


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
    plan: JobPlan, vm: VmPlan, *, site: SiteConfig, keys: GuestKeys, announce: str, templates: Path
) -> Rendered:
    """Everything that makes `vm`; `announce` is the node's address on the guests' bridge, or empty.

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
        "metadata": json.loads(plan.request.metadata or "{}"),
        "base_format": "qcow2" if plan.image.path.suffix == ".qcow2" else "raw",
    }
    environment = _environment(templates, Path(site.template_dir))
    values |= _osv(plan) if family == "osv" else _linux(environment, values, family)
    rendered = Rendered(
        domain_xml=_render(environment, "domain.xml", values),
        user_data=_render(environment, f"user-data.{family}.yaml", values),
        meta_data=_render(environment, "meta-data.yaml", values),
        network_config=_render(environment, "network-config.yaml", values),
    )
    rendercheck.domain(rendered.domain_xml, plan, vm)
    rendercheck.user_data(rendered.user_data, values, family)
    rendercheck.document("meta-data.yaml", rendered.meta_data, {"local-hostname": vm.hostname})
    return rendered


def _environment(*directories: Path) -> jinja2.Environment:
    return _cached_environment(tuple(map(str, reversed(directories))))


@cache
def _cached_environment(directories: tuple[str, ...]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directories),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["xml"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON strings are YAML strings as long as no surrogate pairs are written.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


def _render(environment: jinja2.Environment, name: str, values: Mapping[str, object]) -> str:
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
    if installs:
        bootcmd.append(["sh", "-c", _HOLD])
    return {
        "guest_files": _guest_files(environment, values),
        "time_servers": _once(filter(None, (site.ntp_server_1, site.ntp_server_2))),
        "packages": _once(words),
        "bootcmd": bootcmd,
        "runcmd": [["sh", "-c", _RELEASE]] if installs else [],
    }


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


def node_file_path(plan: JobPlan) -> str:
    """Where the job finds its node file in the guest: the path that Torque's own has on a node."""
    return f"/var/spool/torque/aux/{plan.job.id}"


def _setup_command(environment: jinja2.Environment, values: Mapping[str, Any]) -> list[str]:
    plan, vm, site = values["plan"], values["vm"], values["site"]
    account = plan.account
    words = ["user", account.name, str(account.uid), str(account.group.gid), str(account.home), account.shell]
    for group in account.groups:
        words += ["group", group.name, str(group.gid)]
    words += ["hosts", f"{vm.hostname}.{site.domain} {vm.hostname}" if site.domain else vm.hostname]
    # The job's wrapper fills these, as the user, when it knows all of the job's guests.
    words += ["own", JOB_FILES, "/etc/hosts", node_file_path(plan)]
    if values["announce"]:
        words += ["announce", values["announce"]]
    for mount in plan.mounts:
        words += [
            "mount", str(site.nfs_timeout), mount.fstype, mount.options, mount.source, str(mount.target)
        ]
    return ["sh", "-c", _source(environment, "guest-setup.sh"), "guest-setup", *words]
