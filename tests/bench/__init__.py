# SPDX-License-Identifier: Apache-2.0
"""What vtorque itself costs, measured beside a baseline of the same run: `python3 -m tests.bench`."""
