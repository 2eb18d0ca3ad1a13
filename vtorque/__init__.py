# SPDX-License-Identifier: Apache-2.0
"""Batch jobs in virtual machines of the user's choice."""

__version__ = "0.1.0"
