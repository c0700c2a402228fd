"""What must hold after a fault: old or new is whole, nothing is left over, and the command can be repeated."""

import os
import random
import shutil
import signal
import time

from tests.faults.commands import COMMANDS, check_whole, content, make_inputs
from tests.faults.injection import STATUS, run

OLD = b"the file before"
MAY_STAY_DAMAGED = ("log.jsonl", "training-previous.safetensors")
UNFINISHED = (".partial", ".lock")


class Case:
    """A command with its inputs, and what it writes when nothing happens."""

    def __init__(self, name, folder):
        self.command, self.folder = COMMANDS[name], folder
        self.out = folder / "results" / self.command.out
        make_inputs(folder)
        os.chdir(folder)
        self.begin()
        ended = self.run()
        assert ended.status == 0, ended.error
        self.expected = content(self.out)
        files = [path for path in (self.out, *self.out.rglob("*")) if path.is_file()]
        self.largest = max(path.stat().st_size for path in files)
        self.operations = ended.operations

    def begin(self):
        """Remove what the last command has left; a command that writes a file has one to replace."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if self.command.is_file:
            self.out.write_bytes(OLD)

    def run(self, *, again=False, **fault):
        """Run the command, or what continues it."""
        return run(self.command.line(self.out, again=again or self.command.is_file), self.out.parent, **fault)

    def leftovers(self):
        return [path.name for path in self.out.parent.rglob("*") if path.name.endswith(UNFINISHED)]

    def check_fault(self, fault, number):
        """Check what is left when a fault happens at an operation, and that the same command then succeeds."""
        self.begin()
        ended = self.run(fault=fault, number=number)
        assert len(ended.operations) >= number
        assert ended.status in (STATUS[fault], 0 if fault == "error" else STATUS[fault]), ended
        self.check_ended(ended, killed=fault == "SIGKILL")

    def check_full_disk(self, largest_file):
        """Check what is left when no file can have more bytes than this, and that the same command then succeeds."""
        self.begin()
        self.check_ended(self.run(largest_file=largest_file))

    def check_damage(self, flips, seed, part):
        """Flip a bit of a file after a part of the operations: the command, continued, refuses or mends it.

        Only the log, which no number depends on, and the state before the last may stay damaged.
        """
        generator = random.Random(seed)
        self.begin()
        self.run(fault="SIGKILL", number=int(part * len(self.operations)))
        before = self.folder / "before"
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(self.out, before)
        files = [path.relative_to(before) for path in sorted(before.rglob("*")) if path.is_file()]
        files = [file for file in files if not file.name.endswith(UNFINISHED) and (before / file).stat().st_size]
        for _ in range(flips):
            shutil.rmtree(self.out)
            shutil.copytree(before, self.out)
            path = self.out / generator.choice(files)
            damaged = bytearray(path.read_bytes())
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            ended = self.run(again=True)
            if ended.status == 2:
                assert ended.error.count("\n") == 1, ended.error
                assert len(ended.error) <= 201, ended.error
            else:
                assert ended.status == 0, ended
                may_stay = path.name in MAY_STAY_DAMAGED
                assert self.different() <= ({path.relative_to(self.out).as_posix()} if may_stay else set()), path

    def different(self):
        """Return the names of the files that are not what they are when nothing happens."""
        found = content(self.out)
        return {name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)}

    def check_ended(self, ended, *, killed=False):
        """Check what a process has left, and that the same command then succeeds."""
        assert ended.status in (0, 2, 143, -9), ended
        if ended.status == 2:
            assert ended.error.count("\n") == 1, ended.error
            assert len(ended.error) <= 201, ended.error
            assert "could not be written" in ended.error, ended.error
        if self.command.is_file:
            assert content(self.out) in ({"": OLD}, self.expected), content(self.out)
        elif ended.status == 0:
            assert content(self.out) == self.expected
        if not killed:
            assert self.leftovers() == []
            check_whole(self.out)
            assert content(self.out).keys() <= self.expected.keys() | {""}
        else:
            check_whole(self.out)
        self.check_again()

    def check_again(self):
        """Check that the command, repeated, ends with the result of one that nothing happened to."""
        is_complete = not self.command.again and self.out.is_dir() and content(self.out) == self.expected
        if not is_complete:  # a complete folder is never replaced
            ended = self.run(again=True)
            assert ended.status == 0, ended.error
        assert self.different() == set()
        assert self.leftovers() == []

    def check_random_kills(self, kills, seed, signals=(signal.SIGKILL, signal.SIGTERM)):
        """Kill the command at random moments, continuing each time where the last one was killed."""
        generator = random.Random(seed)
        self.begin()
        started = time.perf_counter()
        run(self.command.line(self.out, again=True), self.out.parent, kill_after=(0, 0))
        seconds = time.perf_counter() - started
        self.begin()
        for _ in range(kills):
            number = generator.choice(signals)
            ended = run(
                self.command.line(self.out, again=True),
                self.out.parent,
                kill_after=(number, generator.uniform(0, 1.1 * seconds)),
            )
            assert ended.status in (0, -9, 143, -15), ended
            check_whole(self.out)
            assert ended.status or content(self.out) == self.expected
            if content(self.out) == self.expected:
                self.begin()  # nothing is left to kill, and a complete folder is not replaced
        self.check_again()
