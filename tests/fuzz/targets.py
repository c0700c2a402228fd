"""The targets: what is mutated, what gemma_np does with it, and how to tell that the result is right.

`run(folder, options)` uses gemma_np on the files in a folder. It returns when gemma_np accepted them and the result is
right, and raises GemmaError when it refused them; everything else that it raises is a failure.
"""

import dataclasses
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

import gemma_np
from gemma_np import training
from gemma_np.checkpoints.config_json import read_config
from gemma_np.checkpoints.safetensors_file import FLOATS, QUANTIZED, stored_tensors
from gemma_np.cli.info import describe
from gemma_np.compression.pipeline import CompressionConfig, compress
from gemma_np.compression.pruning_plan import PruningPlan
from gemma_np.compression.quantization import Scheme
from gemma_np.errors import GemmaError
from gemma_np.evaluation.multiple_choice import Question, answer_questions, read_questions
from gemma_np.oracle.comparison import describe_comparison
from gemma_np.oracle.diagnosis import describe_diagnosis
from gemma_np.oracle.dump import read_dump
from gemma_np.oracle.files import compare_files, diagnose_file
from gemma_np.text.tokenizer import read_tokenizer
from gemma_np.training.conversations import read_conversations
from gemma_np.training.data import read_text, text_files, tokenize_texts
from gemma_np.training.run_log import plot_logs, read_log
from tests.fuzz import bases, reference
from tests.fuzz.edits import write_files
from tests.fuzz.mutations import draw_edits
from tests.fuzz.reference import check
from tests.support import tiny


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    base: Callable[[], dict[str, bytes]]  # valid files
    run: Callable[[Path, dict], None]
    mutated: Callable[[str], bool] = lambda name: True  # the files to mutate
    options: dict[str, Sequence] = field(default_factory=dict)  # values to draw from, for each option of `run`
    draw: Callable | None = None  # (generator, files) -> case, in place of edits alone
    burst: int = 100  # inputs that the test in CI draws

    def case(self, seed: int, number: int) -> dict:
        """Return an input; the same seed and number give the same."""
        generator, files = random.Random(f"{seed} {self.name} {number}"), self.base()
        if self.draw:
            return self.draw(generator, files)
        options = {name: generator.choice(values) for name, values in self.options.items()}
        return {"edits": draw_edits(generator, files, [name for name in files if self.mutated(name)]), **options}


def changed_folder(folder, options):
    """Return the checkpoint folder that the edits change."""
    return folder / options["edited"][0].split("/")[0]


def use(model):
    """Run a model on a few tokens, as the user of a file that was accepted would."""
    logits = model.logits([2, 5, 9])
    check(logits.shape == (3, model.config.vocab_size), "logits of another shape")
    list(model.stream_ids([2, 5], 2, temperature=0.7, seed=0))


def config(folder, options):
    path = changed_folder(folder, options)
    read = read_config(path / "config.json")
    reference.check_strict(path / "config.json")
    for line in describe(read):
        check("nan" not in line and "inf" not in line, "info prints NaN or infinity")
    reference.check_config(read, path)


def safetensors(folder, options):
    path = changed_folder(folder, options) / "model.safetensors"
    ours = {name: tensor.mapped for name, tensor in stored_tensors(path, FLOATS | QUANTIZED).items()}
    reference.check_no_duplicates(path)
    theirs = reference.safetensors(path)
    check(ours.keys() == theirs.keys(), "other tensors than in the file")
    check(all(reference.same(ours[name], theirs[name]) for name in ours), "a tensor differs from that in the file")


def checkpoint(folder, options):
    path = changed_folder(folder, options)
    model = gemma_np.load(path, options["dtype"])
    single = (path / "model.safetensors").exists()
    index = path / "model.safetensors.index.json"
    if single:
        names = ["model.safetensors"]
    else:
        weight_map = reference.check_strict(index)["weight_map"]
        names = sorted(set(weight_map.values()))
    reference.check_checkpoint(model, path, names, np.float64 if options["dtype"] == "float64" else np.float32)
    if not single:
        stored = {tensor: name for name in names for tensor in reference.safetensors(path / name)}
        check(weight_map == stored, "accepted an index that contradicts the shards")
    use(model)
    if model.tokenizer:
        tokens = model.tokenizer.encode("To be")
        model.tokenizer.decode(tokens)


