# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Stock kernels under QEMU
------------------------

``python3 -m contrib.vmtest KERNEL`` boots a distribution's kernel with HVO on and a mix
of huge pages, and holds drgn-hvo against what the guest itself says: from outside
over QMP, from inside through ``/proc/kcore``, and in cores captured from it. See
``docs/vmtest.md``.
"""
