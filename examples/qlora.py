"""Train low-rank updates over a 4-bit language model with transformers' Trainer: `python -m
examples.qlora`.

The model can count by 1, 2, 3 and 5. The updates teach it to count by 7, while its weights stay in
nf4. Then they are saved, merged into a float model, and kept over the quantized base.
"""

from __future__ import annotations

import torch
from transformers import Trainer, TrainingArguments

import octavo
from examples.tiny_llama import loss_on, model, sequences


def main() -> octavo.Quantized:
    net = model()
    known, new = sequences(32, (1, 2, 3, 5), seed=1), sequences(256, (7,))
    base = octavo.quantize_model(net, "qlora", calibration=[{"input_ids": known}])
    print(f"the base, in nf4: loss {loss_on(base.model, new[:32]):.3f} counting by 7")

    torch.manual_seed(0)
    module = octavo.qlora(base, rank=8, alpha=16.0, dropout=0.05)
    settings = TrainingArguments(
        output_dir="out/qlora-trainer",
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_steps=15,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in new]
    Trainer(module, settings, train_dataset=rows).train()
    module.eval()
    print(f"trained: loss {loss_on(module, new[:32]):.3f}")

    folder = octavo.save_adapters(module, "out/qlora-adapters")
    again = octavo.load_adapters(base, folder)
    print(f"saved in peft's format and loaded: loss {loss_on(again, new[:32]):.3f}")

    merged = octavo.merge_adapters(module)
    print(f"merged, in float: loss {loss_on(merged, new[:32]):.3f}")
    smaller = octavo.quantize_model(
        merged, "int8-weight-only", calibration=[{"input_ids": known}]
    )
    print(f"merged, quantized again: loss {loss_on(smaller.model, new[:32]):.3f}")

    kept = octavo.convert(module)
    print(f"kept over the base: loss {loss_on(kept.model, new[:32]):.3f}")
    kept.save("out/qlora")
    return kept


if __name__ == "__main__":
    main()
