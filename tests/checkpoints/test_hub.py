"""The hub, played by a stand-in for `huggingface_hub.snapshot_download`: what is said when it cannot be had."""

import sys
import types
from fnmatch import fnmatch

import pytest

import gemma_np
from gemma_np import GemmaError
from tests.support import tiny


class Errors(types.ModuleType):
    """The library's exceptions, related to each other as they are there."""

    class RepositoryNotFoundError(OSError): ...

    class GatedRepoError(RepositoryNotFoundError): ...

    class HFValidationError(ValueError): ...

    class LocalEntryNotFoundError(FileNotFoundError): ...


@pytest.fixture
def hub(monkeypatch):
    """Install a hub whose download does what the test says."""

    def install(download):
        library = types.ModuleType("huggingface_hub")
        library.errors, library.snapshot_download = Errors("errors"), download
        monkeypatch.setitem(sys.modules, "huggingface_hub", library)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", library.errors)

    return install


def test_what_was_downloaded_is_loaded(hub, tmp_path):
    tiny.gemma().save(tmp_path / "snapshot")
    asked = {}

    def download(repo, allow_patterns):
        asked.update(repo=repo, files=allow_patterns)
        return str(tmp_path / "snapshot")

    hub(download)
    assert gemma_np.load("google/gemma-2-2b-it").config == tiny.config()
    assert asked["repo"] == "google/gemma-2-2b-it"
    needed = ["config.json", "tokenizer.model", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    kept = ["README.md", "LICENSE.txt", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
    for name in (*needed, *kept):
        assert any(fnmatch(name, pattern) for pattern in asked["files"])
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in asked["files"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            Errors.GatedRepoError("401"),
            "accept it at https://huggingface.co/google/gemma-2-2b and then run: hf auth login",
        ),
        (Errors.RepositoryNotFoundError("404"), "no such repository on the hub"),
        (Errors.HFValidationError("bad"), "neither a folder, nor a file, nor a hub id"),
        (Errors.LocalEntryNotFoundError("offline\nmore"), "the hub cannot be reached (offline)"),
        (RuntimeError("the client was closed"), "the hub cannot be reached (the client was closed)"),
        (ConnectionError(), "the hub cannot be reached (ConnectionError)"),
    ],
)
def test_what_goes_wrong_is_explained(error, message, hub):
    def download(*_, **__):
        raise error

    hub(download)
    with pytest.raises(GemmaError) as raised:
        gemma_np.load("google/gemma-2-2b")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(GemmaError, match=r'no such folder or file; as a hub id it needs pip install "gemma-np\[hub\]"'):
        gemma_np.load("google/gemma-2-2b")


@pytest.mark.parametrize("name", ["gemma-2-2b", "/google/gemma", "a/b/c", "./google/gemma"])
def test_what_is_no_hub_id_is_not_looked_up(name, hub):
    hub(lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(GemmaError, match="no such folder or file"):
        gemma_np.load(name)
