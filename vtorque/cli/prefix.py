# SPDX-License-Identifier: Apache-2.0
"""Where scripts and templates lie, as a path: what becomes qsub at once does without pathlib."""

from pathlib import Path

from vtorque import cli

PREFIX = Path(cli.where())
