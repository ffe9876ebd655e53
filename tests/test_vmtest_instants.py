# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A guest that is stopped between two instructions: the client of QEMU's gdbstub against
a server that answers as told, and a few instants of a real kernel.
"""

from pathlib import Path
import re
import shutil
import socket
import threading
import time

import pytest

from contrib.vmtest import gdb as gdb_module, instants as instants_module
from contrib.vmtest.errors import GuestError
from contrib.vmtest.gdb import Gdb, Register
from contrib.vmtest.kernels import find_kernel
from contrib.vmtest.stops import AT_BOOT, FAILURES, GIGANTIC, POOLS, Stop

KERNELS = Path(__file__).resolve().parents[2] / "shared" / "kernels"


def framed(data):
    return b"$%s#%02x" % (data, sum(data) & 0xFF)


def hexadecimal(word):
    return word.to_bytes(8, "little").hex().encode()


class Stub:
    """
    A gdbstub with registers, a word of memory and breakpoints; it counts what it was
    asked.

    :param answers: What it answers to packets, in place of what QEMU would.
    """

    def __init__(self, path, answers=()):
        self.answers = dict(answers)
        self.asked = []
        self.registers = {0: 5, 4: 9, 7: 0x1000, 16: 0xFFFFFFFF81000000}
        self.words = {0x1000: 0xFFFFFFFF81234567}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        client, _ = self._listener.accept()
        received = b""
        with client:
            while True:
                try:
                    data = client.recv(4096)
                except OSError:
                    return
                if not data:
                    return
                received += data
                if b"\x03" in received:
                    received = received.replace(b"\x03", b"")
                    self.asked.append("interrupt")
                    client.sendall(framed(b"T02thread:02;"))
                while found := re.search(rb"\$([^#]*)#..", received):
                    received = received[found.end() :]
                    packet = found[1].decode()
                    self.asked.append(packet)
                    answer = self.answers.get(packet, self._answer(packet))
                    if answer is not None:
                        # In two parts, behind the acknowledgement.
                        whole = answer if answer[:1] == b"!" else framed(answer)
                        whole = whole.lstrip(b"!")
                        client.sendall(b"+" + whole[:3])
                        client.sendall(whole[3:])

    def _answer(self, packet):
        if packet.startswith("p"):
            return (
                self.registers[int(packet[1:], 16)].to_bytes(8, "little").hex().encode()
            )
        if packet.startswith("P"):
            number, _, value = packet[1:].partition("=")
            word = int.from_bytes(bytes.fromhex(value), "little")
            self.registers[int(number, 16)] = word
        if packet.startswith("m"):
            address = int(packet[1:].partition(",")[0], 16)
            return hexadecimal(self.words[address])
        if packet.startswith("vCont;s"):
            return b"T05thread:01;"
        if packet == "vCont;c":
            return None
        return b"OK"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gdb"


def test_breakpoint_and_steps(path):
    stub = Stub(path, {"vCont;c": b"T05thread:02;"})
    gdb = Gdb(path)
    gdb.insert_breakpoint(0xFFFFFFFF81000000)
    assert gdb.run(5) == "02"
    gdb.select("02")
    gdb.step("02")
    gdb.remove_breakpoint(0xFFFFFFFF81000000)
    assert gdb.register(Register.RIP) == 0xFFFFFFFF81000000
    assert gdb.register(Register.RSI) == 9
    gdb.close()
    assert stub.asked[2:] == [
        "Z1,ffffffff81000000,1",
        "vCont;c",
        "Hg02",
        "vCont;s:02",
        "z1,ffffffff81000000,1",
        "p10",
        "p4",
    ]


def test_a_function_returns_at_once(path):
    stub = Stub(path)
    Gdb(path).return_from_function(0)
    assert stub.registers[Register.RIP] == 0xFFFFFFFF81234567
    assert stub.registers[Register.RSP] == 0x1008
    assert stub.registers[Register.RAX] == 0


def test_nothing_comes_in_time(path):
    """Then the guest is stopped where it is."""
    stub = Stub(path)
    gdb = Gdb(path)
    start = time.monotonic()
    assert gdb.run(0.05) is None
    assert time.monotonic() - start < 2
    assert stub.asked[-2:] == ["vCont;c", "interrupt"]


def test_stop_of_which_nobody_asked(path):
    """QEMU stops when a client comes, and says so or not."""
    Stub(path, {"Hg0": b"!" + framed(b"T05thread:01;") + framed(b"OK")})
    assert Gdb(path).register(Register.RAX) == 5


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"Hg0": b"E01"}, "not a gdbstub"),
        ({"p0": b""}, "answers b'' to p0"),
        ({"p0": b"0x"}, "to p0"),
        ({"p0": b"!$11#00"}, "wrong checksum"),
        ({"p0": b"!" + b"$" + b"1" * (1 << 17)}, "does not end"),
        ({"vCont;s:01": b"W00"}, "the guest ended"),
        ({"vCont;s:01": b"OK"}, "no stop"),
        ({"p0": None}, "does not answer p0"),
    ],
)
def test_what_is_no_answer(path, answers, says, monkeypatch):
    monkeypatch.setattr(gdb_module, "_TIMEOUT", 0.3)
    Stub(path, answers)

    def use():
        gdb = Gdb(path)
        gdb.step("01")
        gdb.register(Register.RAX)

    with pytest.raises(GuestError, match=re.escape(says)):
        use()


def test_nobody_is_there(path):
    with pytest.raises(GuestError, match="gdb: No such file"):
        Gdb(path)


def test_table_of_functions():
    """Every entry says what it leaves; eight kinds of code at least."""
    stops = (*POOLS, *FAILURES, *GIGANTIC, *AT_BOOT)
    assert len({stop.names for stop in stops}) >= 12
    for stop in stops:
        assert len(stop.reason) > 20
        assert len(set(stop.names)) == len(stop.names)
        assert 0 < stop.dense <= stop.most
        assert bool(stop.inside) or not stop.fails


def test_some_instants(tmp_path, monkeypatch, capsys):
    """A few of a real kernel: none of them is damage."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64 on this host")
    found = sorted(KERNELS.glob("*/vmlinuz"))
    if not found:
        pytest.skip("no kernel in ../shared/kernels")
    enqueue = next(stop for stop in POOLS if "enqueue_hugetlb_folio" in stop.names)
    monkeypatch.setattr(instants_module, "POOLS", (enqueue,))
    for name in ("FAILURES", "GIGANTIC", "AT_BOOT"):
        monkeypatch.setattr(instants_module, name, ())
    kernel = find_kernel(str(found[0].parent), tmp_path)
    run = instants_module.Run(kernel, tmp_path, lambda line: None, only=6)
    [tally] = run.pools()
    assert isinstance(tally.stop, Stop)
    assert (tally.instants, tally.errors) == (6, {})
    assert "enqueue_hugetlb_folio: 6 instants" in tally.line("kernel")
