"""Progress: a bar after two seconds on a terminal, lines elsewhere, nothing when quiet."""

import re
import sys

import pytest
import tqdm.std

from gemma_np.progress import is_quiet, progress_bar, quiet


@pytest.fixture
def clock(monkeypatch):
    """A clock for tqdm that stands still until it is set: clock[0] in seconds."""
    now = [0.0]
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def shown(clock, capsys, seconds=120, desc="training"):
    """Advance a bar by one step a second, and return what it writes."""
    clock[0] = 0
    with progress_bar(total=seconds, desc=desc, unit="steps") as bar:
        for second in range(1, seconds + 1):
            clock[0] = second
            bar.set_postfix_str("loss 4.312", refresh=False)
            bar.update()
    return capsys.readouterr().err


def test_a_pipe_gets_a_line_every_half_minute(clock, capsys):
    lines = shown(clock, capsys).split("\n")
    assert lines == [
        "training: 25 %, 30 of 120 steps, 01:30 left, loss 4.312",
        "training: 50 %, 60 of 120 steps, 01:00 left, loss 4.312",
        "training: 75 %, 90 of 120 steps, 00:30 left, loss 4.312",
        "training: 100 %, 120 of 120 steps, 00:00 left, loss 4.312",
        "",
    ]


@pytest.mark.parametrize("variable", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_so_does_a_terminal_that_wants_no_control_characters(clock, capsys, monkeypatch, variable):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv(*variable)
    err = shown(clock, capsys)
    assert err.count("\n") == 4
    assert "\r" not in err
    assert "\x1b" not in err


def test_short_work_shows_nothing(clock, capsys):
    assert shown(clock, capsys, 29) == ""


def test_quiet_work_shows_nothing(clock, capsys):
    with quiet():
        assert is_quiet()
        assert shown(clock, capsys) == ""
    assert not is_quiet()
    assert shown(clock, capsys)


def test_a_narrow_terminal_shows_a_bar_with_the_time_left(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(tqdm.std, "_screen_shape_wrapper", lambda: lambda file: (59, 23))  # it keeps one column free
    *states, last, end = (state.rstrip() for state in shown(clock, capsys).split("\r"))
    assert max(map(len, states)) < 60
    assert re.fullmatch(r"training: 2 % \| +\| 2/120 steps, 01:58 left, loss 4.312", next(filter(None, states)))
    assert re.fullmatch("training: 50 % \\|\u2588+[^|]*\\| 60/120 steps, 01:00 left, loss 4.312", states[-61])
    assert (last, end) == ("", "")  # the bar vanishes
    assert shown(clock, capsys, 1) == ""


def test_it_wraps_an_iterable(capsys):
    assert list(progress_bar("abc", desc="reading", unit="letters")) == ["a", "b", "c"]
    assert list(progress_bar("abc", desc="reading", unit="letters", hide=True)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
