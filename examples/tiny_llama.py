"""A Llama of 100,000 parameters, trained in seconds to go on counting: no downloads."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

NUMBERS = 64


def sequences(count: int, steps: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return rows of 16 numbers modulo 64; each row counts by one of the steps.

    Args:
        count: How many rows.
        steps: What they count by.
        seed: Of the draw.
    """
    draw = torch.Generator().manual_seed(seed)
    start = torch.randint(NUMBERS, (count, 1), generator=draw)
    chosen = torch.randint(len(steps), (count, 1), generator=draw)
    step = torch.tensor(steps)[chosen]
    return (start + step * torch.arange(16)) % NUMBERS


def model(updates: int = 150) -> LlamaForCausalLM:
    """Return the model, trained to count by 1, 2, 3 and 5."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUMBERS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    net = LlamaForCausalLM(config)
    ids = sequences(512, (1, 2, 3, 5))
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for update in range(updates):
        rows = ids[torch.arange(64 * update, 64 * update + 64) % len(ids)]
        loss = net(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def loss_on(net: nn.Module, ids: torch.Tensor) -> float:
    """Return a model's mean loss of a token."""
    with torch.no_grad():
        return net(input_ids=ids, labels=ids).loss.item()


def distance(net: nn.Module, teacher: nn.Module, ids: torch.Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of a token's prediction from the teacher's."""
    with torch.no_grad():
        goal = torch.log_softmax(teacher(input_ids=ids).logits, -1)
        own = torch.log_softmax(net(input_ids=ids).logits, -1)
    return (goal.exp() * (goal - own)).sum(-1).mean().item()
