"""octavo: accuracy-aware quantization tuning for PyTorch, ONNX and NumPy models.

```python
result = octavo.autotune(model, eval_fn, calibration=data, tolerance=0.01)
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.core.batches import Batches
    from octavo.core.calls import Call
    from octavo.core.config import TuningConfig
    from octavo.core.errors import OctavoError
    from octavo.core.evaluation import ArrayModel, Evaluation
    from octavo.core.loop import Progress
    from octavo.core.racing import RaceConfig, SampleScore
    from octavo.core.recipe import Recipe
    from octavo.core.result import Quantized, Result
    from octavo.core.run import autotune, load, quantize_model
    from octavo.core.scheme import OpScheme, PartChoice, QuantSpec
    from octavo.core.trial import Measurement, Trial

__version__ = "0.1.0"

__all__ = [
    "ArrayModel",
    "Batches",
    "Call",
    "Evaluation",
    "Measurement",
    "OctavoError",
    "OpScheme",
    "PartChoice",
    "Progress",
    "QuantSpec",
    "Quantized",
    "RaceConfig",
    "Recipe",
    "Result",
    "SampleScore",
    "Trial",
    "TuningConfig",
    "autotune",
    "load",
    "quantize_model",
]

_HOME = {
    "ArrayModel": "evaluation",
    "Batches": "batches",
    "Call": "calls",
    "Evaluation": "evaluation",
    "Measurement": "trial",
    "OctavoError": "errors",
    "OpScheme": "scheme",
    "PartChoice": "scheme",
    "Progress": "loop",
    "QuantSpec": "scheme",
    "Quantized": "result",
    "RaceConfig": "racing",
    "Recipe": "recipe",
    "Result": "result",
    "SampleScore": "racing",
    "Trial": "trial",
    "TuningConfig": "config",
    "autotune": "run",
    "load": "run",
    "quantize_model": "run",
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
