"""An engine judged by its answers: identical, a tie, or a defect with its cause."""

import json
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

import gemma_np
from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.model.log_probs import log_softmax
from gemma_np.oracle.answers import Answer, answer_of, read_answers
from gemma_np.oracle.judge import DEFECT, IDENTICAL, TIE_BREAK, describe_all, judge
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.noise import rounding_tape
from gemma_np.oracle.trace import Reference
from tests.oracle.test_diagnose import reference
from tests.support import tiny

PROMPT = [2, 5, 9, 4, 7, 3]
LENGTH = 8


def answer_of_engine(run, prompt=PROMPT, length=LENGTH, top=0):
    """The greedy answer of an engine whose logits [T, V] are `run(ids)`."""
    ids, tops = list(prompt), []
    for _ in range(length):
        row = run(ids)[-1]
        ids.append(int(row.argmax()))
        if top:
            likely = np.argsort(-row)[:top]
            tops.append(dict(zip(likely.tolist(), log_softmax(row)[likely].tolist(), strict=True)))
    return Answer("here", list(prompt), ids[len(prompt) :], tops)


def engine(model, *mistakes, tape=None):
    def run(ids):
        with inject_mistakes(mistakes, model.config, [len(ids)]):
            records = Reference(model, [ids]).records(tape)
        return records.get("logits_capped", records["logits"])

    return run


def by_id(name):
    return next(mistake for mistake in CATALOGUE if mistake.id == name)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_the_reference_itself_is_identical(model_type):
    model = reference(model_type).model
    (found,) = judge(model, [answer_of_engine(engine(model), top=5)])
    assert (found.verdict, found.differences, found.causes) == (IDENTICAL, ([], []), ())


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("f16", "float16")])
def test_rounding_is_never_a_defect(model_type, precision, dtype):
    model = reference(model_type).model
    for seed in range(8):
        tape = rounding_tape(dtype, np.random.default_rng(seed))
        prompt = [2, *np.random.default_rng(seed).integers(3, model.config.vocab_size, 5).tolist()]
        (found,) = judge(model, [answer_of_engine(engine(model, tape=tape), prompt, top=5)], precision)
        assert found.verdict in (IDENTICAL, TIE_BREAK)


@pytest.mark.parametrize("name", ["shakespeare-gemma1", "shakespeare-1m", "shakespeare-gemma3"])
def test_rounding_to_int8_is_never_a_defect(name):
    """An engine that rounds in plain loops what its matrices read; one channel is much larger, as in real models."""
    model = gemma_np.load(name, "float64")
    loud = model.weights["model.layers.0.mlp.up_proj.weight"].copy()
    loud[5] *= 100
    model = replace(model, weights={**model.weights, "model.layers.0.mlp.up_proj.weight": loud})

    def tape(name, value):
        if name.split(".")[-1] not in ("input_layernorm", "context", "pre_feedforward_layernorm", "hidden", "norm"):
            return value
        rounded = value.copy()
        for block in rounded.reshape(-1, 32):
            step = np.abs(block).max() / 127 or 1
            block[:] = [round(number / step) * step for number in block]
        return rounded

    for text in ("To be", "The King"):
        prompt = model.tokenizer.encode(text)
        (found,) = judge(model, [answer_of_engine(engine(model, tape=tape), prompt, top=5)], "int8")
        assert found.verdict in (IDENTICAL, TIE_BREAK)
        (strictly,) = judge(model, [found.answer])
        assert strictly.verdict == DEFECT
        assert strictly.as_precise_as in ("f16", "bf16", "int8")
        answer = found.answer
        right = log_softmax(engine(model)([*prompt, *answer.ids[:-1]]))[len(prompt) - 1 :]
        errors = [{id: one[id] - row[id] for id in one} for one, row in zip(answer.top, right, strict=True)]
        top = [{id: row[id] + 12 * one[id] for id in one} for one, row in zip(errors, right, strict=True)]
        (exaggerated,) = judge(model, [answer._replace(top=top)], "int8")
        assert exaggerated.verdict == DEFECT


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_float32_is_never_a_defect(model_type):
    model = reference(model_type).model
    weights = {name: weight.astype(np.float32) for name, weight in model.weights.items()}
    theirs = replace(model, weights=weights)
    for seed in range(8):
        prompt = [2, *np.random.default_rng(seed).integers(3, model.config.vocab_size, 5).tolist()]
        (found,) = judge(model, [answer_of_engine(engine(theirs), prompt, top=5)])
        assert found.verdict == IDENTICAL


