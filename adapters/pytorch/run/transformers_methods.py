"""What the methods of a transformers model do once its layers are quantized.

Those that would go wrong without a word are refused.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from octavo.core.errors import SchemeError

_REMEDIES = {
    "save_pretrained": (
        "the tensors have octavo's names, and from_pretrained would make a random model of them: "
        "use q.save(folder) and octavo.load(folder), "
        "or q.export('compressed-tensors', folder), which from_pretrained reads"
    ),
    "push_to_hub": (
        "it would upload what from_pretrained reads as a random model: "
        "use q.export('compressed-tensors', folder) and upload that folder"
    ),
    "resize_token_embeddings": (
        "its tables are held in few bits and have the size that they were quantized with: "
        "resize the float model, then quantize it again"
    ),
}
"""Method -> why it is refused, and what to do."""


class Refusal:
    """Stands for a method of one model.

    Args:
        name: The method's.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise.

        Raises:
            SchemeError: Always, with the remedy.
        """
        raise SchemeError(
            f"{self.name} does not work on a quantized model: {_REMEDIES[self.name]}"
        )


def refuse_what_fails(module: nn.Module) -> nn.Module:
    """Let a quantized model of transformers refuse what only its float form can do; return it."""
    for name in _REMEDIES:
        if callable(getattr(type(module), name, None)):
            module.__dict__[name] = Refusal(name)
    return module
