# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Helpers
-------

Helpers for drgn sessions and scripts, one module by area of the kernel, named and
written as those of ``drgn.helpers.linux``. All of them are exported by
:mod:`drgn_hvo`, which imports a module when one of its helpers is first used.

They work with the kernel's debuginfo and without, on what BTF and kallsyms in the
core say. They take and return :class:`drgn.Object`, are named after the kernel
function that they mirror, and answer rightly on kernels of all generations of HVO,
also on those that drgn's own helpers misread.

Errors: :class:`TypeError` for an argument of another type than the documented one;
:class:`drgn.FaultError` for an address at which there is no such structure, and if
memory that is needed cannot be read;
:class:`drgn.helpers.ValidationError` from validators; and
:class:`drgn_hvo.errors.HvoError`, whose text is one line, if something cannot be
known or makes no sense.
"""
