"""`gemma-np evaluate`: what it prints, draws and refuses."""

import json

import pytest

import gemma_np
from gemma_np.cli import main
from gemma_np.evaluation.multiple_choice import read_questions
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


def test_the_file_that_comes_along_is_one_of_questions():
    questions = read_questions(gemma_np.gemma._ASSETS.parents[1] / FILE)
    assert len(questions) >= 100
    assert {len(question.choices) for question in questions} == {4}
    assert {question.answer for question in questions} == {0, 1, 2, 3}


def test_a_table_of_one_model(file, checkpoints, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0]]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["6", "questions", "one"]
    for figure in ("accuracy, raw", "accuracy, by token", "accuracy, by byte", "expected calibration error"):
        assert figure in out


def test_examples_are_not_asked(file, checkpoints, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0], "--num-fewshot", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 4
    assert main(["evaluate", file, "--model", checkpoints[0], "--num-fewshot", "6"]) == 2
    assert "6 questions, expected more than the 6 examples" in capsys.readouterr().err


def test_a_model_is_no_better_than_itself(file, checkpoints, capsys):
    assert main(["evaluate", file, "--compare", checkpoints[0], checkpoints[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]["right answers"]
    assert (found["mean"], found["p"]) == (0, 1)


def test_two_models_are_told_apart_or_not(file, checkpoints, capsys):
    assert main(["evaluate", file, "--compare", *checkpoints]) == 0
    out = capsys.readouterr().out
    assert "one" in out.splitlines()[0]
    assert "two" in out.splitlines()[0]
    assert out.count("than chance") == 2


@pytest.mark.plot
@pytest.mark.parametrize("what", [["--model", "ONE"], ["--compare", "ONE", "TWO"]])
def test_pictures(what, file, checkpoints, tmp_path):
    names = {"ONE": checkpoints[0], "TWO": checkpoints[1]}
    arguments = [names.get(word, word) for word in what]
    assert main(["evaluate", file, *arguments, "--plot", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.plot
def test_a_picture_of_no_kind(file, checkpoints, tmp_path, capsys):
    assert main(["evaluate", file, "--model", checkpoints[0], "--plot", str(tmp_path / "picture.xyz")]) == 2
    assert "picture.xyz" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "gemma-np evaluate" in capsys.readouterr().out.split("examples:")[1]
