"""`gemma-np evaluate`: what it prints, plots and refuses."""

import json

import pytest

from gemma_np.cli import main
from gemma_np.evaluation.multiple_choice import read_questions
from gemma_np.gemma import ASSETS
from tests.support import tiny

FILE = "tutorials/questions.jsonl"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    lines = [{"question": f"What is {n}?", "choices": [f"{n}", "ships", "the sea"], "answer": n % 3} for n in range(6)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.gemma(max_position_embeddings=200).save(folder / "one")
    tiny.gemma("gemma", max_position_embeddings=200).save(folder / "two")
    return str(folder / "one"), str(folder / "two")


def test_the_bundled_questions_are_valid():
    questions = read_questions(ASSETS.parents[1] / FILE)
    assert len(questions) >= 100
    assert {len(question.choices) for question in questions} == {4}
    assert {question.answer for question in questions} == {0, 1, 2, 3}


def test_a_table_of_one_model(file, checkpoints, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0]]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["6", "questions", "one"]
    for figure in ("accuracy, raw", "accuracy, per token", "accuracy, per byte", "expected calibration error"):
        assert figure in out


def test_few_shot_examples_are_not_evaluated(file, checkpoints, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0], "--num-fewshot", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 4
    assert main(["evaluate", file, "--model", checkpoints[0], "--num-fewshot", "6"]) == 2
    assert "6 questions, expected more than the 6 examples" in capsys.readouterr().err


def test_a_model_does_not_differ_from_itself(file, checkpoints, capsys):
    assert main(["evaluate", file, "--compare", checkpoints[0], checkpoints[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]["right answers"]
    assert (found["mean"], found["p"]) == (0, 1)


def test_two_models_are_compared_with_a_significance_test(file, checkpoints, capsys):
    assert main(["evaluate", file, "--compare", *checkpoints]) == 0
    out = capsys.readouterr().out
    assert "one" in out.splitlines()[0]
    assert "two" in out.splitlines()[0]
    assert out.count("not shown to differ (p = 0.59)") == 1
    assert out.count(", shown to differ (p = 0.023)") == 1


@pytest.mark.plot
@pytest.mark.parametrize("models", [["--model", "ONE"], ["--compare", "ONE", "TWO"]])
def test_plots(models, file, checkpoints, tmp_path):
    names = {"ONE": checkpoints[0], "TWO": checkpoints[1]}
    arguments = [names.get(word, word) for word in models]
    assert main(["evaluate", file, *arguments, "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.plot
def test_an_unknown_image_format_is_refused(file, checkpoints, tmp_path, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0], "--plot", str(tmp_path / "plot.xyz")]) == 2
    out, err = capsys.readouterr()
    assert "plot.xyz" in err
    assert out == ""  # it is refused before the work
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "gemma-np evaluate" in capsys.readouterr().out.split("examples:")[1]
