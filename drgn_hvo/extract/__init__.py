# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Minimal cores
-------------

``drgn-hvo extract``: a core that holds what the other commands read, and nothing
else. What that is, is not listed anywhere: the commands themselves are run over the
target, what they read is recorded (:mod:`~drgn_hvo.extract.recorder`), and a page is
kept only if its own struct page does not say that it is somebody's data
(:mod:`~drgn_hvo.extract.owners`).
"""

__all__ = ()
