"""Models of TensorFlow and Keras: converted once, in the user's words. Needs octavo[tensorflow]."""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("ai_edge_litert")
tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: make test-tensorflow runs these"
)

import octavo  # noqa: E402
from octavo.core.contract.plugins import PluginHost  # noqa: E402
from octavo.core.opening.opening import open_model  # noqa: E402
from octavo.plugin import ModelError  # noqa: E402

keras = tf.keras
layers = keras.layers
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(5, 8, 8, 1)).astype(np.float32),
    "extra": RNG.normal(size=(5, 4)).astype(np.float32),
}


def network():
    """Two named inputs, in another order than the alphabet's; batch norm, separable, residual."""
    keras.utils.set_random_seed(0)
    image, extra = keras.Input((8, 8, 1), name="image"), keras.Input((4,), name="extra")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.SeparableConv2D(8, 3, padding="same", name="apart")(x)
    x = layers.ReLU()(layers.Add(name="residual")([x, layers.BatchNormalization()(y)]))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Concatenate()([x, extra])
    answer = layers.Dense(3, activation="softmax", name="head")(x)
    model = keras.Model([image, extra], {"answer": answer})
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(RNG.normal(size=shape) * 0.1)
            layer.moving_variance.assign(RNG.uniform(0.5, 2, size=shape))
    return model


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def expected(model):
    return np.asarray(model(BATCH)["answer"])


def opened(source, example=None):
    return open_model(source, PluginHost(third_party=False), example=example)


@pytest.fixture(scope="module")
def converted(model):
    return opened(model)


@pytest.mark.parametrize("form", [".keras", ".h5", "folder", "loaded"])
def test_each_form_computes_what_keras_does(form, model, converted, expected, tmp_path):
    if form in (".keras", ".h5"):
        source = tmp_path / f"model{form}"
        model.save(source)
    else:
        model.export(tmp_path, verbose=False)
        source = tmp_path if form == "folder" else tf.saved_model.load(str(tmp_path))
    found = opened(source)
    assert {info.name for info in found.view.inputs} == set(BATCH)
    (answer,) = found.session.reference().run(BATCH)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    if form == ".keras":
        assert found.session.fingerprint() == converted.session.fingerprint()


def test_inputs_come_in_the_order_of_the_call(converted, expected):
    assert [info.name for info in converted.view.inputs] == ["image", "extra"]
    answer = converted.session.reference().run((BATCH["image"], BATCH["extra"]))[0]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_ops_have_the_names_of_layers_and_batch_norm_is_folded(converted):
    ops = {op.name: op.type for op in converted.view.ops}
    assert ops["stem"] == "conv" and ops["head"] == "linear" and "residual" in ops
    assert not any("norm" in name or "Stateful" in name for name in ops)


def test_a_quantized_result_is_close_and_loads_without_tensorflow(
    model, expected, tmp_path
):
    data = tf.data.Dataset.from_tensor_slices(BATCH).batch(2)
    found = octavo.quantize_model(model, "int8-static", data)
    assert found.ledger["stem"].realization == "kernel"
    assert found.ledger["stem"].applied.mode == "static"
    batch = {name: tf.constant(array) for name, array in BATCH.items()}
    np.testing.assert_allclose(found.model(batch), expected, atol=0.05)
    found.save(tmp_path / "out")
    again = octavo.load(tmp_path / "out")
    np.testing.assert_array_equal(again(batch), found.model(batch))


def test_a_function_is_traced_by_an_example_and_its_labels_are_left_out():
    weight = tf.Variable(RNG.normal(size=(4, 3)).astype(np.float32))

    @tf.function
    def affine(zoom, area):
        return tf.matmul(zoom, weight) + area, area * 2

    x, y = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
    found = opened(affine, (x, y, np.zeros(2)))
    assert [(i.name, i.shape) for i in found.view.inputs] == [
        ("zoom", (None, 4)),
        ("area", (None, 3)),
    ]
    first, second = found.session.reference().run((x, y))
    np.testing.assert_allclose(first, x @ weight.numpy() + y, rtol=1e-5)
    np.testing.assert_allclose(second, y * 2)
    concrete = affine.get_concrete_function(
        tf.TensorSpec((None, 4)), tf.TensorSpec((None, 3))
    )
    again, _ = opened(concrete).session.reference().run((x, y))
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ModelError, match="input_signature, or calibration data"):
        opened(affine)


def test_a_model_that_was_never_called_is_built_by_calibration_data():
    plain = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(2)])
    with pytest.raises(ModelError, match="never been called"):
        opened(plain)
    x = np.ones((2, 5), np.float32)
    (answer,) = opened(plain, (x, np.zeros(2))).session.reference().run((x,))
    np.testing.assert_allclose(answer, np.asarray(plain(x)), rtol=1e-5)


def test_several_outputs_come_in_order_under_their_layers_names():
    x = keras.Input((4,), name="x")
    ends = [layers.Dense(n, name=f"end_{n}")(x) for n in range(1, 13)]
    found = opened(keras.Model(x, ends))
    assert {op.name for op in found.view.ops} == {f"end_{n}" for n in range(1, 13)}
    outputs = found.session.reference().run((np.ones((2, 4), np.float32),))
    assert [output.shape[1] for output in outputs] == list(range(1, 13))


def test_names_do_not_count_the_models_of_a_process():
    def built():
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.Dense(2, name="end")(x * 2 + x))

    first, second = (opened(built()) for _ in range(2))
    names = [op.name for op in first.view.ops]
    assert names == [op.name for op in second.view.ops]
    assert not any("functional" in name for name in names)


def test_recurrent_layers_and_16_bits_are_told_what_to_do():
    recurrent = keras.Sequential([keras.Input((6, 4)), layers.LSTM(3)])
    with pytest.raises(ModelError, match="unroll=True"):
        opened(recurrent)
    narrow = layers.Dense(2, dtype="mixed_float16", name="narrow")
    with pytest.raises(ModelError, match=r"'narrow'.*float32"):
        opened(keras.Sequential([keras.Input((4,)), narrow]))


def test_what_cannot_be_converted_is_said(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def words(text):
        return tf.strings.length(text)

    with pytest.raises(ModelError, match="TensorFlow cannot convert the model"):
        opened(words)
    path = tmp_path / "damaged.keras"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="Keras cannot load"):
        opened(path)
