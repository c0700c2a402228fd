"""The commands that check other implementations: trace, records, compare, diagnose, judge, conformance.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import json
import sys

from gemma_np.cli.arguments import Command, add_model, read_ids, refuse_without
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_force, add_output_file, report_written
from gemma_np.cli.terminal import print_status
from gemma_np.errors import GemmaError, quoted
from gemma_np.gemma import Gemma, load, resolve_config
from gemma_np.model.records import RECORDS
from gemma_np.oracle.answers import read_answers
from gemma_np.oracle.comparison import describe_comparison
from gemma_np.oracle.diagnosis import describe_diagnosis
from gemma_np.oracle.dump import has_gradients, read_dump
from gemma_np.oracle.files import compare_files, diagnose_file, plan_passes
from gemma_np.oracle.judge import DEFECT, describe_all, describe_judgement, usual_precision
from gemma_np.oracle.judge import judge as judge_answers
from gemma_np.oracle.judge_tokens import judge_tokens
from gemma_np.oracle.name_map import every_name, name_map_json, propose_name_map
from gemma_np.oracle.noise import SAFETY_FACTOR
from gemma_np.oracle.plots import plot_comparison
from gemma_np.oracle.reading import PRECISIONS
from gemma_np.oracle.server import PROMPTS, ask
from gemma_np.oracle.trace import write_trace
from gemma_np.oracle.trace_review import describe_review, is_quick, review_trace


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    parser = command(
        trace,
        'gemma-np trace --prompt "To be, or not to be" -o ref.safetensors',
        "gemma-np trace --model google/gemma-2-2b --ids 2,651,6037 --decode 4 --dtype float64 -o ref.safetensors",
        "gemma-np trace --gradients --ids 2,651,6037,235 --ids 2,17,8 --dtype float64 -o gradients.safetensors",
    )
    add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="the text to read")
    _add_ids(parser, "the token ids to read, instead of a text; 3-6 stands for 3,4,5,6")
    _add_gradients(parser, "write the loss and all gradients of a training step on one or more texts")
    add_number(parser, "--chunk", "read N tokens in each pass; default: all in one")
    add_number(parser, "--decode", "then decode N tokens, one in each pass", 0)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float64"),
        default="auto",
        help="dtype of the weights (auto: quantized ones stay quantized, others are float32)",
    )
    parser.add_argument("--filter", metavar="PATTERN", default="*", help="records to write, such as 'layers.0.*' (all)")
    meaning = "say which known mistakes the trace cannot show, also if that takes longer than a few seconds"
    parser.add_argument("--blind-spots", action="store_true", help=meaning)
    add_output_file(parser, "the safetensors file to write")

    parser = command(
        records,
        "gemma-np records",
        "gemma-np records --names --model google/gemma-2-2b --dump theirs.safetensors > names.json",
    )
    add_model(parser)
    parser.add_argument("--names", action="store_true", help="print a name map of the model's records, to start from")
    parser.add_argument("--dump", metavar="THEIRS", help="propose one for the names and shapes in this file")

    parser = command(
        compare,
        "gemma-np compare ref.safetensors theirs.safetensors",
        "gemma-np compare ref.safetensors theirs.safetensors --isolate --dtype bfloat16 --plot errors.png",
    )
    parser.add_argument("reference", metavar="REF", help="a file written by gemma-np trace")
    _add_dump(parser, "a safetensors file with records of the same token ids")
    parser.add_argument("--model", metavar="M", help="the model (default: the one that REF names)")
    parser.add_argument("--isolate", action="store_true", help="check each operation on their inputs to it")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--plot", metavar="FILE", help="plot the errors to a png, svg or pdf file")
    add_force(parser)

    parser = command(
        diagnose,
        "gemma-np diagnose --model google/gemma-2-2b theirs.safetensors",
        "gemma-np diagnose --model ./my-checkpoint --ids 2,651,6037 logits.safetensors",
        "gemma-np diagnose --model ./my-checkpoint --gradients --ids 2,651,6037,235 --ids 2,17,8 grads.safetensors",
    )
    _add_dump(parser, "a safetensors file with some or all records, or logits alone")
    add_model(parser)
    _add_ids(parser, "the token ids (default: `passes` or `texts` in the file's metadata)")
    _add_gradients(parser, "the file has gradients of a training step (default: if its metadata has `texts`)")

    parser = command(
        judge,
        "gemma-np judge --model ./gemma-3-270m.gguf --url http://localhost:8080",
        "gemma-np judge --model google/gemma-2-2b --precision bf16 answers.jsonl",
        "gemma-np judge --model google/gemma-2-2b --tokens ids.jsonl",
    )
    parser.add_argument("answers", metavar="ANSWERS", nargs="?", help="JSON lines with an engine's greedy answers")
    add_model(parser)
    parser.add_argument(
        "--tokens", metavar="FILE", help="judge its ids of texts and conversations instead, from JSON lines"
    )
    parser.add_argument("--url", metavar="URL", help="ask a running server that has the OpenAI completions API")
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="what to ask it (repeatable)")
    add_number(parser, "--max-new-tokens", "tokens of each answer of a server", 64)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="what the engine rounds activations to (default: as the model is stored)",
    )

    parser = command(
        conformance,
        "gemma-np conformance -o kit/",
        "gemma-np conformance kit/ -- ./my-gemma {model} {ids} {out}",
    )
    parser.add_argument("kit", metavar="KIT", nargs="?", help="a kit to run a program over")
    parser.add_argument("program", metavar="PROGRAM", nargs="*", help="with {model}, {ids} and {out}, after --")
    parser.add_argument("-o", "--output", metavar="DIR", help="write a new kit to this folder")


def _add_ids(parser: argparse.ArgumentParser, meaning: str) -> None:
    meaning += "; repeat it for the texts of --gradients"
    parser.add_argument("--ids", metavar="N,N,...", action="append", help=meaning)


def _add_gradients(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--gradients", action="store_true", help=meaning)


def _only(texts: list[str]) -> str:
    if len(texts) > 1:
        raise GemmaError(f"{len(texts)} texts, expected one (several are for --gradients)")
    return texts[0]


def _add_dump(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("dump", metavar="THEIRS", help=meaning)
    parser.add_argument(
        "--name-map", metavar="FILE", help="JSON file from their names to ours; {layer} is a layer number"
    )
    parser.add_argument("--dtype", choices=SAFETY_FACTOR, help="dtype of their computation (default: the file's)")


def trace(options: argparse.Namespace) -> None:
    """Write every intermediate of a run to a safetensors file."""
    if (options.prompt is None) == (options.ids is None):
        raise GemmaError("expected --prompt TEXT or --ids 2,651,...")
    if options.gradients and options.blind_spots:
        raise GemmaError("--blind-spots: given with --gradients, expected one of them")
    model = load(options.model, options.dtype)
    if options.gradients:
        return _trace_gradients(model, options)
    prompt = _only(options.prompt) if options.ids is None else read_ids(_only(options.ids))
    passes = plan_passes(model, prompt, chunk=options.chunk, decode=options.decode)
    count = write_trace(model, passes, options.output, pattern=options.filter, source=str(options.model))
    print_status(f"{count} records of {sum(map(len, passes))} tokens in {options.output}")
    if options.blind_spots or is_quick(model.config, passes):
        review = review_trace(model, passes, pattern=options.filter)
        print_status("\n".join(describe_review(review)))
    else:
        print_status("--blind-spots says which known mistakes it cannot show, in 40 to 160 forward passes")


def _trace_gradients(model: Gemma, options: argparse.Namespace) -> None:
    from gemma_np.oracle.gradient_files import write_gradients

    for name, default in (("chunk", None), ("decode", 0), ("filter", "*")):
        if getattr(options, name) != default:
            raise GemmaError(f"--{name}: given with --gradients, expected one of them")
    if options.prompt:
        texts = [model.require_tokenizer().encode(text) for text in options.prompt]
    else:
        texts = [read_ids(ids) for ids in options.ids]
    count = write_gradients(model, texts, options.output, str(options.model))
    print_status(f"loss and {count - 1} gradients in {options.output}")


def records(options: argparse.Namespace) -> None:
    """List the records of a trace: name, shape and meaning; or print a name map."""
    if not options.names:
        refuse_without("--names", options, "dump")
        return _list_records()
    config = resolve_config(options.model)
    if options.dump is None:
        print(name_map_json(every_name(config)))
        return
    found = propose_name_map(read_dump(options.dump), config)
    print(name_map_json(found.names))
    for name, reason in found.left_out.items():
        print(f"left out: {quoted(name)} {reason}", file=sys.stderr)
    if found.missing:
        print(f"not in {options.dump}: {', '.join(found.missing)}", file=sys.stderr)


def _list_records() -> None:
    for row in RECORDS:
        note = f" (only with {row.needs})" if row.needs else ""
        print(f"{row.name:40}{row.letters:10}{row.meaning}{note}")


def compare(options: argparse.Namespace) -> int:
    """Compare a dump with a trace, record by record; exit status 1 when they differ."""
    files = _files(options)
    if has_gradients(options.reference):
        from gemma_np.oracle.gradient_files import compare_gradient_files

        rows = compare_gradient_files(options.reference, options.dump, **files)
    else:
        rows = compare_files(options.reference, options.dump, isolate=options.isolate, **files)
    if options.plot:
        plot_comparison(rows, options.plot)
        report_written(options.plot)
    print(json.dumps([row._asdict() for row in rows]) if options.json else "\n".join(describe_comparison(rows)))
    return int(any(row.differs for row in rows))


def judge(options: argparse.Namespace) -> int:
    """Judge an engine by its greedy answers: identical, tie-break or defect; exit status 1 for a defect."""
    if sum(given is not None for given in (options.answers, options.url, options.tokens)) != 1:
        raise GemmaError("expected one of ANSWERS, --url and --tokens")
    if options.tokens:
        return _judge_tokens(options)
    precision = options.precision or usual_precision(options.model)
    model = load(options.model, "float32" if precision == "int8" else "float64")
    tokenizer = model.require_tokenizer()
    if options.url:
        answers = ask(options.url, options.prompt or PROMPTS, options.max_new_tokens, tokenizer)
    else:
        answers = read_answers(options.answers, tokenizer)
    judgements = []
    for judgement in judge_answers(model, answers, precision):
        judgements.append(judgement)
        print("\n".join(describe_judgement(judgement, tokenizer, model.config.sliding_window)))
    print("\n".join(describe_all(judgements, model.config.sliding_window)))
    return int(any(judgement.verdict == DEFECT for judgement in judgements))


def conformance(options: argparse.Namespace) -> int:
    """Write a conformance kit, or run a program over one; exit status 1 when a case fails."""
    from gemma_np.oracle.conformance import describe_results, run_kit
    from gemma_np.oracle.conformance_kit import write_kit

    if (options.output is None) == (options.kit is None):
        raise GemmaError("expected either -o DIR, or KIT -- PROGRAM {model} {ids} {out}")
    if options.output:
        size = write_kit(options.output)
        print_status(f"{options.output}: {size / 1e6:.1f} MB; its README.md says how to use it")
        return 0
    results = []
    for result in run_kit(options.kit, options.program):
        results.append(result)
        if not result.passed:
            print(f"{result.model}, {result.case}: {result.error}")
            print("".join(f"  {line}\n" for line in result.diagnosis), end="")
    print("\n".join(describe_results(results)))
    return int(not all(result.passed for result in results))


def _judge_tokens(options: argparse.Namespace) -> int:
    judgements = judge_tokens(options.tokens, load(options.model).require_tokenizer())
    for judgement in judgements:
        print(f"{judgement.source}: {judgement.difference or 'right'}")
    wrong = sum(bool(judgement.difference) for judgement in judgements)
    print(f"{len(judgements) - wrong} right, {wrong} wrong")
    return int(wrong > 0)


def diagnose(options: argparse.Namespace) -> int:
    """Find the known mistake, or pair of mistakes, behind a dump; exit status 1 if something is wrong."""
    texts, files = [read_ids(ids) for ids in options.ids or ()], _files(options)
    if options.gradients or has_gradients(options.dump):
        return _diagnose_gradients(options.dump, texts, files)
    diagnosis = diagnose_file(options.dump, ids=read_ids(_only(options.ids)) if options.ids else None, **files)
    print("\n".join(describe_diagnosis(diagnosis)))
    return int(bool(diagnosis.wrong))


def _files(options: argparse.Namespace) -> dict[str, str | None]:
    return {"model": options.model, "name_map": options.name_map, "dtype": options.dtype}


def _diagnose_gradients(dump: str, texts: list[list[int]], files: dict[str, str | None]) -> int:
    from gemma_np.oracle.gradient_diagnosis import describe_gradients
    from gemma_np.oracle.gradient_files import diagnose_gradient_file

    diagnosis = diagnose_gradient_file(dump, texts=texts or None, **files)
    print("\n".join(describe_gradients(diagnosis)))
    return int(bool(diagnosis.excess))
