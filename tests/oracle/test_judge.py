"""An engine judged by its answers: identical, a tie, or a defect with its cause."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.model.log_probs import log_softmax
from gemma_np.oracle.answers import Answer, answer_of, read_answers
from gemma_np.oracle.judge import DEFECT, IDENTICAL, TIE_BREAK, judge
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
    assert (found.verdict, found.choices, found.log_probs, found.causes) == (IDENTICAL, [], [], ())


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("f16", "float16")])
def test_rounding_is_never_a_defect(model_type, precision, dtype):
    model = reference(model_type).model
    for seed in range(8):
        tape = rounding_tape(dtype, np.random.default_rng(seed))
        prompt = [2, *np.random.default_rng(seed).integers(3, model.config.vocab_size, 5).tolist()]
        (found,) = judge(model, [answer_of_engine(engine(model, tape=tape), prompt, top=5)], precision)
        assert found.verdict in (IDENTICAL, TIE_BREAK)


def test_a_tie_is_a_tie_only_at_its_precision():
    model = reference("gemma2").model
    right = answer_of_engine(engine(model))
    logits = engine(model)([*right.prompt, *right.ids[:-1]])[len(PROMPT) - 1 :]
    second = int(np.argsort(-logits[3])[1])
    wrong = right._replace(ids=[*right.ids[:3], second])
    (found,) = judge(model, [wrong])
    assert found.verdict == DEFECT
    (step,) = found.choices
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


def test_what_servers_return_is_read():
    tokenizer = tiny.tokenizer()
    prompt = tokenizer.encode("The lamp")
    ids = tokenizer.encode(" was lit", bos=False)
    pieces = [tokenizer.piece(id).replace("\u2581", " ") for id in ids]
    top = [{piece: -0.5} for piece in pieces]
    lines = [
        {"prompt": "The lamp", "ids": ids, "top_logprobs": [{str(id): -0.5} for id in ids]},
        {"prompt": prompt, "choices": [{"text": "", "logprobs": {"tokens": pieces, "top_logprobs": top}}]},
        {"prompt": "The lamp", "choices": [{"text": "".join(pieces), "logprobs": None}]},
        {
            "prompt": "The lamp",
            "choices": [{"text": "", "logprobs": {"tokens": [f"token_id:{id}" for id in ids], "top_logprobs": None}}],
        },
        {
            "prompt": "The lamp",
            "completion_probabilities": [{"id": id, "top_logprobs": [{"id": id, "logprob": -0.5}]} for id in ids],
        },
    ]
    for line in lines:
        found = answer_of(line, "here", tokenizer)
        assert (found.prompt, found.ids) == (prompt, ids)
        assert found.top in ([], [{id: -0.5} for id in ids])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, "no answer, expected ids, text, choices"),
        ({"prompt": "", "ids": [1]}, "expected text or a list of ids"),
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


def test_a_running_server_is_asked(tmp_path, capsys):
    model = tiny.gemma()
    model.save(tmp_path / "model")
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            ids = list(model.stream_ids(model.tokenizer.encode(question["prompt"]), question["max_tokens"]))
            tokens = [f"token_id:{id}" for id in ids]
            reply = json.dumps({"choices": [{"text": "", "logprobs": {"tokens": tokens, "top_logprobs": None}}]})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply.encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    words = ["judge", "--model", str(tmp_path / "model"), "--url", url, "--max-new-tokens", "4", "--prompt", "The lamp"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "IDENTICAL (" in out
    assert out.endswith("1 IDENTICAL\n")
    assert asked == [{"prompt": "The lamp", "max_tokens": 4, "temperature": 0, "logprobs": 5}]
    server.shutdown()
    server.server_close()
    assert main(words) == 2
    assert "expected a running server" in capsys.readouterr().err
    assert main(["judge", "--model", str(tmp_path / "model")]) == 2
    assert "expected one of ANSWERS, --url and --tokens" in capsys.readouterr().err


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
    assert out.endswith("1 IDENTICAL, 1 DEFECT\n")
