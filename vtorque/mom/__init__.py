# SPDX-License-Identifier: Apache-2.0
"""The local engine: a mom and a tiny server for one machine.

It obeys Torque's contract to the letter, because it is two things at once: what
a newcomer runs, and what tests run the real hooks under. It knows nothing of guests.
"""
