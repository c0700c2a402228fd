"""The target for the command line: every command, with wrong values, wrong files and wrong standard streams.

Most inputs call `main` in this process; some start a process of their own, whose standard input, output or error is
closed, full, in ASCII, or no longer read.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import gemma_np
from gemma_np.cli import BUG, main
from tests.fuzz import bases
from tests.fuzz.edits import make_special
from tests.fuzz.mutations import draw_edits
from tests.fuzz.reference import Misread, check
from tests.fuzz.targets import Target
from tests.support import tiny

LONGEST = 200
SECONDS = 15

SHAPE = "--hidden-size 8 --layers 2 --heads 2 --kv-heads 1 --head-dim 4 --intermediate-size 8 --sliding-window 4"
SHAPE += " --context 64"
TRAINING = "--steps 4 --batch-size 2 --seq-len 32 --learning-rate 0.01 --warmup-steps 1 --save-every 2 --eval-every 2"
TRAINING += " --val-fraction 0.3"
CALIBRATION = "--calibration-text texts --calibration-samples 2 --calibration-length 8"

COMMANDS = [
    "generate --model model --max-new-tokens 3 --temperature 0.8 --top-k 5 --top-p 0.9 --seed 1 --dtype float64 hello",
    "generate --model model.gguf --ids 2,5,9 --max-new-tokens 2 --int8-cache",
    "generate --model model --ids 2,5,9 --max-new-tokens 3 --draft half --draft-tokens 2",
    "chat --model model --max-new-tokens 3 --temperature 0.5 --seed 2",
    "perplexity --model model --context 16 --stride 8 text.txt",
    "perplexity --model model -",
    "inspect --model model hello -o page.html",
    "info --model model --training --batch-size 2 --seq-len 8",
    "info --model gemma-2-2b",
    "models",
    "evaluate questions.jsonl --model model --num-fewshot 1 --json --plot plot.svg",
    "evaluate questions.jsonl --compare model model",
    "quantize --model model --format int8 -o out",
    "quantize --model model --format int4 --group-size 4 --zero-points --method clip --embedding-format int8 -o out",
    f"quantize --model model --format int4 --group-size 4 --method gptq {CALIBRATION} -o out",
    f"prune --model model layers=1,intermediate-size=4 {CALIBRATION} -o out",
    "prune --model model magnitude=0.5 -o out",
    f"prune --model model wanda=2:4 {CALIBRATION} -o out",
    "compress texts --model model --prune intermediate-size=4 --quantize int8 -o out --val-fraction 0.3",
    f"compress texts --model model --distill 2 --quantize int4 --group-size 4 -o out {TRAINING.replace('--steps 4', '')}",
    "export-gguf --model model.gguf --format Q8_0 -o out.gguf",
    "init-checkpoint gemma-3-270m --sparse-file -o out",
    "init-checkpoint no-such-model --format int8 -o out",
    "tokenizer texts --vocab-size 300 -o out.model",
    f"train texts --tokenizer tokenizer.model -o out {SHAPE} {TRAINING}",
    f"train texts --tokenizer tokenizer.model -o out --quantization-aware int8 --seed 3 {SHAPE} {TRAINING}",
    f"train texts --tokenizer tokenizer.model -o run --resume {SHAPE} {TRAINING}",
    f"train chats.jsonl --model model -o out --max-grad-norm 0.5 --weight-decay 0.2 --grad-accum-steps 2 {TRAINING}",
    f"distill texts --teacher model -o out --divergence jensen-shannon --beta 0.3 --temperature 2 {SHAPE} {TRAINING}",
    f"distill texts --teacher model -o out --on-policy --prompt-tokens 4 {SHAPE} {TRAINING}",
    f"distill --targets targets -o out {SHAPE} {TRAINING}",
    "cache-teacher texts --teacher model -o out --top-k 4 --seq-len 8 --val-fraction 0.3 --seed 1",
    "merge model model -o out --dtype bfloat16",
    "plot-log run -o log.svg",
    "trace --model model --prompt hello --chunk 2 --decode 2 --filter layers.0.* -o out.safetensors",
    "trace --model model --ids 2,5,9 --dtype float64 -o out.safetensors",
    "records",
    "records --names --model model --dump theirs.safetensors",
    "trace --model model --ids 2,5-9 --blind-spots -o out.safetensors",
    "compare ref.safetensors theirs.safetensors --model model --name-map names.json --json --plot plot.svg",
    "compare ref.safetensors theirs.safetensors --model model --name-map names.json --isolate --dtype bfloat16",
    "diagnose theirs.safetensors --model model --name-map names.json --ids 2,5,9,40,7,31",
]

NUMBERS = [
    "0",
    "-1",
    "-5",
    "1",
    "3",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e23",
    "100000000000000000000000",
    "1e308",
    "1e-320",
]
NUMBERS += ["1e999", "", " ", "x", "\u0663", "1_0", "0x10", "--", "2,5", "-0.0", "1.0", "2:4", "9" * 5000]
PATHS = ["", ".", "..", "missing", "missing/x", "model", "model/config.json", "text.txt", "texts", "run", "targets"]
PATHS += ["ref.safetensors", "names.json", "fifo", "loop", "dangling", "zero", "full", "null", "fifo/x", "~"]
PATHS += [
    "a\x1b[31mb",
    "a\nb",
    "bad\udcff\udcfename",
    "\u00fc",
    "x" * 300,
    "-",
    "*",
    "a b",
    "zero/x",
    "text.txt/x",
    "\u202e",
]
PATHS += [
    "org/name",
    "org/na\nme",
    "model.gguf",
    "tokenizer.model",
    "questions.jsonl",
    "chats.jsonl",
    "empty",
    "long.txt",
]
OUTPUTS = ("-o", "--output", "--plot")
WORDS = ["hello", "\udcff", "\x1b[2J", "a" * 10_000, "<bos>", "\u2028", "*", "[", "layers.[", "{x}", "%s"]
WORDS += ["layers=0", "layers=1e9", "drop-layers=0+0", "wanda=nan", "magnitude=2", "kv-heads=-1", "layers=1,layers=2"]
STREAMS = ["closed input", "closed output", "closed error", "all closed", "ascii", "full", "unread"]
INPUTS = ["Who?\n", "", "\n\n", "a\nb\n", "\udcff\n", "\x1b[31m\n", "<end_of_turn>\n", "x" * 5000 + "\n", "\u2028\n"]


@cache
def workspace():
    """A folder with everything that the commands read, and files that are none."""
    files = {f"model/{name.split('/')[1]}": data for name, data in bases.checkpoints().items() if "gemma2/" in name}
    files |= {
        "model.gguf": bases.gguf()["gemma2.gguf"],
        "text.txt": tiny.TEXT.encode(),
        "empty": b"",
        "long.txt": b"a" * 99,
    }
    files |= bases.training_run() | bases.targets() | bases.conversations() | bases.questions()
    files |= {name: data for name, data in bases.dump().items() if "/" not in name}
    files["tokenizer.model"] = tiny.vocabulary()
    for name in ("a\x1b[31mb", "bad\udcff\udcfename", "\u00fc"):
        files[name] = tiny.TEXT.encode()
    return files


SPECIAL = {"fifo": "fifo", "loop": "loop", "dangling": "dangling", "zero": "/dev/zero", "full": "/dev/full"}
SPECIAL |= {"null": "/dev/null"}


def draw(generator, files):
    """Draw a command with up to three wrong arguments, and sometimes wrong files and streams."""
    arguments = shlex.split(generator.choice(COMMANDS))
    for _ in range(generator.choices([0, 1, 2, 3], [2, 8, 4, 1])[0]):
        change_argument(generator, arguments)
    case = {"arguments": arguments, "edits": [], "input": generator.choice(INPUTS), "stream": "utf-8"}
    used = [name for name in files if any(name == word or name.startswith(f"{word}/") for word in arguments)]
    if used and generator.random() < 0.25:
        case["edits"] = draw_edits(generator, files, used)
    if generator.random() < 0.02:
        case["stream"] = generator.choice(STREAMS)
    elif generator.random() < 0.1:
        case["stream"] = "ascii in process"
    return case


def change_argument(generator, arguments):
    if not arguments:
        return
    place = generator.randrange(1, len(arguments)) if len(arguments) > 1 else 0
    word = arguments[place]
    kind = generator.choices(["replace", "delete", "double", "insert", "join", "swap"], [12, 2, 2, 2, 1, 1])[0]
    if kind == "delete":
        del arguments[place]
    elif kind == "double":
        arguments.insert(place, word)
    elif kind == "insert":
        options = [option for line in COMMANDS for option in shlex.split(line) if option.startswith("-")]
        arguments.insert(place, generator.choice([*options, *NUMBERS, *PATHS, "--help", "--no-such-option", "--"]))
    elif kind == "join" and word.startswith("--") and place + 1 < len(arguments):
        arguments[place] = f"{word}={generator.choice([*NUMBERS, *WORDS])}"
        del arguments[place + 1]
    elif kind == "swap":
        other = generator.randrange(len(arguments))
        arguments[place], arguments[other] = arguments[other], word
    elif place and not word.startswith("-"):
        is_number = word.replace(".", "").replace(",", "").isdigit()
        arguments[place] = generator.choice(NUMBERS + WORDS[:4] if is_number else PATHS + WORDS)


def run(folder, options):
    """Run the command; return its message when it refuses its input."""
    for name, kind in SPECIAL.items():
        if not (folder / name).exists() and not (folder / name).is_symlink():
            with contextlib.suppress(OSError, AttributeError):  # what this system does not have
                make_special(folder / name, kind)
    before = snapshot(folder)
    start = run_process if options["stream"] in STREAMS else run_here
    status, errors = start(folder, options)
    check("Traceback" not in errors, f"a traceback on standard error: {last(errors)}")
    if status == BUG:
        raise reported_bug(errors)
    check(status in (0, 1, 2), f"exit status {status}: {last(errors)}")
    check(
        status != 1 or "".join(options["arguments"][:1]) in ("compare", "diagnose"), "exit status 1 of another command"
    )
    changed = [name for name, data in before.items() if read(folder / name) != data]
    check_changes(changed, options["arguments"], status)
    if status != 2 or options["stream"] in ("closed error", "all closed"):
        return None
    return check_message(errors)


def reported_bug(errors):
    """Return the failure of a command that ended with the status of a bug; the message has the file of its traceback."""
    file = Path((errors.split() or ["."])[-1])
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else [errors]
    place = [
        re.sub(r'.*(gemma_np/.*)", line (\d+), in (.*)', r"\1:\3:\2", line) for line in lines if "/gemma_np/" in line
    ]
    bug = Misread(f"exit status {BUG}: {lines[-1].split(':')[0]} {place[-1] if place else ''}")
    bug.add_note("\n".join(line[:200] for line in lines[-12:]))
    return bug


def check_message(errors):
    """Return the one line that a refused command prints."""
    lines = [line for line in errors.split("\n") if line.strip() and not line.startswith("gemma-np: warning: ")]
    lines = [line.split("\r")[-1] for line in lines]
    command = "argparse" if any(line.startswith("usage:") for line in lines) else "command"
    check(len(lines) == 1, f"{len(lines) and 'several'} lines for one refusal ({command})")
    check(lines[0].startswith("gemma-np"), "a message that does not begin with gemma-np")
    check(len(lines[0]) <= LONGEST, f"a message of more than {LONGEST} characters")
    check(printable(lines[0]), "control characters in a message")
    return lines[0]


def printable(line):
    bidirectional = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any(unicodedata.category(one) in ("Cc", "Zl", "Zp") or one in bidirectional for one in line)


def check_changes(changed, arguments, status):
    """Check that only outputs changed, that no output was an input, and that a refused command changed nothing."""
    outputs = {value for option, value in pairwise(arguments) if option in OUTPUTS}
    outputs |= {word.split("=", 1)[1] for word in arguments if word.startswith(OUTPUTS[1:]) and "=" in word}
    inputs = [word for word in arguments[1:] if word not in outputs]
    if "--resume" in arguments:
        return
    for name in changed:
        check(any(covers(output, name) for output in outputs), "changed a file that is no output")
        check(not any(covers(word, name) for word in inputs), "wrote onto its own input")
        check(status != 2, "refused, and changed an existing file")


def covers(word, name):
    word = os.path.normpath(word) if word else ""
    return word == "." or name == word or name.startswith(f"{word}/")


def snapshot(folder):
    return {name: read(folder / name) for name in workspace()}


def read(path):
    """Return the content of a regular file, and None for anything else."""
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def last(errors):
    """Return the last line of an output without what differs from input to input."""
    lines = [line for line in errors.splitlines() if line.strip()] or [""]
    return "".join("0" if character.isdigit() else character for character in lines[-1])[:120]


def run_here(folder, options):
    encoding = "ascii" if options["stream"].startswith("ascii") else "utf-8"
    outputs = [
        io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True)
        for errors in ("strict", "backslashreplace")
    ]
    text = options["input"].encode("utf-8", "surrogateescape")
    saved, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text), "utf-8", "strict")
    try:
        with contextlib.redirect_stdout(outputs[0]), contextlib.redirect_stderr(outputs[1]):
            try:
                status = main(options["arguments"])
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.stdin = saved
    return status or 0, outputs[1].buffer.getvalue().decode("utf-8", "replace")


CLOSED = {"closed input": [0], "closed output": [1], "closed error": [2], "all closed": [0, 1, 2]}


def run_process(folder, options):
    stream = options["stream"]
    root = str(Path(gemma_np.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root} | ({"PYTHONIOENCODING": "ascii"} if stream == "ascii" else {})

    def close():
        for number in CLOSED.get(stream, ()):
            os.close(number)

    with contextlib.ExitStack() as stack:
        output = subprocess.PIPE
        if stream == "full":
            output = stack.enter_context(Path("/dev/full").open("wb"))
        elif stream == "unread":
            reader, output = os.pipe()
            os.close(reader)
            stack.callback(os.close, output)
        process = subprocess.Popen(
            [sys.executable, "-m", "gemma_np", *options["arguments"]],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            preexec_fn=close if sys.platform != "win32" else None,
        )
        try:
            _, errors = process.communicate(options["input"].encode("utf-8", "surrogateescape"), SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Misread(f"no end after {SECONDS} s with {stream}") from None
    return process.returncode, errors.decode("utf-8", "replace")


COMMAND_LINE = Target("command_line", workspace, run, draw=draw, burst=100)
