# SPDX-License-Identifier: Apache-2.0
"""Everything that differs from site to site, one package a boundary."""
