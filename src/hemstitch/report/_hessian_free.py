"""What the steps of a Hessian-free run did: conjugate gradients and why they stopped, damping, samples, time."""

from collections.abc import Sequence

from hemstitch.report._html import Html, element
from hemstitch.report._plots import Series, line_plot, scatter_plot
from hemstitch.report._run import Run

_STOPPED = "cg_stopped_by_"
_ROLES = ("gradient", "curvature", "evaluate")
_TOGETHER = {
    "Samples per pass": [f"samples_{role}" for role in _ROLES[:2]],
    "Seconds of a step": [f"seconds_{role}" for role in _ROLES],
    "CPU seconds of a step": [f"cpu_seconds_{role}" for role in _ROLES],
    "Passes of a step": [f"passes_{role}" for role in _ROLES],
    "Held-out loss, before and after the step": ["held_out_loss", "held_out_loss_after"],
    "Damping": ["damping"],
    "Reduction ratio (loss over model)": ["rho"],
    "Length of the step, 0: refused": ["step_length"],
    "Squared relative error of the gradient": ["gradient_noise"],
}
"""Caption -> metrics of the training part that share a picture."""


def is_hessian_free(name: str) -> bool:
    """Whether a metric is drawn here."""
    return name.startswith((_STOPPED, "cg_")) or name == "accepted" or any(name in each for each in _TOGETHER.values())


def hessian_free_plots(run: Run) -> Html | None:
    """The pictures, or None where the run took no such steps."""
    if ("train", "cg_iterations") not in run.curves:
        return None
    plots = [_iterations(run)]
    for caption, names in _TOGETHER.items():
        series = _lines(run, names)
        plots += [line_plot(series, title=caption, x_label="steps")] if series else []
    return element("div", *plots, class_="plots")


def _iterations(run: Run) -> Html:
    """Iterations of each step as a dot, coloured by the reason for which they stopped."""
    curve = run.curves["train", "cg_iterations"]
    iterations = dict(zip(curve.step.tolist(), curve.value.tolist()))
    reasons = sorted(name for split, name in run.curves if split == "train" and name.startswith(_STOPPED))
    series = []
    for color, name in enumerate(reasons):
        steps = run.curves["train", name].step.tolist()
        label = f"stopped by {name.removeprefix(_STOPPED).replace('_', ' ')}"
        series.append(Series(x=steps, y=[iterations[step] for step in steps], label=label, color=color))
    return scatter_plot(series, title="Conjugate gradient iterations", x_label="steps")


def _lines(run: Run, names: Sequence[str]) -> list[Series]:
    known = [(name, run.curves["train", name]) for name in names if ("train", name) in run.curves]
    return [
        Series(x=curve.step, y=curve.value, label=_label(name) if len(known) > 1 else "", color=color)
        for color, (name, curve) in enumerate(known)
    ]


def _label(name: str) -> str:
    """What sets a metric apart from the others of its picture."""
    return "before" if name == "held_out_loss" else name.split("_")[-1]
