"""octavo: accuracy-aware quantization tuning for PyTorch, ONNX and NumPy models.

```python
result = octavo.autotune(model, eval_fn, calibration=data, tolerance=0.01)
```
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.core.calibration.batches import Batches
    from octavo.core.errors import OctavoError
    from octavo.core.opening.config import TuningConfig
    from octavo.core.results.result import Quantized, Result
    from octavo.core.scoring.evaluation import ArrayModel, Evaluation
    from octavo.core.scoring.racing import RaceConfig, SampleScore
    from octavo.core.tuning.learning.distilling import distill
    from octavo.core.tuning.learning.qat import convert, prepare_qat
    from octavo.core.tuning.learning.updates import (
        load_adapters,
        merge_adapters,
        qlora,
        save_adapters,
    )
    from octavo.core.tuning.progress import Phase, Progress
    from octavo.core.tuning.run import Run as Run
    from octavo.core.tuning.run import autotune, load, quantize_model
    from octavo.core.tuning.run import prepare as prepare
    from octavo.core.tuning.telling.display import ProgressDisplay
    from octavo.core.values.calls import Call
    from octavo.core.values.recipe import Recipe
    from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
    from octavo.core.values.trial import Measurement, Trial

__version__ = "0.1.0"

# A library says nothing where nobody listens; docs/logging.md shows how to.
logging.getLogger("octavo").addHandler(logging.NullHandler())

__all__ = [
    "ArrayModel",
    "Batches",
    "Call",
    "Evaluation",
    "Measurement",
    "OctavoError",
    "OpScheme",
    "PartChoice",
    "Phase",
    "Progress",
    "ProgressDisplay",
    "QuantSpec",
    "Quantized",
    "RaceConfig",
    "Recipe",
    "Result",
    "SampleScore",
    "Trial",
    "TuningConfig",
    "autotune",
    "convert",
    "distill",
    "load",
    "load_adapters",
    "merge_adapters",
    "prepare_qat",
    "qlora",
    "quantize_model",
    "save_adapters",
]

# ``prepare`` and ``Run`` are for callers who own the loop (docs/strategies.md): found by name, and
# no part of what ``from octavo import *`` gives.
_HOME = {
    "ArrayModel": "scoring.evaluation",
    "Batches": "calibration.batches",
    "Call": "values.calls",
    "Evaluation": "scoring.evaluation",
    "Measurement": "values.trial",
    "OctavoError": "errors",
    "OpScheme": "values.scheme",
    "PartChoice": "values.scheme",
    "Phase": "tuning.progress",
    "Progress": "tuning.progress",
    "ProgressDisplay": "tuning.telling.display",
    "QuantSpec": "values.scheme",
    "Quantized": "results.result",
    "RaceConfig": "scoring.racing",
    "Recipe": "values.recipe",
    "Result": "results.result",
    "Run": "tuning.run",
    "SampleScore": "scoring.racing",
    "Trial": "values.trial",
    "TuningConfig": "opening.config",
    "autotune": "tuning.run",
    "convert": "tuning.learning.qat",
    "distill": "tuning.learning.distilling",
    "load": "tuning.run",
    "load_adapters": "tuning.learning.updates",
    "merge_adapters": "tuning.learning.updates",
    "prepare": "tuning.run",
    "prepare_qat": "tuning.learning.qat",
    "qlora": "tuning.learning.updates",
    "quantize_model": "tuning.run",
    "save_adapters": "tuning.learning.updates",
}


def __getattr__(name: str) -> Any:
    # Each name is imported on first use: `import octavo` costs milliseconds, wherever it is done.
    if name not in _HOME:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    found = getattr(import_module(f"octavo.core.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
