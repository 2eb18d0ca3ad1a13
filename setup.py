"""What gets installed where; every setting of a tool is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

version = re.search(r'__version__ = "(.+)"', Path("vtorque/__init__.py").read_text())
assert version is not None

# What makes packages, and what tries vtorque out in its own tree.
BUILDERS = {"contrib/make-deb", "contrib/install-packages"}


def files(folder: str, pattern: str = "*") -> list[str]:
    """Those in a folder, not in those below, that are to be installed."""
    return sorted(str(path) for path in Path(folder).glob(pattern) if path.is_file() and str(path) not in BUILDERS)


setup(
    name="vtorque",
    version=version[1],
    description="Batch jobs in virtual machines of the user's choice",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vtorque", "vtorque.*"]),
    install_requires=["jinja2", "libvirt-python", "paramiko", "psutil", "pycdlib", "pyyaml", "sh"],
    extras_require={"test": ["hypothesis", "pytest"], "check": ["mypy", "ruff"]},
    entry_points={
        "console_scripts": ["vsub = vtorque.cli.plain:main", "vmgr = vtorque.cli.vmgr:command"],
    },
    data_files=[
        ("share/man/man1", ["doc/man/vsub.1"]),
        ("share/man/man5", ["doc/man/vtorque.yaml.5"]),
        ("share/man/man8", ["doc/man/vmgr.8"]),
        ("share/bash-completion/completions", ["contrib/completion/vsub.bash", "contrib/completion/vmgr.bash"]),
        ("share/zsh/site-functions", ["contrib/completion/_vsub", "contrib/completion/_vmgr"]),
        ("share/doc/vtorque", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]),
        ("share/doc/vtorque/doc", files("doc", "*.md")),
        ("share/doc/vtorque/doc/adr", files("doc/adr", "*.md")),
        *(
            (f"share/vtorque/{folder}", files(folder))
            for folder in (
                "scripts", "scripts/local", "scripts/slurm", "templates", "templates-vm", "contrib", "contrib/openpbs",
                "contrib/slurm", "contrib/scripts-vm", "contrib/tmpfiles.d", "contrib/logrotate.d", "contrib/cron.d",
                "contrib/systemd", "examples",
                *(str(path) for path in sorted(Path("contrib/ansible").rglob("*")) if path.is_dir()),
            )
        ),
    ],
)
