"""Run `gemma-np` in a process of its own in which one operation on a file fails, or ends the process.

The operations are writes, fsyncs and renames below one folder; they are numbered from 1.
"""

import builtins
import errno
import io
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import NamedTuple

from gemma_np.cli import main

FAULTS = ("error", "SIGTERM", "SIGKILL")
"""An error of the disk (after which nothing can be written any more), or a signal at the operation."""

STATUS = {"error": 2, "SIGTERM": 143, "SIGKILL": -9}
"""The exit status that each fault ends with."""


class Ended(NamedTuple):
    """How a process ended."""

    status: int  # negative: the number of the signal that killed it
    error: str  # what it wrote to standard error
    operations: list[str]  # what it did to files, one line each


class _Operations:
    """The operations on files below a folder, of which one is the fault."""

    def __init__(self, folder, fault, number, log):
        self.folder, self.fault, self.number, self.log = str(folder), fault, number, log
        self.count = 0
        self.is_full = False

    def begin(self, name, path):
        """Count an operation. Return whether the disk has become full at it, a write; every other fault happens."""
        if not os.path.abspath(path).startswith(self.folder):
            return False
        self.count += 1
        os.write(self.log, f"{name} {os.path.relpath(path, self.folder)}\n".encode())
        full = OSError(errno.ENOSPC, "No space left on device")  # without a name, as of a write
        if self.is_full and name == "write":
            raise full
        if self.count != self.number:
            return False
        if self.fault == "error":
            self.is_full = name == "write"
            if not self.is_full:
                raise full
        elif self.fault == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # the signal interrupts it
        return True

    def end(self):
        """End the process if it is to be killed in the middle of a write, or after another operation."""
        if self.count == self.number and self.fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)


def _inject(operations):
    """Replace the functions of the standard library that write, sync and rename."""

    class File(io.FileIO):
        def write(self, data):
            if operations.begin("write", self.name):
                data = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
            written = super().write(data)
            operations.end()
            return written

    def open_counted(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return original_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(os.fspath(file), mode.replace("b", "").replace("t", ""))
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    def counted(name, function):
        def call(first, *rest, **options):
            operations.begin(name, os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first)
            value = function(first, *rest, **options)
            operations.end()
            return value

        return call

    original_open = io.open
    io.open = builtins.open = open_counted
    os.fsync = counted("fsync", os.fsync)
    os.replace = counted("rename", os.replace)
    os.rename = counted("rename", os.rename)
    os.link = counted("link", os.link)


def run(arguments, folder, fault=None, number=0, *, largest_file=None, kill_after=None):
    """Run `gemma-np` with these arguments and return how it ended.

    fault, number: what happens at which operation below the folder. largest_file: bytes that a file can have.
    kill_after: (signal, seconds) that ends the process.
    """
    log, (read, error) = os.memfd_create("operations"), os.pipe()
    process = os.fork()
    if process == 0:
        status = 99
        try:
            os.dup2(error, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            if largest_file is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            elif kill_after is None:
                _inject(_Operations(folder, fault, number, log))
            status = main(arguments)
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        number, seconds = kill_after
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(process, number)
    os.close(error)
    with open(read, errors="replace") as file:
        text = file.read()  # until the process ends
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with open(log) as file:
        file.seek(0)
        return Ended(status, text, file.read().splitlines())