def test_a_tie_is_a_tie_only_at_its_precision():
    model = reference("gemma2").model
    right = answer_of_engine(engine(model))
    logits = engine(model)([*right.prompt, *right.ids[:-1]])[len(PROMPT) - 1 :]
    second = int(np.argsort(-logits[3])[1])
    wrong = right._replace(ids=[*right.ids[:3], second])
    (found,) = judge(model, [wrong])
    assert found.verdict == DEFECT
    (step,) = found.differences.choices
    assert (step.position, step.found, step.expected) == (len(PROMPT) + 3, second, right.ids[3])
    assert step.margin == pytest.approx(logits[3].max() - logits[3, second])


@pytest.mark.parametrize("name", ["silu", "norm-no-plus1", "rope-interleaved", "finalcap-missing", "gqa-tile"])
def test_a_mistake_is_a_defect_with_its_name(name):
    model = reference("gemma2").model
    (found,) = judge(model, [answer_of_engine(engine(model, by_id(name)), top=5)])
    assert found.verdict == DEFECT
    assert name in found.causes


def test_what_is_unknown_has_no_name():
    model = reference("gemma2").model

    def tape(key, value):
        return np.sin(3 * value) if key.endswith("mlp.up") else value

    (found,) = judge(model, [answer_of_engine(engine(model, tape=tape), top=5)])
    assert (found.verdict, found.causes) == (DEFECT, ())


@pytest.mark.parametrize("beginning", ["the engine does not read <bos>", "the engine reads <bos> twice"])
def test_a_prompt_that_the_engine_reads_otherwise(beginning):
    model = gemma_np.load("shakespeare-1m", "float64")
    bos, *rest = prompt = model.tokenizer.encode("To be, or not to be")
    read = rest if beginning.endswith("read <bos>") else [bos, *prompt]
    answer = answer_of_engine(engine(model), read, length=16, top=5)._replace(prompt=prompt)
    (found,) = judge(model, [answer], "f16")
    assert found.verdict == DEFECT
    assert beginning in found.causes


def test_only_what_explains_the_first_defect_is_tried_for_others():
    model = reference("gemma2").model
    wrong = [answer_of_engine(engine(model, by_id(name)), top=5) for name in ("silu", "norm-no-plus1")]
    first, second = judge(model, wrong)
    assert "silu" in first.causes
    assert second.causes == ()
    lines = describe_all([first, second], window=None)
    assert lines[0] == "2 DEFECT"
    assert any(line.startswith("this explains 1 of 2: ") and "known as silu" in line for line in lines)


def test_a_likely_mistake_is_named_in_words():
    model = gemma_np.load("shakespeare-1m", "float64")
    theirs = replace(model, config=replace(model.config, rope_theta=1e6))
    (found,) = judge(model, [answer_of_engine(engine(theirs), model.tokenizer.encode("To be, or not"), top=5)])
    assert any("the base is 1e+06, expected" in cause for cause in found.causes)


def test_what_the_last_lines_say():
    model = reference("gemma2").model
    right = next(judge(model, [answer_of_engine(engine(model), top=5)]))
    assert describe_all([right], window=100) == [
        "1 IDENTICAL",
        "no text is longer than the window of 100 tokens: mistakes in the window would not show",
    ]
    rounded = answer_of_engine(engine(model, tape=rounding_tape("bfloat16")), top=5)
    (found,) = judge(model, [rounded])
    precise = found.as_precise_as
    assert precise in ("f16", "bf16")
    assert describe_all([found], window=None)[-1] == (
        f"not more than rounding to {precise} does: if the engine computes in it, use --precision {precise}"
    )


