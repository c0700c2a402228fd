"""The log of a run: written, cut back on resuming, read, smoothed, plotted."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.training.run_log import NEXT_TOKEN, RunLog, centred_mean, plot_logs, read_log, training_loss

ENTRIES = [
    {"step": step, "loss": 5 - step / 10, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0}
    for step in range(1, 21)
]


def write(folder):
    with RunLog(folder, steps=20, step=0) as log:
        for entry in ENTRIES:
            log.write(entry)
    return folder


def test_the_log_is_read_as_it_was_written(tmp_path):
    assert read_log(write(tmp_path / "run")) == ENTRIES


def test_a_resumed_run_drops_the_entries_after_its_checkpoint(tmp_path):
    path = write(tmp_path / "run") / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 21, "lo')  # killed in the middle of a line
    with RunLog(tmp_path / "run", steps=20, step=12) as log:
        log.write(ENTRIES[12])
    assert read_log(tmp_path / "run") == ENTRIES[:13]


def test_a_silent_log_writes_nothing(tmp_path):
    with RunLog(tmp_path / "run", steps=20, step=0, silent=True) as log:
        log.write(ENTRIES[0])
        log.flush()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory, expected the log of a run"),
        ("", "has no steps, expected the log of a run"),
        ("no JSON}\n", "line 1: not JSON"),
        ('{"step": 1.5, "loss": 1, "learning_rate": 1}\n', "line 1: step: 1.5, expected a whole number"),
        ('{"step": 1, "loss": NaN, "learning_rate": 1}\n', "line 1: loss: NaN, expected a number"),
    ],
)
def test_a_missing_or_damaged_log_is_refused(tmp_path, text, message, capsys):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(GemmaError, match=message):
        read_log(tmp_path)
    assert main(["plot-log", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_centred_mean_is_not_late():
    values = np.arange(150.0) ** 2
    expected = [values[i - 1 : i + 2].mean() for i in range(1, 149)]
    np.testing.assert_allclose(centred_mean(values, 1), expected)
    np.testing.assert_allclose(centred_mean(values, 0), values)
    line = np.arange(9.0)
    np.testing.assert_allclose(centred_mean(line, 2), line[2:-2])


def save_identity(folder, identity):
    """Write what a run that distils leaves behind."""
    save_file({"weights/x": np.zeros(1)}, folder / "training.safetensors", {"identity": json.dumps(identity)})


@pytest.mark.parametrize(
    ("identity", "loss"),
    [
        (None, NEXT_TOKEN),
        ({}, NEXT_TOKEN),
        ({"view_weights": "FakeQuantize"}, NEXT_TOKEN),
        ({"targets": {"top_k": 32}}, "cross-entropy with the teacher's top 32 and the rest"),
        ({"divergence": "cross-entropy", "temperature": 1.0}, "cross-entropy with the teacher"),
        ({"divergence": "cross-entropy", "temperature": 2.5}, "cross-entropy with the teacher at temperature 2.5"),
        ({"divergence": "reverse-kl", "temperature": 1.0}, "reverse KL divergence from the teacher"),
        ({"divergence": "jensen-shannon"}, "Jensen-Shannon divergence from the teacher"),
    ],
)
def test_the_training_loss_is_named(tmp_path, identity, loss):
    if identity is not None:
        save_identity(tmp_path, identity)
    assert training_loss(tmp_path) == loss


@pytest.mark.plot
def test_losses_of_different_kinds_have_axes_of_their_own(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("gemma_np.training.run_log.save_figure", lambda figure, _: figures.append(figure))
    for name in ("student", "twin"):
        path = write(tmp_path / name) / "log.jsonl"
        path.write_text(path.read_text() + json.dumps({**ENTRIES[-1], "step": 21, "val_loss": 3.5}) + "\n")
    save_identity(tmp_path / "student", {"targets": {"top_k": 8}})
    plot_logs([tmp_path / "student", tmp_path / "twin"], tmp_path / "log.png")
    next_token, distilled, _ = figures[0].axes
    assert next_token.get_title("left") == NEXT_TOKEN
    assert "top 8" in distilled.get_title("left")
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (next_token, distilled)]
    student, twin = tmp_path / "student", tmp_path / "twin"
    assert labels == [[f"{student}: validation", f"{twin}: training", f"{twin}: validation"], [f"{student}: training"]]


@pytest.mark.plot
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_of_two_runs(tmp_path, suffix):
    for name in ("student", "twin"):
        path = write(tmp_path / name) / "log.jsonl"
        path.write_text(path.read_text() + json.dumps({**ENTRIES[-1], "step": 21, "val_loss": 3.5}) + "\n")
    out = tmp_path / f"losses.{suffix}"
    assert main(["plot-log", str(tmp_path / "student"), str(tmp_path / "twin"), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.plot
def test_an_unknown_image_format_is_refused(tmp_path, capsys):
    assert main(["plot-log", str(write(tmp_path / "run")), "-o", str(tmp_path / "losses.xyz")]) == 2
    assert 'losses.xyz: format "xyz", expected png, svg or pdf' in capsys.readouterr().err


@pytest.mark.plot
def test_numbers_too_large_to_plot_are_refused(tmp_path, capsys):
    path = write(tmp_path / "run") / "log.jsonl"
    path.write_text(
        json.dumps({**ENTRIES[0], "loss": 1e308}) + "\n" + json.dumps({**ENTRIES[1], "loss": -1e308}) + "\n"
    )
    assert main(["plot-log", str(tmp_path / "run"), "-o", str(tmp_path / "log.svg")]) == 2
    assert "log.svg: cannot be drawn" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_a_full_disk_is_an_error_that_names_the_log(tmp_path):
    message = r"full: could not be written \(No space left on device\)"
    log = RunLog(tmp_path / "run", steps=20, step=0)
    log.file.close()
    log.file = open("/dev/full", "a")  # noqa: SIM115 (the log closes it)
    log.write(ENTRIES[0])
    with pytest.raises(GemmaError, match=message):
        log.flush()
    with pytest.raises(GemmaError, match=message), log:
        pass
