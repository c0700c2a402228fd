"""What is installed: the wheel, made from the sdist, is complete, typed and runs; the sdist tests itself."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import gemma_np

pytestmark = pytest.mark.package

ROOT = Path(__file__).parent.parent
NAME = f"gemma_np-{gemma_np.__version__}"


def run(*command, **options):
    """The output of a command that succeeds, in an environment where nothing leads to this repository."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, text=True, capture_output=True, **{"env": outside, **options})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment with the wheel; it finds what the wheel requires where the tests find it."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    files = (path for path in (ROOT / "gemma_np").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names - about == {path.relative_to(ROOT).as_posix() for path in files}
    assert "gemma_np/py.typed" in names
    assert f"{NAME}.dist-info/licenses/LICENSE" in about


def test_the_tools_for_packages_find_nothing(built, wheel):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=ROOT)


def test_the_installed_package_runs(python, tmp_path):
    command = python.with_name("gemma-np")
    assert run(command, "--version", cwd=tmp_path) == f"gemma-np {gemma_np.__version__}\n"
    assert run(python, "-m", "gemma_np", "--version", cwd=tmp_path) == f"gemma-np {gemma_np.__version__}\n"
    where = run(python, "-c", "import gemma_np; print(gemma_np.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])
    for model in sorted(path.name for path in (ROOT / "gemma_np/assets").iterdir()):
        assert run(command, "generate", "--model", model, "--max-new-tokens", "2", "To be", cwd=tmp_path).strip()


def test_the_types_are_seen(python, tmp_path):
    (tmp_path / "user.py").write_text(
        "import gemma_np\n"
        "from gemma_np.model.rms_norm import rms_norm\n"
        "reveal_type(gemma_np.load().generate('To be'))\n"
        "gemma_np.load(1)\n"
        "rms_norm()\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", "user.py"]
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    said = subprocess.run(mypy, cwd=tmp_path, env=outside, text=True, capture_output=True).stdout.splitlines()
    assert [(line.split(":")[1], line.split("[")[-1]) for line in said[1:3]] == [("4", "arg-type]"), ("5", "call-arg]")]
    assert 'Revealed type is "str"' in said[0].replace("builtins.", "")


def test_the_sdist_tests_itself(built, tmp_path):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    pytest_of_it = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    collected = run(*pytest_of_it, "--collect-only", cwd=tmp_path / NAME).splitlines()
    of_the_repository = run(*pytest_of_it, "--collect-only", cwd=ROOT).splitlines()
    assert sorted(collected[:-2]) == sorted(of_the_repository[:-2])
    run(*pytest_of_it, "tests/test_bundled.py", "tests/test_golden.py", "tests/test_readme.py", cwd=tmp_path / NAME)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gemma-np gen", {"generate"}),
        ("gemma-np generate --top", {"--top-k", "--top-p"}),
        ("gemma-np generate --dtype f", {"float32", "float64"}),
    ],
)
def test_the_shell_completes(python, tmp_path, line, expected):
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    environment.pop("PYTHONPATH", None)
    run(python.with_name("gemma-np"), env=environment, cwd=tmp_path)
    assert set(answer.read_text().split()) == expected
