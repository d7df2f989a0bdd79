"""Train a network with 2-bit weights and 4-bit activations: `python -m examples.qat`.

Post-training quantization loses a digit in five at these widths. An ordinary loop over the prepared
module brings them back.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import octavo


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(288, 10)),
    )


def train(module: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float) -> None:
    """Train any module: what is prepared for quantization is one like any other."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for epoch in range(4):
        losses = []
        for rows in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(module(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")


def accuracy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return (module(x).argmax(1) == y).float().mean().item()


def main() -> octavo.Quantized:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    learn, test = (x[:1200], y[:1200]), (x[1200:], y[1200:])
    net = network()
    print("the float model")
    train(net, *learn, rate=3e-3)
    net.eval()

    base = octavo.quantize_model(
        net, "w2a4-static", calibration=[(x[:200],)], simulated=True
    )
    module = octavo.prepare_qat(base, start="lsq")
    print("quantization-aware")
    train(module, *learn, rate=3e-3)
    result = octavo.convert(module)

    print(result.ledger.by_type())
    for name, model in (
        ("float", net),
        ("post-training", base.model),
        ("trained", result.model),
    ):
        print(f"{name:>14}: accuracy {accuracy(model, *test):.3f}")
    result.save("out/qat")
    return result


if __name__ == "__main__":
    main()