def test_what_servers_return_is_read():
    tokenizer = tiny.tokenizer()
    prompt = tokenizer.encode("The lamp")
    ids = tokenizer.encode(" was lit", bos=False)
    pieces = [tokenizer.piece(id).replace("\u2581", " ") for id in ids]
    top = [{piece: -0.5} for piece in pieces]
    names = [f"token_id:{id}" for id in ids]
    steps = [{"id": id, "token": "?", "top_logprobs": [{"id": id, "token": "?", "logprob": -0.5}]} for id in ids]
    by_text = [{"token": one, "top_logprobs": [{"token": one, "logprob": -0.5}]} for one in pieces]
    lines = [
        {"ids": ids, "top_logprobs": [{str(id): -0.5} for id in ids]},
        {"choices": [{"text": "", "logprobs": {"tokens": pieces, "top_logprobs": top}}]},
        {"choices": [{"text": "".join(pieces), "logprobs": None}]},
        {"choices": [{"text": "", "logprobs": {"tokens": names, "top_logprobs": None}}]},
        {"choices": [{"text": "?", "logprobs": {"content": steps}}]},
        {"choices": [{"text": "?", "logprobs": {"content": by_text}}]},
        {"completion_probabilities": steps, "content": "?"},
        {"text": "".join(pieces)},
    ]
    for line in lines:
        for start in ("The lamp", "<bos>The lamp", prompt):
            found = answer_of(start, line, "here", tokenizer)
            assert (found.prompt, found.ids) == (prompt, ids)
            assert found.top in ([], [{id: -0.5} for id in ids])


def test_an_id_is_no_digit():
    """The vocabulary has the piece 1, which is not the token with the id 1."""
    tokenizer = tiny.tokenizer()
    assert tokenizer.id("1") != 1
    line = {"ids": [1], "top_logprobs": [{"1": -0.5, "7": -1.5}]}
    assert answer_of([2], line, "here", tokenizer).top == [{1: -0.5, 7: -1.5}]
    line = {"choices": [{"text": "1", "logprobs": {"tokens": ["1"], "top_logprobs": [{"1": -0.5}]}}]}
    assert answer_of([2], line, "here", tokenizer).ids == [tokenizer.id("1")]


def test_the_logarithm_of_zero_is_left_out():
    line = {"ids": [5, 6], "top_logprobs": [{"5": -0.1, "6": -3.4e38, "7": None}, {"6": -0.1, "5": -9999.0}]}
    assert answer_of([2], line, "here", tiny.tokenizer()).top == [{5: -0.1}, {6: -0.1}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, "no answer, expected ids, text, choices"),
        ({"prompt": "", "ids": [1]}, "expected text or a list of ids"),
        ({"prompt": ["x"], "ids": [1]}, "expected a whole number"),
        ({"prompt": "x", "text": ""}, "text: empty, expected what the engine wrote"),
        ({"prompt": "x", "ids": [1], "top_logprobs": [{"x": -1}]}, "expected an object whose names are ids"),
        ({"prompt": "x", "choices": [{"text": "a", "logprobs": {"content": [{"id": -1}]}}]}, "id: -1, expected"),
        ({"prompt": "x", "ids": [1], "top_logprobs": [{}, {}]}, "2, expected one for each of 1 tokens"),
        ({"prompt": "x", "ids": [10**6]}, "id 1000000, expected 0 to"),
        (
            {"prompt": "x", "choices": [{"text": "", "logprobs": {"tokens": ["\u4e00\u4e01"]}}]},
            "no token of the vocabulary",
        ),
        ({"prompt": "x", "ids": "y"}, "expected a list"),
    ],
)
def test_what_is_no_answer(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(GemmaError, match=r"a\.jsonl, line 1") as error:
        read_answers(tmp_path / "a.jsonl", tiny.tokenizer())
    assert message in str(error.value)


@contextmanager
def server(replies):
    """A server that answers a POST to some routes by a function of what is asked, and lists one model.

    Give its address, and what it is asked.
    """
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply({"data": [{"id": "its model"}]})

        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, question))
            if self.path not in replies:
                self.send_error(404)
            else:
                self.reply(replies[self.path](question))

        def reply(self, value):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def completion(model, skip=0):
    """A reply of vLLM, to a prompt whose first tokens are skipped."""

    def reply(question):
        prompt = model.tokenizer.encode(question["prompt"])[skip:]
        tokens = [f"token_id:{id}" for id in model.stream_ids(prompt, question["max_tokens"])]
        choice = {"text": "", "logprobs": {"tokens": tokens, "top_logprobs": None}}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}

    return reply


