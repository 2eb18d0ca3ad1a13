# SPDX-License-Identifier: Apache-2.0
"""Whether the tests of the validators notice when a validator is wrong in one place."""