def gguf(folder, options):
    path = folder / options["edited"][0]
    model = gemma_np.load(path, options["dtype"])
    reference.check_gguf(model, path)
    use(model)


def tokenizer(folder, options):
    path = folder / "tokenizer.model"
    reference.check_tokenizer(read_tokenizer(path), path.read_bytes())


def dump(folder, options):
    theirs, model = folder / "theirs.safetensors", folder / "model"
    records = read_dump(theirs, folder / "names.json").records
    reference.check_strict(folder / "names.json")
    stored = reference.safetensors(theirs)
    reference.check_no_duplicates(theirs)
    check(len(records) == len(stored), "two names of the file became one record")
    unchanged = sorted(array.tobytes() for array in records.values())
    check(unchanged == sorted(array.tobytes() for array in stored.values()), "a record differs from that in the file")
    if options["command"] == "diagnose":
        list(describe_diagnosis(diagnose_file(theirs, model=model, name_map=folder / "names.json")))
        return
    reference_file, isolate = folder / "ref.safetensors", options["command"] == "isolate"
    rows = compare_files(reference_file, theirs, model=model, name_map=folder / "names.json", isolate=isolate)
    list(describe_comparison(rows))
    right = reference_records()
    for row in rows:
        if row.key in records and not row.differs and row.key in right and not isolate:
            ours, exact = np.asarray(records[row.key], np.float64), right[row.key]
            close = ours.size == exact.size and np.allclose(ours.ravel(), exact.ravel(), rtol=0.1, atol=0.1)
            check(close or "probs" in row.key or "scores" in row.key, "compare accepts a record that is wrong")


@cache
def reference_records():
    from safetensors.numpy import load

    return {name: array.astype(np.float64) for name, array in load(bases.dump()["ref.safetensors"]).items()}


def final_weights(run):
    """Return what two runs must have in common: the weights and the last losses."""
    losses = [{name: entry[name] for name in ("loss", "val_loss") if name in entry} for entry in run.log[-1:]]
    return {name: np.asarray(weight).tobytes() for name, weight in run.model.weights.items()}, losses


def check_resumed(run, complete):
    ours, theirs = final_weights(run), complete
    check(ours[0] == theirs[0], "the resumed run ended with other weights")
    check(ours[1] == theirs[1], "the resumed run ended with other losses")


def resume_training(folder, config=bases.CONFIG):
    return training.train(bases.new_model(), folder / "texts", folder / "run", config=config, resume=True)


def resume_fine_tuning(folder):
    return training.fine_tune(
        bases.new_model(), folder / "chats.jsonl", folder / "run", config=bases.CONFIG, resume=True
    )


def distill_from_targets(folder):
    return training.distill_from_cache(bases.new_model(), folder / "targets", folder / "out", config=bases.CONFIG)


