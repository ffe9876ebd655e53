# SPDX-License-Identifier: LGPL-2.1-or-later

"""Tests of drgn-hvo."""

from hypothesis import settings

# How long an example takes says more about the machine than about us.
settings.register_profile("drgn-hvo", deadline=None)
settings.load_profile("drgn-hvo")
