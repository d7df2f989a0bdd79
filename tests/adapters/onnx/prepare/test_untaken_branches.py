"""A branch that no calibration batch took stays float under static schemes, and its ledger lines
say so."""

import numpy as np
import onnxruntime as ort
import pytest

import octavo
from tests.adapters.onnx.observe.test_bodies import (
    branch_feeds,
    branching,
    cosine,
    loop_feeds,
    looping,
)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_branch_that_calibration_took_alone_has_ranges(sign: int) -> None:
    proto, feeds = branching(), branch_feeds()
    taken = [feed for feed in feeds if np.sign(feed["s"]) == sign]
    result = octavo.quantize_model(proto, "int8-static", calibration=taken)
    untaken = "then_branch" if sign < 0 else "else_branch"
    for name, line in result.ledger.items():
        # The product that reads the model's own input has a range, whichever branch it stands in.
        if f"outer_if/{untaken}/" in name and name != f"outer_if/{untaken}/MatMul":
            assert line.applied.is_float, name
            assert "calibration never reached it" in line.reason
    assert result.coverage.kept > 0
    assert "calibration never reached it" in result.coverage.summary()
    session = ort.InferenceSession(proto.SerializeToString())
    for feed in feeds:
        (expected,) = session.run(None, feed)
        assert cosine(expected, result.model(feed)) > 0.98


def test_a_loop_without_a_step_has_no_ranges() -> None:
    feeds = [{**feed, "times": np.array(0)} for feed in loop_feeds("Loop")]
    result = octavo.quantize_model(looping("Loop"), "int8-static", calibration=feeds)
    assert "calibration never reached it" in result.ledger["loop/body/third"].reason
    assert not result.ledger["before"].applied.is_float
    (y, everything) = result.model(loop_feeds("Loop")[-1])
    assert y.shape == (2, 6)
    assert len(everything) == 4
