# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Files that are no cores
-----------------------

What people have instead of a core, by the bytes that it begins with, and what turns it
into one. Each entry is tried by a test, where the tool that it names is there.
"""

from __future__ import annotations

from dataclasses import dataclass
import shlex
from typing import BinaryIO, Optional

__all__ = ("UNREADABLE", "Unreadable", "explain_unreadable")


@dataclass(frozen=True)
class Unreadable:
    """
    A format.

    :param name: What it is.
    :param magic: Bytes at *offset*.
    :param advice: What to do; commands are in quotes, ``{file}`` is the file.
    """

    name: str
    magic: bytes
    advice: str
    offset: int = 0


_CRASH = "crash(8) opens it, drgn does not"
_NEW_DUMP = "of a running guest, 'virsh dump --memory-only GUEST NEW' makes a core"
_VMWARE = (
    "vmss2core of VMware makes a core of it: 'vmss2core -N6 {file}', with the .vmem "
    "file behind it if there is one"
)
_MEMORY_IMAGE = (
    "drgn does not read it; what kdump writes is a core, and of a guest 'virsh dump "
    "--memory-only GUEST NEW'; the running kernel is the target 'live'"
)
_WINDOWS = "it is not of Linux"

#: What is tried in this order.
UNREADABLE = (
    # Compressed; the commands do not depend on how the file is called.
    Unreadable("compressed by zstd", b"\x28\xb5\x2f\xfd", "'zstd -dc {file} >NEW'"),
    Unreadable("compressed by xz", b"\xfd7zXZ\0", "'xz -dc {file} >NEW'"),
    Unreadable("compressed by gzip", b"\x1f\x8b", "'gzip -dc <{file} >NEW'"),
    Unreadable("compressed by bzip2", b"BZh", "'bzip2 -dc {file} >NEW'"),
    Unreadable("compressed by lz4", b"\x04\x22\x4d\x18", "'lz4 -dc {file} >NEW'"),
    Unreadable("compressed by lzop", b"\x89LZO\0\r\n\x1a\n", "'lzop -dc {file} >NEW'"),
    Unreadable("a ZIP archive", b"PK\x03\x04", "'unzip {file}'"),
    Unreadable("a 7-Zip archive", b"7z\xbc\xaf\x27\x1c", "'7z x {file}'"),
    Unreadable("a tar archive", b"ustar", "'tar -xf {file}'", offset=257),
    # Virtual machines: libvirt's qemu_saveimage.h, QEMU's migration/qemu-file-types.h
    # and block/qcow2.c, crash's vmware_vmss.h, Xen's xenctrl.h.
    Unreadable("a guest saved by virsh save", b"LibvirtQemudSave", _NEW_DUMP),
    Unreadable("a guest saved by virsh save, in part", b"LibvirtQemudPart", _NEW_DUMP),
    Unreadable(
        "a migration stream, as of virsh dump without --memory-only", b"QEVM", _NEW_DUMP
    ),
    Unreadable("a disk image of QEMU", b"QFI\xfb", _NEW_DUMP),
    *(
        Unreadable("a state of VMware (.vmss, .vmsn)", bytes.fromhex(magic), _VMWARE)
        for magic in ("d0bed0be", "d2bed2be", "d3bed3be", "d1bad1ba", "d2bad2ba")
    ),
    *(
        Unreadable("a core of an old Xen", bytes.fromhex(magic), _CRASH)
        for magic in ("edeb0ff0", "eeeb0ff0")
    ),
    # Memory images: LiME's and AVML's documentation.
    Unreadable("a memory image of LiME or AVML", b"EMiL", _MEMORY_IMAGE),
    Unreadable("a memory image of AVML", b"AVML", _MEMORY_IMAGE),
    # Other dumps: LKCD's and diskdump's magics from crash, zgetdump's df_s390.h,
    # makedumpfile's sadump_mod.h.
    Unreadable(
        "a stand-alone dump of s390",
        bytes.fromhex("a8190173618f23fd"),
        "'zgetdump -f elf {file} >NEW'",
    ),
    Unreadable(
        "a stand-alone dump of s390",
        bytes.fromhex("a8190173618f23fe"),
        "'zgetdump -f elf {file} >NEW'",
    ),
    Unreadable("a dump of LKCD", bytes.fromhex("ed238f61730119a8"), _CRASH),
    Unreadable("a dump of LKCD", bytes.fromhex("a8190173618f23ed"), _CRASH),
    Unreadable("a dump of diskdump", b"DISKDUMP", _CRASH),
    Unreadable(
        "a dump of sadump",
        b"sadump\0\0",
        "'makedumpfile -x VMLINUX -c -d 1 {file} NEW'",
    ),
    Unreadable("a dump of Windows", b"PAGEDU64", _WINDOWS),
    Unreadable("a dump of Windows", b"PAGEDUMP", _WINDOWS),
    Unreadable("a minidump of Windows", b"MDMP", _WINDOWS),
    # File systems: the kernel's include/uapi/linux/magic.h.
    Unreadable("a squashfs image", b"hsqs", "'unsquashfs {file}'"),
    Unreadable(
        "an image of ext2, ext3 or ext4",
        b"\x53\xef",
        "'mount -o loop,ro {file} DIRECTORY'",
        offset=0x438,
    ),
)


def explain_unreadable(f: BinaryIO, file: str) -> Optional[str]:
    """
    What a file is that is no core, and what to do.

    :param file: Its name.
    :return: ``None`` if nothing is known of it.
    """
    for kind in UNREADABLE:
        f.seek(kind.offset)
        if f.read(len(kind.magic)) == kind.magic:
            advice = kind.advice.format(file=shlex.quote(file))
            return f"no core, but {kind.name}: {advice}"
    return None
