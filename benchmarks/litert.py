"""LiteRT: octavo's result beside TensorFlow's own converter and ai-edge-quantizer, in one run.

Three Keras models that learn the digits: the example's convolution network; the same with channels
rescaled, which changes no function and costs ranges per tensor their accuracy; a transformer
encoder. Each is timed as plain LiteRT runs it, all files of a model in turn, with two threads.

Needs octavo[tensorflow] and scikit-learn; ai-edge-quantizer takes part where it is installed.
`python -m benchmarks.litert [network ...]`, with names of networks: digits, rescaled, encoder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import octavo
from examples import tune_keras
from examples.tune_keras import Digits

THREADS = 2
BATCH = 32
ROUNDS = 25
SECONDS = 0.05
"""Of each file in each round."""

TOLERANCE = 0.01
SETTINGS = {
    "max_trials": 16,
    "accuracy": {"metric": "accuracy", "tolerance": TOLERANCE},
    "objective": {"minimise": [{"kind": "latency", "batch_size": BATCH}, "size"]},
    "backends": [{"kind": "litert", "threads": THREADS}],
}

SCHEMES = {
    "digits": "int8-static",
    "rescaled": "int8-static+cle",
    "encoder": "int8-static",
}
"""Network -> the scheme that is applied to all of it."""

Files = dict[str, bytes]
"""Who made it -> a .tflite file."""


def rescaled(model: Any) -> Any:
    """Return the network with its channels rescaled by 1/30 to 30: the same function.

    ReLU lets a factor of a channel through: what the norm before it multiplies, the kernel after it
    divides.
    """
    rng = np.random.default_rng(0)
    pairs = [("stem_norm", "narrow"), ("block_first_norm", "block_second")]
    for norm, after in (*pairs, ("wide_norm", "deep")):
        gamma, beta, *statistics = model.get_layer(norm).get_weights()
        factors = np.exp(rng.uniform(-1, 1, gamma.shape) * np.log(30)).astype("f4")
        layer = model.get_layer(norm)
        layer.set_weights([gamma * factors, beta * factors, *statistics])
        kernel, *others = model.get_layer(after).get_weights()
        kernel = kernel / factors[:, None]
        model.get_layer(after).set_weights([kernel, *others])
    return model


def encoder() -> Any:
    """Return an untrained transformer encoder: the rows of an image are its tokens."""
    from keras import Input, Model, layers

    width, heads = 96, 4
    image = Input((32, 32, 1), name="image")
    x = layers.Dense(width, name="embed")(layers.Reshape((32, 32))(image))
    places = layers.Embedding(32, width, name="places")(np.arange(32))
    x = x + places[None]
    for block in range(2):
        name = f"block_{block}"
        y = layers.LayerNormalization(name=f"{name}_norm")(x)
        attention = layers.MultiHeadAttention(
            heads, width // heads, name=f"{name}_attention"
        )
        x = x + attention(y, y)
        y = layers.LayerNormalization(name=f"{name}_norm2")(x)
        y = layers.Dense(4 * width, activation="gelu", name=f"{name}_up")(y)
        x = x + layers.Dense(width, name=f"{name}_down")(y)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return Model(image, layers.Dense(10, name="classifier")(x))


def converted(model: Any, digits: Digits) -> Files:
    """Return what TensorFlow's converter and ai-edge-quantizer make of a model."""
    import tensorflow as tf

    def samples() -> Iterator[list[np.ndarray]]:
        for start in range(128):
            yield [digits.train_x[start : start + 1]]

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)

        def convert(**settings: Any) -> bytes:
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            for name, value in settings.items():
                setattr(converter, name, value)
            return bytes(converter.convert())

        smaller = {"optimizations": [tf.lite.Optimize.DEFAULT]}
        files = {
            "float": convert(),
            "TensorFlow static int8": convert(
                **smaller, representative_dataset=samples
            ),
            "TensorFlow dynamic range": convert(**smaller),
        }
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError:
        print("ai-edge-quantizer is not installed; it takes no part")
        return files
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.tflite")
        path.write_bytes(files["float"])
        dynamic = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32())
        files["ai-edge-quantizer dynamic"] = bytes(dynamic.quantize().quantized_model)
    return files


