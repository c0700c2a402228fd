"""Run the tests on a mutant, in a copy of the project: those of its module, then of its package, then all."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from tests.mutation.mutants import Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("gemma_np", "tests", "tutorials", "docs", ".github", "README.md", "CHANGELOG.md", "pyproject.toml")
MORE = {  # packages whose tests use a package most
    "weights": ["tests/model", "tests/compression"],
    "model": ["tests/test_golden.py", "tests/test_gemma.py", "tests/text", "tests/training/test_trainer.py"],
    "checkpoints": ["tests/test_gemma.py", "tests/cli", "tests/compression"],
    "text": ["tests/test_gemma.py", "tests/cli/test_cli.py"],
}
SECONDS = 600  # for all tests; a few at a time have less
FEW = 120


class Sandbox:
    """A copy of the project, in which one file at a time is changed."""

    def __enter__(self) -> "Sandbox":
        self.folder = Path(tempfile.mkdtemp(prefix="mutation-"))
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, self.folder / name)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def survives(self, file: str, mutant: Mutant) -> bool:
        """Return whether all tests pass with a mutant of a file."""
        path, source = self.folder / file, (ROOT / file).read_text(encoding="utf-8")
        changed = mutant.apply(source)
        ast.parse(changed)
        path.write_text(changed, encoding="utf-8")
        try:
            return all(self._passes(tests, seconds) for tests, seconds in stages(file))
        finally:
            path.write_text(source, encoding="utf-8")

    def _passes(self, tests: list[str], seconds: float) -> bool:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_limit_memory if sys.platform == "linux" else None,
        )
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:  # it hangs, which a test would notice
            return False
        finally:
            if process.poll() is None and hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


def stages(file: str) -> list[tuple[list[str], float]]:
    """Return the tests of each stage, and how long they may take: those most likely to fail first."""
    package, _, module = file.removeprefix("gemma_np/").removesuffix(".py").rpartition("/")
    own = f"tests/{package + '/' if package else ''}test_{module}.py"
    group = [f"tests/{package}"] if package and (ROOT / "tests" / package).is_dir() else []
    group += MORE.get(package, [])
    everything = ["tests", "-m", "not (notebooks or browser or docs or mpi or plot or evaluation or real)"]
    everything += ["--ignore=tests/mutation", "--ignore=tests/fuzz", "--ignore=tests/tutorials"]
    first = [([own], FEW)] if (ROOT / own).exists() else []
    return [*first, *([(group, 2 * FEW)] if group else []), (everything, SECONDS)]


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (8 * 10**9, 8 * 10**9))
