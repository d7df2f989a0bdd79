"""Round a 2-bit language model block by block: `python -m examples.reconstruction`.

Each block learns its rounding and its ranges from the error of its outputs (AutoRound).
"""

from __future__ import annotations

import octavo
from examples.tiny_llama import distance, model, sequences


def main() -> octavo.Quantized:
    net = model()
    batches = [{"input_ids": sequences(32, (1, 2, 3, 5), seed)} for seed in range(4)]
    unseen = sequences(64, (1, 2, 3, 5), seed=9)
    result = octavo.quantize_model(net, "int2-weight-only", calibration=batches)
    print(f"rounded: {distance(result.model, net, unseen):.3f} nats from float")
    for iterations in (10, 40, 160):
        scheme = f"int2-weight-only+autoround-block(iterations={iterations})"
        result = octavo.quantize_model(net, scheme, calibration=batches)
        far = distance(result.model, net, unseen)
        print(f"after {iterations} iterations a block: {far:.3f} nats")
    result.save("out/reconstruction")
    return result


if __name__ == "__main__":
    main()