@cache
def undisturbed(base, run):
    """Return the result of a run on files that are not mutated."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), base())
        return final_weights(run(Path(folder)))


def training_state(folder, options):
    check_resumed(resume_training(folder), undisturbed(bases.training_run, resume_training))


def fine_tuning_state(folder, options):
    check_resumed(resume_fine_tuning(folder), undisturbed(bases.fine_tuning_run, resume_fine_tuning))


def teacher_targets(folder, options):
    check_resumed(distill_from_targets(folder), undisturbed(bases.targets, distill_from_targets))


COMPRESSION = CompressionConfig(
    prune=PruningPlan(intermediate_size=4), quantize=Scheme("int8"), calibration=(2, 16), evaluation=(2, 16)
)


def run_compression(folder):
    model = bases.two_layers("gemma2")
    out = folder / "out"
    tokens = tokenize_texts(folder / "texts", model.require_tokenizer(), out / "data", val_fraction=0.3, keep=True)
    return list(compress(model, COMPRESSION, tokens, out))


@cache
def compression_files():
    def write(folder):
        for name, data in bases.texts().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        run_compression(folder)

    return bases.made(write)


TIMES = ("tokens_per_second", "seconds", "speed", "milliseconds")


def compression(folder, options):
    rows = [dataclasses.asdict(row) for row in run_compression(folder)]
    stored = json.loads(compression_files()["out/report.json"])
    for row in rows:
        expected = stored[row["step"]]
        for name in row.keys() - {name for name in row if any(time in name for time in TIMES)}:
            check(row[name] == expected[name], f"the resumed table has another {name}")


def questions(folder, options):
    path = folder / "questions.jsonl"
    read = read_questions(path)

    def build(line):
        fields = {"question": str, "choices": list, "answer": int}
        if not all(type(line[name]) is kind for name, kind in fields.items()):
            raise ValueError("a value of another type")
        return Question(line["question"], tuple(line["choices"]), line["answer"])

    reference.check_lines(path, build, read)
    model = small_model()
    try:
        answers = answer_questions(read[:3], model.weights, model.config, model.require_tokenizer())
    except GemmaError as error:
        if "context" not in str(error) and "tokens" not in str(error):
            raise
        return
    check(all(np.isfinite(scores).all() for scores in answers.scores), "a score that is not finite")


@cache
def small_model():
    return bases.two_layers("gemma2")


def conversations(folder, options):
    path = folder / "chats.jsonl"
    read = read_conversations(path)

    def build(line):
        roles = {"assistant": "model"}
        return [
            {"role": roles.get(message["role"], message["role"]), "content": message["content"]}
            for message in line["messages"]
        ]

    reference.check_lines(path, build, read)
    config = training.TrainingConfig(steps=1, batch_size=1, seq_len=32, val_fraction=0.3)
    training.fine_tune(bases.new_model(), path, folder / "out", config=config)


def log(folder, options):
    path = folder / "run" / "log.jsonl"
    entries = read_log(folder / "run")
    reference.check_lines(path, dict, entries, whole=True)
    for entry in entries:
        reference.check_finite(entry.values())
    if options["plot"]:
        plot_logs([folder / "run"], folder / "log.svg")


def text(folder, options):
    files = text_files(folder / "texts")
    for file in files:
        read, stored = read_text(file), file.read_bytes()
        check(read == stored.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n"), "a text differs from its file")
    split = tokenize_texts(folder / "texts", tiny.tokenizer(), folder / "data", val_fraction=0.3)
    ids = {token for part in split for token in part.tolist()}
    check(all(token < len(tiny.tokenizer()) for token in ids), "an id outside of the vocabulary")
    total = sum(len(tiny.tokenizer().encode(read_text(file))) for file in files)
    check(sum(map(len, split)) == total, "tokens are missing")


def ends(*endings):
    return lambda name: name.endswith(endings)


DTYPES = {"dtype": ("float32", "float32", "float64", "stored")}

TARGETS = [
    Target("config", bases.configs, config, burst=300),
    Target("safetensors", bases.checkpoints, safetensors, ends(".safetensors"), burst=200),
    Target("checkpoint", bases.checkpoints, checkpoint, options=DTYPES),
    Target("shards", bases.shards, checkpoint, options=DTYPES),
    Target("quantized", bases.quantized, checkpoint, ends(".safetensors"), DTYPES),
    Target("gguf", bases.gguf, gguf, options=DTYPES),
    Target("tokenizer", lambda: {"tokenizer.model": tiny.vocabulary()}, tokenizer),
    Target(
        "dump",
        bases.dump,
        dump,
        ends("ref.safetensors", "theirs.safetensors", "names.json"),
        {"command": ("compare", "compare", "isolate", "diagnose")},
        burst=30,
    ),
    Target("teacher_targets", bases.targets, teacher_targets, burst=30),
    Target("training_state", bases.training_run, training_state, lambda name: name.startswith("run/"), burst=30),
    Target(
        "fine_tuning_state", bases.fine_tuning_run, fine_tuning_state, lambda name: name.startswith("run/"), burst=30
    ),
    Target("compression", compression_files, compression, lambda name: name.startswith("out/"), burst=30),
    Target("questions", bases.questions, questions),
    Target("conversations", bases.conversations, conversations, burst=50),
    Target("log", bases.log, log, options={"plot": (False,) * 9 + (True,)}),
    Target("text", bases.texts, text),
]
