# SPDX-License-Identifier: Apache-2.0
"""Commands: argv, environment, exit status; nothing else."""
