"""Small, randomly initialized models of many architectures of transformers."""

from __future__ import annotations

from typing import Any

import torch


class FirstOutput(torch.nn.Module):
    """A model that returns its first output alone."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits or hidden states."""
        return self.inner(x)[0]


def architectures() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Small, randomly initialized models of 16 architectures, with an input each."""
    import transformers as t

    ids, images = (
        torch.arange(24).reshape(2, 12) % 90 + 3,
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    base = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    text = {**base, "vocab_size": 100, "max_position_embeddings": 40}
    decoder = {**text, "num_key_value_heads": 2, "use_cache": False}
    patches = {**base, "image_size": 32, "patch_size": 8}
    small = {"bos_token_id": 1, "eos_token_id": 2}
    configs: dict[str, tuple[str, Any, torch.Tensor]] = {
        "bert": ("BertModel", t.BertConfig(**text), ids),
        "distilbert": (
            "DistilBertModel",
            t.DistilBertConfig(
                dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100
            ),
            ids,
        ),
        "roberta": ("RobertaModel", t.RobertaConfig(**text), ids),
        "albert": ("AlbertModel", t.AlbertConfig(**text, embedding_size=16), ids),
        "electra": ("ElectraModel", t.ElectraConfig(**text, embedding_size=16), ids),
        "mpnet": ("MPNetModel", t.MPNetConfig(**text), ids),
        "gpt2": (
            "GPT2LMHeadModel",
            t.GPT2Config(
                n_embd=32,
                n_layer=2,
                n_head=4,
                vocab_size=100,
                n_positions=40,
                use_cache=False,
                **small,
            ),
            ids,
        ),
        "llama": ("LlamaForCausalLM", t.LlamaConfig(**decoder), ids),
        "mistral": ("MistralForCausalLM", t.MistralConfig(**decoder), ids),
        "qwen2": ("Qwen2ForCausalLM", t.Qwen2Config(**decoder), ids),
        "gemma": ("GemmaForCausalLM", t.GemmaConfig(**decoder, head_dim=8), ids),
        "vit": ("ViTModel", t.ViTConfig(**patches), images),
        "deit": ("DeiTModel", t.DeiTConfig(**patches), images),
        "resnet": (
            "ResNetModel",
            t.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 16],
                depths=[1, 1],
                layer_type="basic",
            ),
            images,
        ),
        "convnext": (
            "ConvNextModel",
            t.ConvNextConfig(
                hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=4
            ),
            images,
        ),
        "segformer": (
            "SegformerModel",
            t.SegformerConfig(
                hidden_sizes=[8, 16, 16, 16],
                depths=[1] * 4,
                num_attention_heads=[1, 2, 2, 2],
            ),
            images,
        ),
    }
    made = {}
    for name, (cls, config, example) in configs.items():
        torch.manual_seed(0)
        made[name] = (FirstOutput(getattr(t, cls)(config).eval()), example)
    return made
