import numpy as np
import pytest
from support.plots import COLOURS, matrix, pieces, use_style

import gemma_np

pytestmark = pytest.mark.plot


def test_the_style_holds_for_new_figures():
    import matplotlib

    with matplotlib.rc_context():
        use_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)


def test_a_matrix_has_its_labels_and_a_scale_around_zero():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    matrix(axes, np.array([[1.0, -2.0]]), ["row"], ["a", "b"], label="nats", limit=2)
    [image] = axes.images
    assert image.get_clim() == (-2, 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert axes.figure.axes[1].get_ylabel() == "nats"


def test_pieces_show_new_lines():
    tokenizer = gemma_np.load().tokenizer
    assert pieces(tokenizer.encode("To be\n", bos=False), tokenizer) == ["To", "▁be", "⏎"]
