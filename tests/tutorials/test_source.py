import inspect
import shutil

import pytest
from support import lines, source
from support.source import Lines

from gemma_np.model.rms_norm import rms_norm
from gemma_np.scope import Scope
from tests.support.by_path import module_at


def test_a_line_is_shown_with_its_place():
    shown = lines(rms_norm, "mean_square =")
    source = inspect.getsource(inspect.getmodule(rms_norm)).splitlines()
    assert source[shown.first - 1].strip() == shown.code
    assert shown.path == "gemma_np/model/rms_norm.py"
    assert f'href="../{shown.path}#L{shown.first}"' in shown._repr_html_()


def test_code_is_shown_in_a_fixed_width_font_and_as_it_is():
    shown = Lines("gemma_np/model/x.py", 1, "x: a < b  # 'c'")
    assert """<pre style="font-family: ui-monospace, monospace">x: a &lt; b  # 'c'</pre>""" in shown._repr_html_()


def test_a_whole_function_is_shown_without_its_docstring():
    shown = lines(rms_norm)
    assert shown.code.startswith("def rms_norm(")
    assert '"""' not in shown.code
    assert "[..., D]" not in shown.code
    assert shown.code.endswith("(1 + weight)")


def test_methods_and_classes_too():
    assert lines(Scope.__len__).code == "def __len__(self) -> int:\n    return sum(1 for _ in self)"
    assert lines(Scope, "class Scope").code == "class Scope(MutableMapping[str, Any]):"


def test_a_line_that_is_gone_is_noticed():
    with pytest.raises(ValueError, match="rms_norm: no line has 'variance'"):
        lines(rms_norm, "mean_square", "variance")


def test_the_package_may_be_installed_elsewhere(tmp_path):
    copy = tmp_path / "drive/tutorials/support/source.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(source.__file__, copy)
    assert module_at(copy).lines(rms_norm).path == "gemma_np/model/rms_norm.py"
