"""Distill a 2-bit language model from its float model: `python -m examples.distill`."""

from __future__ import annotations

import octavo
from examples.tiny_llama import distance, model, sequences


def main() -> octavo.Quantized:
    net = model()
    batches = [{"input_ids": sequences(32, (1, 2, 3, 5), seed)} for seed in range(4)]
    unseen = sequences(64, (1, 2, 3, 5), seed=9)
    result = octavo.quantize_model(net, "int2-weight-only", calibration=batches)
    print(f"rounded: {distance(result.model, net, unseen):.3f} nats from float")
    for total in (20, 40, 60):
        # Any other model with the same inputs may be the teacher.
        result = octavo.distill(result, net, batches, steps=20)
        far = distance(result.model, net, unseen)
        print(f"after {total} steps: {far:.3f} nats")
    # The same by name, with the float model as the teacher:
    named = octavo.quantize_model(
        net, "int2-weight-only+distill(steps=60)", calibration=batches
    )
    print(f"by name: {distance(named.model, net, unseen):.3f} nats")
    result.save("out/distill")
    return result


if __name__ == "__main__":
    main()
