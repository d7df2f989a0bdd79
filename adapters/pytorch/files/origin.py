"""What a candidate was made from, which its files hold beside float tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.adapters.pytorch.capture.links import InputMaps
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.recipe import Recipe


@dataclass(frozen=True)
class Origin:
    """What a candidate carries out, over which view of which model.

    Attributes:
        recipe: What was carried out.
        facts: How the model was seen.
        parameters: Op name -> what the core decided.
        biases: Op name -> bias as the op uses it.
        factors: Op name -> what it does to its input's channels first.
    """

    recipe: Recipe
    facts: Mapping[str, Any]
    parameters: Mapping[str, OpParameters] = field(default_factory=dict)
    biases: Mapping[str, torch.Tensor | None] = field(default_factory=dict)
    factors: InputMaps = field(default_factory=dict)
