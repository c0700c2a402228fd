"""A process that tries inputs one after another, with limits, and is started again when it dies.

memory   2 GB of address space above what the process takes once everything is imported
time     20 seconds per input; the stack of a process that takes longer is in the failure
files    64 MB each
"""

import contextlib
import faulthandler
import io
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

MEMORY = 2 * 2**30
SECONDS = 20
FILE_BYTES = 64 * 2**20
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


class Outcome(NamedTuple):
    """What became of an input."""

    kind: str  # accepted, refused, failed, or skipped when the input cannot be made
    message: str = ""  # of the refusal or of the failure
    signature: str = ""  # of a failure: equal for the same failure
    detail: str = ""  # the end of the traceback


class Worker:
    """The process for one target, seen from the process that started it."""

    def __init__(self, target):
        self.target = target
        self.process = None

    def start(self):
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{self.target}-"))
        self.log = self.folder / "stack"
        self.log.touch()
        context = multiprocessing.get_context("spawn")
        self.connection, end = context.Pipe()
        self.process = context.Process(target=serve, args=(self.target, end, self.folder), daemon=True)
        self.process.start()
        end.close()
        if (answer := self.connection.recv()) != "ready":
            raise RuntimeError(f"{self.target}: a valid input failed: {answer}")

    def run(self, case):
        """Return the outcome of an input: {"edits": [...], and the options of its target}."""
        if self.process is None:
            self.start()
        self.connection.send(case)
        try:
            if self.connection.poll(SECONDS + 5):
                return Outcome(*self.connection.recv())
        except (EOFError, ConnectionError):
            self.process.join(5)
            hung = "Timeout (" in self.log.read_text(errors="replace")
            how = f"no end after {SECONDS} s" if hung else f"the process died with exit code {self.process.exitcode}"
            outcome = died(how, self.log)
        else:
            outcome = died(f"no end after {SECONDS} s", self.log)
        self.stop()
        return outcome

    def stop(self):
        if self.process is not None:
            self.connection.close()
            self.process.join(2)
            self.process.kill()
            self.process.join()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def died(message, log):
    """Return the failure of a process that died or hung; faulthandler wrote its stack into the log."""
    text = log.read_text(errors="replace")
    stack = [line.strip() for line in text.splitlines() if line.startswith("  File")]
    own = next((line for line in stack if "gemma_np" in line and "/tests/" not in line), "")
    place = re.sub(r'File ".*?(gemma_np[^"]*)", line (\d+) in (\S+)', r"\1:\3:\2", own)
    return Outcome("failed", message, f"{message} {place}", "\n".join(stack[:12]))


def serve(name, connection, folder):
    """Try the inputs that arrive, until the connection is closed."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(folder), "HOME": str(folder), "COLUMNS": "80"}
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    trace = open(folder / "stack", "w")  # noqa: SIM115 (open as long as the process lives)
    faulthandler.enable(trace)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C++ libraries print

    from tests.fuzz.every_target import EVERY_TARGET

    target = EVERY_TARGET[name]
    # A valid input imports what the target needs; the limit of memory does not count it.
    valid = attempt(target, target.case(0, 0) | {"edits": []}, folder / "input")
    set_limits()
    is_right = valid.kind == "accepted" or (target.draw and valid.kind == "refused")
    connection.send("ready" if is_right else valid.message)
    limit = peak_bytes() + MEMORY
    with contextlib.suppress(EOFError):
        while True:
            case = connection.recv()
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=trace)
            outcome = attempt(target, case, folder / "input")
            faulthandler.cancel_dump_traceback_later()
            if outcome.kind != "failed" and peak_bytes() > limit:
                outcome = Outcome("failed", f"more than {MEMORY} bytes of memory", "memory")
            connection.send(tuple(outcome))


def set_limits():
    if sys.platform == "win32":
        return
    import resource

    status = Path("/proc/self/statm")
    if status.exists():
        size = int(status.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def peak_bytes():
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def attempt(target, case, folder):
    """Return the outcome of one input."""
    from gemma_np.errors import GemmaError
    from tests.fuzz.edits import edited, write_files
    from tests.fuzz.reference import Misread

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = Path.cwd()
    try:
        files = edited(target.base(), case["edits"])
        write_files(folder, files)
    except Exception as error:  # not every edit fits the format, or this system's files
        return Outcome("skipped", str(error))
    names = [edit["file"] for edit in case["edits"]] or list(files)[:1]
    random.seed(0)
    output = io.StringIO()
    try:
        os.chdir(folder)
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            message = target.run(folder, case | {"edited": names})
        return Outcome("refused", message) if message else Outcome("accepted")
    except GemmaError as error:
        message = str(error)
        if "\n" in message or "\r" in message:
            return Outcome("failed", message, f"a message of several lines {place(error)}", details(error))
        if not message.strip():
            return Outcome("failed", "an empty message", f"an empty message {place(error)}", details(error))
        return Outcome("refused", message.replace(str(folder), "."))
    except Misread as error:
        return Outcome("failed", str(error), f"Misread: {error}", details(error))
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"[:300]
        return Outcome("failed", message, f"{type(error).__name__} {place(error)}", details(error))
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def place(error):
    """Return the innermost line of gemma_np in a traceback: file:function:line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/gemma_np/" in frame.filename]
    if not frames:
        return "outside of gemma_np"
    return f"gemma_np/{frames[-1].filename.split('/gemma_np/')[-1]}:{frames[-1].name}:{frames[-1].lineno}"


def details(error):
    lines = "".join(traceback.format_exception(error, limit=-6)).splitlines()
    return "\n".join(line[:200] for line in lines[-16:])
