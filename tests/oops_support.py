# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Texts of oopses
---------------

Made from the kernel's own format strings.
"""

from drgn_hvo.formats.oops_log import parse_log

__all__ = (
    "FETCH",
    "PROT",
    "RELEASE",
    "RSVD",
    "USER",
    "WRITE",
    "oops_lines",
    "parse",
    "text",
)

PROT, WRITE, USER, RSVD, FETCH = 1, 2, 4, 8, 16

RELEASE = "7.2.13+deb14-cloud-amd64"


def levels(entries):
    """As dump_pagetable() prints them: pr_info("PGD %lx "), pr_cont("P4D %lx ")…"""
    names = ("PGD", "P4D", "PUD", "PMD", "PTE")
    return " ".join(f"{n} {v:x}" for n, v in zip(names, entries))


def oops_lines(address, code, entries=(0x1067, 0x1067, 0x2067, 0x3063), **changes):
    """show_fault_oops(), __die_header(), dump_stack_print_info(), show_ip()."""
    say = {"release": RELEASE, "comm": "memhog", "pid": 412, "words": code, **changes}
    words = say["words"]
    if address < 4096:
        yield f"BUG: kernel NULL pointer dereference, address: {address:016x}"
    else:
        yield f"BUG: unable to handle page fault for address: {address:016x}"
    yield "#PF: {} {} in {} mode".format(
        "user" if words & USER else "supervisor",
        "instruction fetch"
        if words & FETCH
        else "write access"
        if words & WRITE
        else "read access",
        "kernel",
    )
    yield "#PF: error_code(0x{:04x}) - {}".format(
        code,
        "not-present page"
        if not code & PROT
        else "reserved bit violation"
        if code & RSVD
        else "permissions violation",
    )
    yield levels(entries) + " "
    yield f"Oops: Oops: {code & 0xFFFF:04x} [#1] SMP NOPTI"
    yield (
        f"CPU: 1 UID: 0 PID: {say['pid']} Comm: {say['comm']:.20s} Kdump: loaded "
        f"Not tainted {say['release']} #1 PREEMPT(lazy)  Debian 7.2.13-1"
    )
    yield "Hardware name: QEMU Standard PC (i440FX + PIIX, 1996)"
    yield "RIP: 0010:folio_try_get+0x1c/0x60 [badmod]"
    yield "Code: 0f 1f 44 00 00 48 8b 47 08 <f0> 0f c1 07"
    yield "RSP: 0018:ffffc90000123d50 EFLAGS: 00010286"
    yield "Call Trace:"
    yield " <TASK>"
    yield " do_syscall_64+0x5f/0x130"
    yield "RIP: 0033:0x7f0a12345678"
    yield f"CR2: {address:016x}"
    yield "---[ end trace 0000000000000000 ]---"


def text(address, code, **changes):
    return "\n".join(oops_lines(address, code, **changes)) + "\n"


def parse(log):
    return parse_log(log.splitlines())
