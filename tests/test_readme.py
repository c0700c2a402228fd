"""The README tells the truth: its Python runs, and what it links to is there."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert "logits_capped" in capsys.readouterr().out
    np.testing.assert_allclose(names["rms_norm"](np.array([3.0, 4.0]), np.zeros(2), 1e-6), [0.8485, 1.1314], atol=1e-4)
    assert names["gradients"].keys() == names["model"].weights.keys()


def test_what_it_links_to_is_there():
    places = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(places) > 30
    assert [place for place in places if not (README.parent / place).exists()] == []
