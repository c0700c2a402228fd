"""The commands that write, what is whole, and what is the same."""

import json
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

import gemma_np
from tests.support import tiny

SIZES = {"hidden_size": 32, "head_dim": 32, "intermediate_size": 32, "query_pre_attn_scalar": 32}
SHAPE = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
TRAINING = "--steps 6 --batch-size 2 --seq-len 16 --save-every 2 --eval-every 3"
LARGE = 1_000_000
UNTIMED = {"tokens_per_second", "checksum"}  # the checksum is that of a row with the time


@dataclass(frozen=True)
class Command:
    """A command, without its -o."""

    arguments: str
    again: str = ""  # the further options with which the same command continues or replaces
    is_file: bool = False
    out: str = "out"

    def line(self, out, *, again=False):
        """Return the arguments of `gemma-np`."""
        return [*self.arguments.split(), "-o", str(out), *(self.again.split() if again else [])]


COMMANDS = {
    "train": Command(f"train texts --tokenizer tokenizer.model --context 16 {SHAPE} {TRAINING}", "--resume"),
    "fine-tune": Command(f"train chats.jsonl --model model {TRAINING} --seq-len 40", "--resume"),
    "cache-teacher": Command("cache-teacher texts --teacher model --top-k 4 --seq-len 16"),
    "compress": Command(
        "compress texts --model short --prune layers=3 --distill 2 --quantize int8 --batch-size 1 --seq-len 16 "
        "--save-every 1 --val-fraction 0.4",
        "--resume",
    ),
    "quantize": Command("quantize --model model --format int8"),
    "prune": Command("prune --model model drop-layers=1"),
    "merge": Command("merge model model"),
    "init-checkpoint": Command("init-checkpoint gemma-3-270m --sparse-file"),
    "trace": Command("trace --model model --prompt ships", "--force", is_file=True),
    "export-gguf": Command("export-gguf --model model", "--force", is_file=True, out="out.gguf"),
    "tokenizer": Command("tokenizer texts --vocab-size 540", "--force", is_file=True),
    "inspect": Command("inspect ships --model model", "--force", is_file=True),
}


CONTINUED = ("train", "fine-tune", "cache-teacher", "compress")
"""The commands that go on with what an earlier process has written."""


def make_inputs(folder):
    """Write the files that the commands read."""
    (folder / "texts").mkdir()
    for number in range(3):
        (folder / "texts" / f"{number}.txt").write_text(tiny.TEXT * 2, encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tiny.vocabulary())
    chat = [{"role": "user", "content": "The sea"}, {"role": "model", "content": "and the lamp"}]
    (folder / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 4)
    tiny.gemma(**SIZES).save(folder / "model")
    tiny.gemma(**SIZES, max_position_embeddings=18).save(folder / "short")  # compress reads texts of the whole context


def content(out):
    """Return what was written, by the name of the file, without what depends on time; of a large file (zeros after a
    header), the size and the beginning. The output that is a file has the name ""."""
    if not out.is_dir():
        return {"": out.read_bytes()} if out.exists() else {}
    return {path.relative_to(out).as_posix(): _untimed(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _untimed(path):
    if path.name == "log.jsonl":  # what follows the last newline is the beginning of a line, and will be dropped
        return [_without(json.loads(line), UNTIMED) for line in path.read_text().split("\n")[:-1]]
    if path.name == "report.json":
        return {name: _without(row, UNTIMED) for name, row in json.loads(path.read_text()).items()}
    if path.stat().st_size > LARGE:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(LARGE)
    return path.read_bytes()


def _without(values, names):
    return {name: value for name, value in values.items() if name not in names}


def check_whole(out):
    """Check that every file that has its final name can be read. Raises what its reader raises when one cannot."""
    for path in [out, *out.rglob("*")]:
        if path.is_dir() and (path / "config.json").exists() and (path / "model.safetensors").exists():
            gemma_np.load(path, "stored")
        elif path.suffix == ".safetensors" and path.stat().st_size <= LARGE:
            load_file(path)
        elif path.suffix == ".npy":
            np.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
