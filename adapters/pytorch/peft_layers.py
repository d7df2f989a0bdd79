"""peft over a quantized base, where earlier documentation found it.

New code asks the session: ``session.training().add_low_rank(candidate, peft.LoraConfig(r=8))``.
"""

from __future__ import annotations

from .training.peft_layers import load_peft_model, peft_model

__all__ = ["load_peft_model", "peft_model"]
