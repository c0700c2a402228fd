"""The command line: what can be asked, in which words. What it does: cli_model, cli_training, oracle."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np

from gemma_np.checkpoints.random_weights import KINDS as RANDOM_KINDS
from gemma_np.cli import compression, evaluation, model, oracle, training
from gemma_np.compression.gguf_export import GGUF_SCHEMES
from gemma_np.compression.pruning_plan import PARTS
from gemma_np.compression.quantization import KINDS
from gemma_np.compression.quantize_model import METHODS
from gemma_np.errors import GemmaError
from gemma_np.gemma import DEFAULT, DTYPES
from gemma_np.training.training_state import Recipe

MODEL_HELP = "a checkpoint folder, a .gguf file, a hub id such as google/gemma-2-2b-it, or a bundled model's name"

TEXT_HELP = "a text file, or a folder of .txt files; one file is one document"

SHAPE = {  # option: default, meaning
    "hidden-size": (128, "D"),
    "layers": (4, "layers, local and global in turn"),
    "heads": (4, "query heads"),
    "kv-heads": (2, "key-value heads"),
    "head-dim": (32, "channels a head"),
    "ffn": (512, "channels of the feed-forward"),
    "window": (64, "keys that a local layer sees"),
    "context": (256, "the longest text that the model reads"),
}

RECIPE = {
    "steps": "steps",
    "batch": "texts a batch, shared by the ranks",
    "length": "tokens a text",
    "rate": "peak of the learning rate",
    "warmup": "steps until the peak",
    "clip": "largest global norm of the gradients",
    "weight_decay": "decay of the matrices",
    "accumulation": "batches averaged into one step",
    "seed": "of weights, data and split",
    "save_every": "steps between two checkpoints",
    "validate_every": "steps between two validations",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gemma-np` and return its exit status: 0, 1 when a dump differs, 2 for bad input (one line on standard
    error), 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"gemma-np: warning: {message}", file=sys.stderr)
    try:
        with np.errstate(all="ignore"):  # NaN in the weights is told once, by the tensor's name
            status = options.run(options)
        sys.stdout.flush()
    except GemmaError as error:
        print(f"gemma-np: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"gemma-np: out of memory: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gemma-np generate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"gemma-np: {error}", file=sys.stderr)
        return 2
    return status or 0


def parser() -> argparse.ArgumentParser:
    """The arguments of every subcommand."""
    top = argparse.ArgumentParser("gemma-np", description="Google's Gemma 2, whole, in NumPy that a person can read.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], int | None], *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__.removesuffix("_dumps").replace("_", "-"),
            help=run.__doc__,
            description=run.__doc__,
            epilog="\n  ".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    _add_models(command)
    _add_evaluation(command)
    _add_training(command)
    _add_compression(command)
    _add_oracle(command)
    return top


def _add_models(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        model.generate,
        'gemma-np generate "To be"',
        'gemma-np generate --model google/gemma-2-2b "The capital of France is"',
        "gemma-np generate --model ./gemma-3-270m.gguf --temperature 0.8 --top-p 0.95 --seed 1 'Once upon a time'",
    )
    _add_model(sub)
    _add_dtype(sub)
    sub.add_argument("--int8-cache", action="store_true", help="keep keys and values in 8 bits")
    _add_sampling(sub, max_new_tokens=128)
    sub.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue")
    sub.add_argument("--ids", metavar="N,N,...", help="tokens to continue, in place of PROMPT")

    sub = command(
        model.chat,
        "gemma-np chat --model google/gemma-2-2b-it",
        'echo "Why is the sky blue?" | gemma-np chat --model google/gemma-2-2b-it',
    )
    _add_model(sub)
    _add_dtype(sub)
    sub.add_argument("--int8-cache", action="store_true", help="keep keys and values in 8 bits")
    _add_sampling(sub, max_new_tokens=None)

    sub = command(
        model.perplexity,
        "gemma-np perplexity --model ./gemma-2-2b book.txt",
        "gemma-np perplexity --model ./gemma-2-2b --context 4096 --stride 512 book.txt",
    )
    _add_model(sub)
    _add_dtype(sub)
    sub.add_argument("file", metavar="FILE", help="a text file in UTF-8, or - for standard input")
    sub.add_argument("--context", metavar="N", type=int, help="tokens in sight at once (default: as many as possible)")
    sub.add_argument("--stride", metavar="N", type=int, help="tokens scored by each window (default: all in sight)")

    sub = command(
        model.inspect,
        'gemma-np inspect "To be, or not to be, that is the question." -o page.html',
        'gemma-np inspect --model google/gemma-2-2b "The capital of France is Paris." -o page.html',
    )
    _add_model(sub)
    _add_dtype(sub)
    sub.add_argument("text", metavar="TEXT", help="what the model is to read, at most 256 tokens")
    sub.add_argument("-o", "--output", metavar="FILE", required=True, help="the page, which any browser opens")

    sub = command(
        model.info,
        "gemma-np info --model gemma-2-27b",
        "gemma-np info --model ./my-checkpoint --training --batch 8 --length 512",
    )
    _add_model(sub)
    sub.add_argument("--training", action="store_true", help="the memory that training takes, too")
    sub.add_argument("--batch", metavar="N", type=int, default=8, help="texts a step and rank (8)")
    sub.add_argument("--length", metavar="N", type=int, default=128, help="tokens a text (128)")

    command(model.models, "gemma-np models")


def _add_evaluation(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        evaluation.evaluate,
        "gemma-np evaluate tutorials/questions.jsonl --model google/gemma-2-2b --shots 5 --plot calibration.png",
        "gemma-np evaluate tutorials/questions.jsonl --compare google/gemma-2-2b ./gemma-2-2b-int4",
    )
    form = 'one JSON object a line: {"question": TEXT, "choices": [TEXT, ...], "answer": NUMBER, from 0 on}'
    sub.add_argument("file", metavar="FILE", help=form)
    _add_model(sub)
    sub.add_argument("--compare", metavar=("A", "B"), nargs=2, help="two models: is B other than A, or was it chance?")
    sub.add_argument("--shots", metavar="N", type=int, default=0, help="the first N questions are examples (0)")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--plot", metavar="FILE", help="draw the calibration, or with --compare the differences")

    sub = command(
        evaluation.lm_eval,
        "gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mmlu --num_fewshot 5",
        "gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mbpp "
        "--confirm_run_unsafe_code",
    )
    sub.prefix_chars = "+"  # what begins with a dash is for lm_eval
    sub.add_argument("arguments", metavar="...", nargs="*", help="the arguments of lm_eval")


def _add_training(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(training.tokenizer, "gemma-np tokenizer texts/ --size 2048 -o tokenizer.model")
    sub.add_argument("text", metavar="TEXT", help=TEXT_HELP)
    sub.add_argument("--size", metavar="V", type=int, default=2048, help="number of pieces (default 2048)")
    sub.add_argument("-o", "--output", metavar="FILE", default="tokenizer.model", help="default tokenizer.model")

    sub = command(
        training.train,
        "gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000",
        "gemma-np train texts/ --tokenizer tokenizer.model -o run --steps 2000 --resume",
        "gemma-np train chats.jsonl --model google/gemma-3-270m -o tuned --rate 1e-5 --length 512 --batch 1",
        "mpiexec -n 4 gemma-np train texts/ --tokenizer tokenizer.model -o run",
    )
    sub.add_argument("text", metavar="TEXT", help=f"{TEXT_HELP}; or a .jsonl file, one conversation a line")
    sub.add_argument("--tokenizer", metavar="FILE", help="train from scratch, with this tokenizer.model")
    _add_run(sub)

    sub = command(
        training.distill,
        "gemma-np distill texts/ --teacher run -o student --hidden-size 64 --ffn 256 --heads 2 --kv-heads 1",
        "gemma-np distill --targets targets -o student",
        "gemma-np distill texts/ --teacher run --model student --on-policy --divergence jensen-shannon -o better",
    )
    sub.add_argument("text", metavar="TEXT", nargs="?", help=f"{TEXT_HELP} (not with --targets)")
    sub.add_argument("--teacher", metavar="M", help="the checkpoint to learn from, live")
    sub.add_argument("--targets", metavar="FOLDER", help="learn from what gemma-np targets has stored; sets --length")
    sub.add_argument(
        "--divergence",
        choices=training.DIVERGENCES,
        default="forward",
        help="between teacher and student (forward: -sum P_T log P_S)",
    )
    sub.add_argument("--temperature", metavar="T", type=float, default=1.0, help="softens both distributions (1.0)")
    sub.add_argument("--beta", metavar="B", type=float, default=0.5, help="the teacher's part in jensen-shannon (0.5)")
    sub.add_argument("--on-policy", action="store_true", help="learn from texts that the student itself goes on with")
    sub.add_argument("--prompt", metavar="N", type=int, default=16, help="tokens of TEXT before the student's own (16)")
    _add_run(sub)

    sub = command(training.targets, "gemma-np targets texts/ --teacher run -o targets --top-k 32 --length 256")
    sub.add_argument("text", metavar="TEXT", help=TEXT_HELP)
    sub.add_argument("--teacher", metavar="M", required=True, help="the checkpoint that reads")
    sub.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where to; what is there already is kept")
    sub.add_argument(
        "--top-k", metavar="K", type=int, default=32, help="likeliest tokens to keep at each position (32)"
    )
    sub.add_argument("--length", metavar="N", type=int, default=128, help="tokens a text (128)")
    sub.add_argument("--validation", metavar="P", type=float, default=0.05, help="share of documents held out (0.05)")
    sub.add_argument("--seed", metavar="S", type=int, default=0, help="of the split (0)")

    sub = command(
        training.merge, "gemma-np merge run-1 run-2 run-3 -o merged", "gemma-np merge run --dtype bfloat16 -o small"
    )
    sub.add_argument("models", metavar="M", nargs="+", help="checkpoints of one shape")
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the new checkpoint folder")
    dtypes = ("float32", "bfloat16", "float16")
    sub.add_argument("--dtype", choices=dtypes, default="float32", help="what the numbers are stored as (float32)")

    sub = command(training.plot_log, "gemma-np plot-log run", "gemma-np plot-log student twin -o losses.svg")
    sub.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    sub.add_argument("-o", "--output", metavar="FILE", default="log.png", help="a png, svg or pdf file (log.png)")


def _add_compression(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        compression.quantize,
        "gemma-np quantize --model google/gemma-2-9b-it --to int8 -o gemma-9b-int8",
        "gemma-np quantize --model google/gemma-2-2b --to int4 --method gptq --text books/ -o gemma-2b-int4",
    )
    _add_model(sub)
    _add_scheme(sub, "--to", required=True)
    _add_calibration(sub)
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the new checkpoint")

    sub = command(
        compression.prune,
        "gemma-np prune --model google/gemma-2-2b layers=22,ffn=6912 --text books/ -o smaller",
        "gemma-np prune --model google/gemma-2-2b wanda=2:4 --text books/ -o sparse",
    )
    _add_model(sub)
    parts = "; ".join(f"{name}: {meaning}" for name, meaning in PARTS.items())
    sub.add_argument("plan", metavar="PLAN", help=f"NAME=VALUE,... with {parts}")
    _add_calibration(sub)
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the new checkpoint")

    sub = command(
        compression.compress,
        "gemma-np compress plays/ --model shakespeare-4m --prune ffn=512 --distill 300 --quantize int8 -o small",
        "gemma-np compress plays/ --model shakespeare-4m --prune wanda=2:4 --quantize int8 -o sparse --resume",
    )
    sub.add_argument("text", metavar="TEXT", help=f"{TEXT_HELP}: to calibrate, to heal and to measure with")
    _add_model(sub)
    sub.add_argument("--prune", metavar="PLAN", help="as of gemma-np prune")
    sub.add_argument("--distill", metavar="STEPS", type=int, help="heal by so many steps of distillation")
    _add_scheme(sub, "--quantize")
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder of all steps")
    sub.add_argument("--resume", action="store_true", help="go on from what OUT holds")
    sub.add_argument("--validation", metavar="P", type=float, default=0.05, help="share of documents held out (0.05)")
    _add_recipe(sub, "recipe of the distillation", without=("steps",))

    sub = command(compression.export_gguf, "gemma-np export-gguf --model ./gemma-2-2b --to Q4_0 -o gemma-2-2b.gguf")
    _add_model(sub)
    sub.add_argument("--to", choices=list(GGUF_SCHEMES), default="Q8_0", help="how matrices are stored (Q8_0)")
    sub.add_argument("-o", "--output", metavar="FILE", required=True, help="the .gguf file")

    sub = command(
        compression.random_checkpoint,
        "gemma-np random-checkpoint gemma-2-27b --dtype int4 -o random-27b",
        "gemma-np random-checkpoint gemma-2-27b --sparse -o hollow-27b",
    )
    sub.add_argument("name", metavar="NAME", help="a released model, as of gemma-np models")
    sub.add_argument("--dtype", choices=RANDOM_KINDS, default="bfloat16", help="how matrices are stored (bfloat16)")
    sub.add_argument("--sparse", action="store_true", help="bfloat16 zeros that take no room on the disk")
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the new checkpoint")


def _add_scheme(sub: argparse.ArgumentParser, flag: str, required: bool = False) -> None:
    """How weights are to be quantized."""
    sub.add_argument(flag, dest="to", choices=KINDS, required=required, help="how matrices are stored")
    sub.add_argument("--group", metavar="N", type=int, default=64, help="int4: channels that share a scale (64)")
    sub.add_argument("--zero-points", action="store_true", help="int4: a grid that need not be symmetric")
    methods = "; ".join(f"{name}: {meaning}" for name, meaning in METHODS.items())
    sub.add_argument("--method", choices=list(METHODS), default="clip", help=f"how numbers are chosen ({methods})")
    kinds = ("bfloat16", "int8", "float8")
    sub.add_argument("--embedding", choices=kinds, help="how the embedding is stored, if it is another way")


def _add_calibration(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text", metavar="TEXTS", help=f"{TEXT_HELP}; it shows what the weights are multiplied with")
    sub.add_argument("--texts", metavar="N", type=int, default=16, help="texts to read (16)")
    sub.add_argument("--length", metavar="N", type=int, default=512, help="tokens of each (512)")


def _add_oracle(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        oracle.trace,
        'gemma-np trace --prompt "To be, or not to be" -o ref.safetensors',
        "gemma-np trace --model google/gemma-2-2b --ids 2,651,6037 --decode 4 --dtype float64 -o ref.safetensors",
        "gemma-np trace --names",
    )
    _add_model(sub)
    sub.add_argument("--prompt", metavar="TEXT", help="the text to read")
    sub.add_argument("--ids", metavar="N,N,...", help="the token ids to read, as they are")
    sub.add_argument("--chunk", metavar="N", type=int, help="read the prompt in passes of N tokens (default: in one)")
    sub.add_argument("--decode", metavar="N", type=int, default=0, help="then write N tokens, a pass each (0)")
    sub.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the computation (float32)")
    sub.add_argument("--only", metavar="PATTERN", default="*", help="records to keep, such as 'layers.0.*' (all)")
    sub.add_argument("--names", action="store_true", help="print the table of records, and end")
    sub.add_argument("-o", "--output", metavar="FILE", help="the safetensors file to write")

    sub = command(
        oracle.compare_dumps,
        "gemma-np compare ref.safetensors theirs.safetensors",
        "gemma-np compare ref.safetensors theirs.safetensors --isolate --dtype bfloat16 --plot errors.png",
    )
    sub.add_argument("reference", metavar="REF", help="what gemma-np trace has written")
    sub.add_argument("dump", metavar="THEIRS", help="a safetensors file with records of the same names")
    sub.add_argument("--model", metavar="M", help="the weights (default: those that REF names)")
    sub.add_argument("--isolate", action="store_true", help="judge each operation on their own inputs to it")
    sub.add_argument("--json", action="store_true", help="print the rows as JSON")
    sub.add_argument("--plot", metavar="FILE", help="draw the errors, as png, svg or pdf")
    _add_dump(sub)

    sub = command(
        oracle.diagnose,
        "gemma-np diagnose --model google/gemma-2-2b theirs.safetensors",
        "gemma-np diagnose --model ./my-checkpoint --ids 2,651,6037 logits.safetensors",
    )
    _add_model(sub)
    sub.add_argument("dump", metavar="THEIRS", help="a safetensors file with some records, or logits alone")
    sub.add_argument("--ids", metavar="N,N,...", help="the token ids, where the file's metadata has no `passes`")
    _add_dump(sub)


def _add_dump(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--names", metavar="FILE", help="JSON: their names to ours, {layer} for the layer's number")
    dtypes = ("float32", "bfloat16", "float16", "float64")
    sub.add_argument("--dtype", choices=dtypes, help="what they computed in (default: what they stored)")


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", metavar="M", default=DEFAULT, help=f"{MODEL_HELP} (default: {DEFAULT})")


def _add_dtype(sub: argparse.ArgumentParser) -> None:
    meaning = "stored: leave bfloat16 matrices in their file, at half the memory and two thirds of the speed"
    sub.add_argument("--dtype", choices=DTYPES, default="float32", help=f"of the computation (float32; {meaning})")


def _add_sampling(sub: argparse.ArgumentParser, max_new_tokens: int | None) -> None:
    sub.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=max_new_tokens,
        help=f"stop after N tokens (default {max_new_tokens or '512, or what room is left'})",
    )
    sub.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default); higher is more varied"
    )
    sub.add_argument("--top-k", metavar="K", type=int, help="draw from the K most likely tokens")
    sub.add_argument("--top-p", metavar="P", type=float, help="draw from the fewest tokens with probability P together")
    sub.add_argument("--seed", metavar="S", type=int, help="the same seed gives the same text")


def _add_run(sub: argparse.ArgumentParser) -> None:
    """What `train` and `distill` have in common."""
    sub.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder of the run, a checkpoint")
    sub.add_argument("--resume", action="store_true", help="go on from what OUT holds")
    sub.add_argument("--model", metavar="M", help=f"go on from {MODEL_HELP}")
    sub.add_argument("--validation", metavar="P", type=float, default=0.05, help="share of documents held out (0.05)")
    shape = sub.add_argument_group("shape of a model from scratch")
    for name, (default, meaning) in SHAPE.items():
        shape.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{meaning} ({default})")
    _add_recipe(sub, "recipe")
    aware = sub.add_argument_group("quantization-aware training")
    aware.add_argument("--quantization-aware", metavar="KIND", choices=KINDS, help="learn with weights rounded so")
    aware.add_argument("--group", metavar="N", type=int, default=64, help="int4: channels that share a scale (64)")


def _add_recipe(sub: argparse.ArgumentParser, title: str, without: Sequence[str] = ()) -> None:
    recipe = sub.add_argument_group(title)
    for field in fields(Recipe):
        if field.name in without:
            continue
        name = f"--{field.name.replace('_', '-')}"
        meaning = f"{RECIPE[field.name]} ({field.default})"
        recipe.add_argument(name, metavar="N", type=type(field.default), default=field.default, help=meaning)
