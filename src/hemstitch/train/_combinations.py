"""Sections of a recipe that do not go together, and why: refused before any data are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hemstitch.errors import ConfigError

Rule = tuple[Callable[[Any], bool], str]


def _is(recipe: Any, section: str, kind: str) -> bool:
    return recipe.kinds.get(section) == kind


def _backward(recipe: Any) -> bool:
    return _is(recipe, "order", "backward")


def _order_average(recipe: Any) -> bool:
    return _is(recipe, "order", "order-average")


def _averaged(recipe: Any) -> bool:
    return not _is(recipe, "average", "none")


def _reordered(recipe: Any) -> bool:
    return not _is(recipe, "order", "forward")


def _parallel(recipe: Any) -> bool:
    return not _is(recipe, "parallel", "local")


def _masked(recipe: Any) -> bool:
    return _is(recipe, "data", "speech") and recipe.augment.masks


RULES: list[Rule] = [
    (
        lambda r: _backward(r) and r.backstitch.scale != 0,
        "order.kind = 'backward' with backstitch: its interval and warm-up count steps, and a batch that is applied "
        "again at another place has no such count. Set backstitch.scale = 0",
    ),
    (
        lambda r: _reordered(r) and _is(r, "update", "hessian-free"),
        "order.kind = 'backward' or 'order-average' with update.kind = 'hessian-free': its steps are no sequence of "
        "small batches. Set order.kind = 'forward'",
    ),
    (
        lambda r: _reordered(r) and _is(r, "data", "text"),
        "order.kind = 'backward' or 'order-average' with data.kind = 'text': the network's state is carried from one "
        "batch to the next, so that batches have no other order. Set order.kind = 'forward'",
    ),
    (
        lambda r: _reordered(r) and _parallel(r),
        "order.kind = 'backward' or 'order-average' with parallel.kind other than 'local': each worker would have an "
        "order of its own. Use one of the two",
    ),
    (
        lambda r: _backward(r) and _averaged(r),
        "order.kind = 'backward' and an [average]: either is a network to look at. Set average.kind = 'none'",
    ),
    (
        lambda r: _averaged(r) and _parallel(r),
        "[average] with parallel.kind other than 'local': the networks of several workers are combined by [parallel]. "
        "Set average.kind = 'none'",
    ),
    (
        lambda r: _averaged(r) and _is(r, "update", "hessian-free"),
        "[average] with update.kind = 'hessian-free': it takes only steps that lower the loss, and a mean over them "
        "lags behind the last. Set average.kind = 'none'",
    ),
    (
        lambda r: _backward(r) and r.order.mode == "exact" and r.train.non_finite == "roll-back",
        "order.mode = 'exact' with train.non_finite = 'roll-back': batches are applied only where one looks, when the "
        "step that brought a bad one is long past. Use 'skip', which leaves such batches out, or 'raise'",
    ),
    (
        lambda r: _order_average(r) and _is(r, "gradient", "natural"),
        "order.kind = 'order-average' with gradient.kind = 'natural': the term needs second derivatives of the plain "
        "gradient. Set gradient.kind = 'plain'",
    ),
    (
        lambda r: _order_average(r) and r.kinds.get("criterion", "cross-entropy") != "cross-entropy",
        "order.kind = 'order-average' needs second derivatives of the criterion, which only criterion.kind = "
        "'cross-entropy' has",
    ),
    (
        lambda r: _order_average(r) and r.train.batch_size < r.order.num_parts,
        "order.num_parts is larger than train.batch_size: a part needs at least one sample",
    ),
    (
        lambda r: _masked(r) and _is(r, "update", "hessian-free"),
        "masks of [augment] with update.kind = 'hessian-free': gradient, curvature and step would each be taken of "
        "another loss. Copies (augment.speed) do; set augment.time_masks = 0 and augment.frequency_masks = 0",
    ),
    (
        lambda r: _masked(r) and getattr(r.criterion, "unit", "") == "frame",
        "masks of [augment] with criterion.unit = 'frame': the outer gradient is of the whole utterance, unmasked. Set "
        "criterion.unit = 'utterance', or augment.time_masks = 0 and augment.frequency_masks = 0",
    ),
    (
        lambda r: _is(r, "data", "speech") and r.decode.average_shifts and not _is(r, "criterion", "lattice-free-mmi"),
        "decode.average_shifts is for criterion.kind = 'lattice-free-mmi', whose networks skip frames and are trained "
        "from each first frame. Set it to false",
    ),
]
"""(whether it applies, what to say)"""


def check_combination(recipe: Any) -> None:
    """Refuse sections that do not go together.

    Raises:
        ConfigError: says which do not, why, and what to set instead.
    """
    for applies, message in RULES:
        if applies(recipe):
            raise ConfigError(message)