def ids_of(model, skip=0):
    return lambda question: {"tokens": model.tokenizer.encode(question["prompt"])[skip:]}


@pytest.fixture
def words(tmp_path):
    tiny.gemma().save(tmp_path / "model")
    return ["judge", "--model", str(tmp_path / "model"), "--max-new-tokens", "4", "--prompt", "The lamp", "--url"]


def test_a_running_server_is_asked(words, capsys):
    model = tiny.gemma()
    with server({"/v1/completions": completion(model), "/tokenize": ids_of(model)}) as (url, asked):
        for address in (url, f"{url}/", f"{url}/v1"):
            assert main([*words, address]) == 0
            assert "IDENTICAL (" in capsys.readouterr().out
    (_, question), (_, tokens) = asked[:2]
    expected = {"model": "its model", "prompt": "The lamp", "max_tokens": 4, "temperature": 0, "logprobs": 5}
    assert question == expected | {"return_tokens_as_token_ids": True}
    assert (tokens["content"], tokens["prompt"], tokens["add_special"]) == ("The lamp", "The lamp", True)
    assert main([*words, url]) == 2
    assert "expected a running server" in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "expected one of ANSWERS, --url and --tokens" in capsys.readouterr().err


def test_a_server_that_reads_other_ids(words, capsys):
    """Its numbers are judged on what it reads; where it does not say what that is, the number of tokens tells."""
    model = tiny.gemma()
    routes = {"/v1/completions": completion(model, skip=1), "/tokenize": ids_of(model, skip=1)}
    with server(routes) as (url, _):
        assert main([*words, url]) == 1
    out = capsys.readouterr().out
    assert "the ids of the prompt are wrong: <bos> is missing" in out
    assert "token " not in out.split("wrong")[1].split("\n")[1]
    with server({"/v1/completions": completion(model, skip=1)}) as (url, _):
        assert main([*words, url]) == 1
    count = len(model.tokenizer.encode("The lamp"))
    assert f"wrong: it has {count - 1} tokens, expected {count}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, "/v1/completions: status 404 with"),
        ({"/v1/completions": lambda question: {"choices": "none"}}, 'choices: "none", expected a list'),
        ({"/v1/completions": lambda question: {}}, "no answer, expected ids, text, choices"),
        ({"/v1/completions": lambda question: [1]}, "expected a JSON object"),
    ],
)
def test_a_server_that_answers_otherwise(routes, message, words, capsys):
    with server(routes) as (url, _):
        assert main([*words, url]) == 2
    assert message in capsys.readouterr().err


def test_a_quantized_model_with_a_defect(tmp_path, capsys):
    model = gemma_np.load("shakespeare-1m")
    export_gguf(model, "q4_k_m", tmp_path / "model.gguf")
    ids = model.tokenizer.encode("To be, or")
    right = answer_of_engine(engine(gemma_np.load(tmp_path / "model.gguf", "float64"), by_id("silu")), ids, top=5)
    top = [{str(id): logprob for id, logprob in one.items()} for one in right.top]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": ids, "ids": right.ids, "top_logprobs": top}))
    assert main(["judge", "--model", str(tmp_path / "model.gguf"), str(tmp_path / "a.jsonl")]) == 1
    assert "known as silu" in capsys.readouterr().out


def test_a_file_from_the_command_line(tmp_path, capsys):
    model = tiny.gemma()
    model.save(tmp_path / "model")
    right = answer_of_engine(engine(model), [2, 5, 9])
    line = {"prompt": right.prompt, "ids": right.ids[:-1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"ids": [*right.ids[:2], 3]}) + "\n")
    assert main(["judge", "--model", str(tmp_path / "model"), str(tmp_path / "a.jsonl")]) == 1
    out = capsys.readouterr().out
    assert f"a.jsonl, line 1: IDENTICAL ({len(right.ids) - 1} tokens)" in out
    assert "token 5 (decoding" in out
    assert "\n1 IDENTICAL, 1 DEFECT\n" in out
