"""What authors of plugins import: everything for a backend, strategy, calibrator, algorithm,
transform, objective, criterion or exporter, from one place.

```python
from octavo.plugin import Calibrator, Part, PartConfig, hookimpl
```

These names stay where they are when octavo's own modules move. No framework is imported; what only
tests need (:class:`AdapterConformance`, :class:`StrategyConformance` and their cases,
:func:`simulate`) is imported when it is first used, since it needs pytest. ``docs/plugins.md``
shows a whole plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.core.authoring.companions import keep_companions_float
from octavo.core.authoring.compiled import CompiledCallable, CompiledCandidate
from octavo.core.authoring.established import established
from octavo.core.authoring.feeding import feed
from octavo.core.authoring.integer_bias import integer_bias
from octavo.core.authoring.lines import ledger_lines
from octavo.core.authoring.one_op import one_op_parameters
from octavo.core.authoring.recipes import (
    RECIPE_FILE,
    ledger_from_json,
    ledger_to_json,
    read_recipe,
    write_recipe,
)
from octavo.core.authoring.sites import (
    Absorbed,
    Flow,
    is_bias_shape,
    macs,
    shared_weights,
    unique_names,
)
from octavo.core.authoring.steps import reading_weight, step_factors, step_groups
from octavo.core.authoring.streams import channel_streams, rescaled_weights
from octavo.core.authoring.weights import WeightParts, weight_parts
from octavo.core.contract.adapter import (
    Adapter,
    Candidate,
    Opened,
    OpParameters,
    Session,
    Sink,
)
from octavo.core.contract.algorithm import (
    NeedsConfig,
    WeightAlgorithm,
    WeightConfig,
    WeightContext,
)
from octavo.core.contract.attribution import Step, by_op, owners_of, typical
from octavo.core.contract.calibrator import Calibrator, Observer, Probe
from octavo.core.contract.criterion import Criterion, SampleGoal, Verdict
from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.objective import Objective, Subject
from octavo.core.contract.parts import AdapterPart, Part, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.revision import REVISION, Revision
from octavo.core.contract.strategy import (
    WAIT,
    Believed,
    Foresight,
    Problem,
    RecipeSensitivity,
    Sensitivity,
    Strategy,
    SuggestsTransforms,
    Wait,
)
from octavo.core.contract.training import (
    TRAINING,
    Distillation,
    LowRank,
    QatModel,
    Reconstruction,
    Training,
)
from octavo.core.contract.transform import Observed, Rescaling
from octavo.core.errors import (
    AdapterFault,
    ConfigError,
    DataError,
    DeviceError,
    EvaluationError,
    MissingFramework,
    ModelError,
    NonFiniteWeight,
    OctavoError,
    PluginError,
    SchemeError,
    StoreError,
    UnsafeFile,
    nearest,
    raised_as,
)
from octavo.core.numerics.affine import (
    Array,
    QuantParams,
    affine_params,
    dequantize,
    integer_range,
    quantize,
)
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.channels import ChannelMap, Factors, channel_maps, is_online
from octavo.core.numerics.codec import choose_params, decode, encode
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.calls import Batch, Call
from octavo.core.values.capability import Capability, Offer, Realization
from octavo.core.values.coverage import unclaimed_of
from octavo.core.values.graph import (
    OP_TYPES,
    UNREACHED,
    Group,
    HeldWeight,
    InputInfo,
    ModelView,
    Op,
    Weight,
    tied_groups,
)
from octavo.core.values.layers import REST
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Measurement, Trial

if TYPE_CHECKING:
    from octavo.core.results.result import Quantized, Result
    from octavo.core.testing.conformance import (
        AdapterCase,
        AdapterConformance,
        StrategyCase,
        StrategyConformance,
    )
    from octavo.core.testing.simulator import Simulation, simulate
    from octavo.strategies.sequential import Sequential

__all__ = [
    # Cards: what a plugin's module hands over.
    "AdapterPart",
    "Part",
    "PartConfig",
    "PluginHost",
    "hookimpl",
    # A backend.
    "Adapter",
    "Applied",
    "Batch",
    "Call",
    "Candidate",
    "Capability",
    "ChannelMap",
    "Factors",
    "Group",
    "HeldWeight",
    "InputInfo",
    "ModelView",
    "OP_TYPES",
    "Offer",
    "Op",
    "OpParameters",
    "Opened",
    "REVISION",
    "Realization",
    "Revision",
    "Session",
    "Sink",
    "UNREACHED",
    "Weight",
    "channel_maps",
    "REST",
    "Step",
    "by_op",
    "is_online",
    "owners_of",
    "tied_groups",
    "typical",
    "unclaimed_of",
    # What every backend would write again.
    "Absorbed",
    "CompiledCallable",
    "CompiledCandidate",
    "channel_streams",
    "Flow",
    "RECIPE_FILE",
    "established",
    "feed",
    "integer_bias",
    "is_bias_shape",
    "keep_companions_float",
    "ledger_from_json",
    "ledger_lines",
    "ledger_to_json",
    "macs",
    "one_op_parameters",
    "WeightParts",
    "read_recipe",
    "reading_weight",
    "step_factors",
    "step_groups",
    "weight_parts",
    "rescaled_weights",
    "shared_weights",
    "unique_names",
    "write_recipe",
    # What a backend may learn from data.
    "Distillation",
    "LowRank",
    "QatModel",
    "Reconstruction",
    "TRAINING",
    "Training",
    # A strategy.
    "Believed",
    "Foresight",
    "Problem",
    "RecipeSensitivity",
    "Sensitivity",
    "Sequential",
    "Strategy",
    "SuggestsTransforms",
    "TuningSpace",
    "Unit",
    "WAIT",
    "Wait",
    # A calibrator, an algorithm, a transform.
    "Calibrator",
    "NeedsConfig",
    "Observed",
    "Observer",
    "Probe",
    "Rescaling",
    "WeightAlgorithm",
    "WeightConfig",
    "WeightContext",
    # An objective, a criterion, an exporter.
    "Criterion",
    "Measurement",
    "Objective",
    "Quantized",
    "Result",
    "SampleGoal",
    "Subject",
    "Verdict",
    # Values that all of them meet.
    "FLOAT",
    "OpScheme",
    "PartChoice",
    "QuantSpec",
    "Recipe",
    "Trial",
    # Arithmetic.
    "Array",
    "QuantParams",
    "QuantizedTensor",
    "affine_params",
    "choose_params",
    "decode",
    "dequantize",
    "encode",
    "integer_range",
    "pack",
    "quantize",
    "to_numpy",
    "unpack",
    # Errors: one family, each with the remedy in its message.
    "AdapterFault",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EvaluationError",
    "MissingFramework",
    "ModelError",
    "NonFiniteWeight",
    "OctavoError",
    "PluginError",
    "SchemeError",
    "StoreError",
    "UnsafeFile",
    "nearest",
    "raised_as",
    # Tests of a plugin: conformance kits, and problems with a known optimum.
    "AdapterCase",
    "AdapterConformance",
    "Simulation",
    "StrategyCase",
    "StrategyConformance",
    "simulate",
]

_LATE = {
    "AdapterCase": "octavo.core.testing.conformance",
    "AdapterConformance": "octavo.core.testing.conformance",
    "Quantized": "octavo.core.results.result",
    "Result": "octavo.core.results.result",
    "Sequential": "octavo.strategies.sequential",
    "Simulation": "octavo.core.testing.simulator",
    "StrategyCase": "octavo.core.testing.conformance",
    "StrategyConformance": "octavo.core.testing.conformance",
    "simulate": "octavo.core.testing.simulator",
}
"""Name -> module, for what is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'octavo.plugin' has no attribute {name!r}")
    found = getattr(import_module(_LATE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
