"""Download a checkpoint, such as google/gemma-2-2b-it, from the Hugging Face hub into the hub's local cache."""

from pathlib import Path

from gemma_np.errors import GemmaError

_FILES = ["*.safetensors", "tokenizer.model", "*.json", "*.jinja", "*.md", "LICENSE*"]


def download(repo: str) -> Path:
    """Download the missing files of a hub repository, with a progress bar; return its local folder.

    Raises GemmaError, with what to do, when the library, the license, the login or the network is missing.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise GemmaError(f'{repo}: no such folder or file; as a hub id it needs pip install "gemma-np[hub]"') from None
    try:
        return Path(snapshot_download(repo, allow_patterns=_FILES))
    except errors.GatedRepoError:
        raise GemmaError(
            f"{repo}: its license is not accepted yet, or you are not logged in; accept it at "
            f"https://huggingface.co/{repo} and then run: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise GemmaError(
            f"{repo}: no such repository on the hub, or it is private and you are not logged in (hf auth login); "
            "no such folder or file either"
        ) from None
    except errors.HFValidationError as error:
        raise GemmaError(f"{repo}: neither a folder, nor a file, nor a hub id ({error})") from None
    except Exception as error:  # anything that the library's HTTP client raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GemmaError(f"{repo}: not downloaded before, and the hub cannot be reached ({reason})") from None
