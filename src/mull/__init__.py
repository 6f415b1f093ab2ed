"""mull: own your reasoning model. `mull.load("runs/demo").generate("...")` is what the command line does.

Importing this loads nothing else.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mull.api import Model

__version__ = "0.1.0"


def load(path: str | PathLike[str], device: str = "auto", exact: bool = False) -> Model:
    """A model that answers: a run's result, one model of a run ("runs/demo:student"), a model directory, a GGUF file,
    or one that has been pulled ("smollm2", "org/name").

    With `exact` an answer has the same bits in any company and order; it is slower, most of all for one question.

    Raises UserError, a ValueError of one helpful sentence, where there is none or it is damaged.
    """
    from mull.api import Model

    return Model.load(path, device, exact)


__all__ = ["__version__", "load"]