def runner(data: bytes, batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that plain LiteRT computes a file with."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=THREADS)
    given = interpreter.get_input_details()[0]
    index = given["index"]
    interpreter.resize_tensor_input(index, (batch, *given["shape"][1:]))
    interpreter.allocate_tensors()
    returned = interpreter.get_output_details()[0]["index"]

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(index, x)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(returned))

    return run


def saved_file(result: Any) -> bytes:
    """Return the .tflite file of a result that is saved."""
    with tempfile.TemporaryDirectory() as folder:
        saved = result.save(Path(folder) / "saved")
        return next(Path(saved).rglob("model.tflite")).read_bytes()


def timed(files: Mapping[str, bytes], x: np.ndarray) -> dict[str, list[float]]:
    """Return milliseconds of a call in each round; the files take turns within a round."""
    runners = {name: runner(data, len(x)) for name, data in files.items()}
    found: dict[str, list[float]] = {name: [] for name in files}
    for turn in range(ROUNDS + 1):
        for name, run in runners.items():
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < SECONDS:
                run(x)
                calls += 1
            if turn:  # the first warms up
                found[name].append(1000 * (time.perf_counter() - start) / calls)
    return found


def faster(times: Mapping[str, list[float]], one: str, other: str) -> list[float]:
    """Return the quartiles, over the rounds, of how many times as fast one is as another."""
    pairs = zip(times[other], times[one], strict=True)
    return quantiles([slow / fast for slow, fast in pairs], n=4)


def compared(title: str, model: Any, digits: Digits, scheme: str) -> list[str]:
    """Tune a model, print all figures of it; return the bars that it misses.

    Args:
        title: The model's name.
        model: Keras' own.
        digits: Data.
        scheme: What is applied to all of it, as TensorFlow's static int8 is, beside the search.
    """
    print(f"\n{title}", flush=True)
    files = converted(model, digits)
    result = octavo.autotune(model, digits.accuracy, digits.train_x[:128], SETTINGS)
    files["octavo"] = saved_file(result)
    whole = octavo.quantize_model(model, scheme, digits.train_x[:128])
    full = f"octavo {scheme}"
    files[full] = saved_file(whole)
    x = np.ascontiguousarray(digits.test_x[:BATCH])
    times = timed(files, x)
    scores = {}
    for name, data in files.items():
        run = runner(data, len(digits.test_x))
        scores[name] = digits.accuracy(run).value
        low, middle, high = faster(times, name, "float")
        print(
            f"  {name:26} {middle:5.2f} [{low:.2f}, {high:.2f}] x float  "
            f"{median(times[name]):7.2f} ms  "
            f"accuracy {scores[name]:.4f}  {len(data) / 1000:7.1f} kB",
            flush=True,
        )
    for name, line in result.ledger.items():
        print(f"    {name:40} {line.realization:9} {line.applied}  {line.reason}")
    static = "TensorFlow static int8"
    goal = (1 - TOLERANCE) * scores["float"]
    keeps = "keeps" if scores[static] >= goal else "LOSES"
    print(f"  {static} {keeps} the goal: {scores[static]:.4f} of {goal:.4f}")
    missed = []
    for name in ("octavo", full):
        low, ratio, high = faster(times, name, static)
        print(f"  {name} is {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as it")
        # Where the rounds disagree about who is faster, the two are equally fast.
        if high < 1:
            missed.append(f"{title}: {name} is {ratio:.2f} of TensorFlow's static int8")
        if scores[name] < goal:
            missed.append(f"{title}: {name} has {scores[name]:.4f} under {goal:.4f}")
    return missed


def main() -> int:
    """Compare the networks that are named, or all."""
    if find_spec("tensorflow") is None:
        print('left out: pip install "octavo[tensorflow]", as make demo-keras does')
        return 0
    digits = tune_keras.data()
    asked = sys.argv[1:] or list(SCHEMES)
    missed = []
    for name in asked:
        if name == "encoder":
            model = tune_keras.trained(digits, encoder(), epochs=12)
        else:
            model = tune_keras.trained(digits, tune_keras.network())
        if name == "rescaled":
            model = rescaled(model)
        missed += compared(name, model, digits, SCHEMES[name])
    print("\nmissed: " + ("; ".join(missed) or "no bar"))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
