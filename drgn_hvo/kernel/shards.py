# SPDX-License-Identifier: LGPL-2.1-or-later

"""
One target, read by several processes
-------------------------------------

Most of the time that a large compressed core takes is spent to unpack it, page by page.
:class:`Shards` does such work in several processes that each have the target open. Who
keeps these processes is not known here; a reader of frames has them, or has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from drgn_hvo.kernel.frames import FrameReader

__all__ = ("Shards",)

_P = TypeVar("_P")
_R = TypeVar("_R")


class Shards(Protocol):
    """Processes that read the same target as this one."""

    def map(
        self,
        work: Callable[[FrameReader, _P], _R],
        pieces: Sequence[_P],
        reader: FrameReader,
    ) -> Iterator[tuple[int, _R]]:
        """
        Do work on pieces, in this process as well as in the others.

        :param work: A function of a module. Pieces and results go from process to
            process.
        :param reader: Of this process; the others have their own.
        :return: Results and the numbers of their pieces, as they come.
        :raises TargetError: if one of the processes is lost: then there is no result.
        """
