"""--require: a missing package skips a marked test, or fails it when it was required."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

MARKED = "import pytest\n\n@pytest.mark.framework\ndef test_framework():\n    pass\n"


@pytest.fixture
def suite(pytester):
    """A suite with one marked test; the function says whether what the mark needs is installed."""

    def run(*options, needs):
        source = (Path(__file__).parent / "conftest.py").read_text()
        pytester.makeconftest(re.sub(r'(?<="framework": )\(.*?\)', repr(needs), source))
        pytester.makeini("[pytest]\nmarkers = framework: needs something")
        pytester.makepyfile(MARKED)
        return pytester.runpytest_inprocess(*options)

    return run


def test_runs_when_installed(suite):
    suite("--require", "framework", needs=("json", "xml.dom")).assert_outcomes(passed=1)


def test_skips_when_missing(suite):
    suite(needs=("json", "no_such_package.part")).assert_outcomes(skipped=1)


def test_fails_when_missing_and_required(suite):
    result = suite("--require", "real,framework", needs=("json", "no_such_package"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("*framework: no_such_package not installed*")


def test_requiring_something_unknown_is_an_error(suite):
    result = suite("--require", "frame", needs=("json",))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        "*--require: frame, expected some of mpi, plot, framework, evaluation, jax, notebooks, browser, docs, package, "
        "llama, engine, real*"
    )
