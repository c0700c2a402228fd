"""Figures that change with sliders while a notebook is live, and are plain pictures everywhere else."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Slider:
    """The values from low to high that a parameter of a figure can have; its label says the unit."""

    label: str
    start: float
    low: float
    high: float
    step: float = 1


def explore(draw: Callable[..., None], **parameters: Slider) -> None:
    """Show the figure that `draw(figure, **values)` draws, with a slider above it for each parameter.

    A slider that moves draws the figure again. Where none can move, because ipywidgets is not there or the notebook is
    being built (which sets SLIDERS_DISABLE), the figure of the first values is all there is.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    values = {name: slider.start for name, slider in parameters.items()}

    def drawn():
        figure = plt.figure()
        plt.close(figure)  # or pyplot would show it once more at the end of the cell
        draw(figure, **values)
        return figure

    disabled = "SLIDERS_DISABLE" in os.environ
    if disabled or not find_spec("ipywidgets"):
        if not disabled:
            print("For sliders here: pip install ipywidgets, then start Jupyter again.")
        display(drawn())
        return

    controls = {name: _control(slider) for name, slider in parameters.items()}
    _show_controls(list(controls.values()))
    shown = display(drawn(), display_id=True)

    for name, control in controls.items():

        def move(change: dict, name: str = name) -> None:
            values[name] = change["new"]
            shown.update(drawn())

        control.observe(move, "value")


def _control(slider: Slider):
    """Return the widget of a slider: of whole numbers, if its step is one."""
    import ipywidgets

    kind = ipywidgets.IntSlider if isinstance(slider.step, int) else ipywidgets.FloatSlider
    return kind(
        slider.start,
        min=slider.low,
        max=slider.high,
        step=slider.step,
        description=slider.label,
        style={"description_width": "16em"},
        layout={"width": "min(40em, 100%)"},
    )


def _show_controls(controls: list) -> None:
    """Display widgets, one below the other. Where they cannot be shown, a sentence stands for them."""
    import ipywidgets
    from IPython.display import display

    views = ipywidgets.VBox(controls)._repr_mimebundle_()
    display(views | {"text/plain": "Run this cell in Jupyter to see its sliders."}, raw=True)
