"""octavo: accuracy-aware quantization tuning for PyTorch, ONNX and NumPy models.

```python
result = octavo.autotune(model, eval_fn, calibration=data, tolerance=0.01)
```
"""

from __future__ import annotations

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
    "Evaluation",
    "Measurement",
    "OctavoError",
    "OpScheme",
    "PartChoice",
    "Progress",
    "QuantSpec",
    "RaceConfig",
    "SampleScore",
    "Quantized",
    "Recipe",
    "Result",
    "Trial",
    "TuningConfig",
    "autotune",
    "load",
    "quantize_model",
]
