"""Every weight has a row, and the rows are held against a count that does not come from them."""

import json
import warnings

import pytest

from octavo.core.errors import AdapterFault, OctavoError
from octavo.core.values.coverage import (
    Coverage,
    CoverageRow,
    account,
    difference,
    unclaimed_of,
)
from octavo.core.values.graph import HeldWeight, ModelView, Op, Weight
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec

INT8 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")
)
INT4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="channel")
)
ON_INPUTS = OpScheme(mode="dynamic", input=QuantSpec(dtype="uint8", symmetric=False))


def linear(
    name: str, weight: str, shape: tuple[int, ...] = (4, 8), **changes: object
) -> Op:
    return Op(
        name,
        "linear",
        (f"{name}:in",),
        (f"{name}:out",),
        Weight(weight, shape),
        **changes,
    )


def told(
    ops: tuple[Op, ...],
    schemes: dict[str, OpScheme],
    unclaimed: tuple[HeldWeight, ...] = (),
    census: tuple[HeldWeight, ...] | None = None,
) -> Coverage:
    ledger = {name: Applied(scheme, scheme) for name, scheme in schemes.items()}
    return account(
        ModelView(ops, unclaimed=unclaimed),
        ledger,
        lambda op: f"no kernel for {op.type}",
        census,
    )


def test_quantized_and_kept_make_the_total() -> None:
    ops = (linear("a", "a.weight"), linear("b", "b.weight", (2, 3)))
    loose = HeldWeight("scale", (5, 5), reason="it is multiplied elsewhere")
    found = told(ops, {"a": INT8}, (loose,))
    assert (found.total, found.quantized, found.kept) == (32 + 6 + 25, 32, 6 + 25)
    assert found.rows == (
        CoverageRow("a.weight", (4, 8), 32, "a", 8),
        CoverageRow("b.weight", (2, 3), 6, "b", 32, "no kernel for linear"),
        CoverageRow("scale", (5, 5), 25, None, 32, "it is multiplied elsewhere"),
    )


def test_a_tied_weight_counts_once_and_is_kept_while_one_of_its_ops_is_float() -> None:
    ops = (linear("embed", "table"), linear("head", "table"))
    both = told(ops, {"embed": INT8, "head": INT4})
    assert [(row.elements, row.bits, row.reason) for row in both.rows] == [(32, 8, "")]
    one = told(ops, {"head": INT8})
    assert (one.total, one.kept) == (32, 32)
    assert "'head'" in one.rows[0].reason
    assert one.rows[0].bits == 32


def test_vectors_and_integers_are_no_weights_and_every_weight_of_a_recurrent_layer_is() -> (
    None
):
    lstm = Op(
        "rnn",
        "lstm",
        weight=Weight("w", (8, 2)),
        further=(Weight("r", (8, 3)), Weight("p", (8,))),
    )
    codes = Op("old", "linear", weight=Weight("codes", (9, 9), "int8"))
    assert told((lstm, codes), {"rnn": INT8}).total == 16 + 24


def test_half_precision_keeps_its_sixteen_bits() -> None:
    op = Op("a", "linear", weight=Weight("w", (2, 2), "bfloat16"))
    assert told((op,), {}).rows[0].bits == 16


def test_a_scheme_for_activations_alone_leaves_the_weight_float() -> None:
    found = told((linear("a", "w"),), {"a": ON_INPUTS})
    assert found.kept == 32
    assert "activations" in found.rows[0].reason


def test_a_weight_that_something_else_reads_too_is_kept() -> None:
    found = told(
        (linear("a", "w"),),
        {"a": INT8},
        (HeldWeight("w", (4, 8), reason="a gather reads it too"),),
    )
    assert (found.total, found.kept) == (32, 32)
    assert "a gather reads it too" in found.rows[0].reason


def test_a_computed_weight_counts_as_what_it_is_made_of() -> None:
    """Two layouts of one tensor, and a weight that is computed from two."""
    census = (HeldWeight("w", (4, 8)), HeldWeight("g", (4, 1)), HeldWeight("v", (4, 8)))
    ops = (
        Op("plain", "linear", weight=Weight("w", (4, 8))),
        Op("turned", "linear", weight=Weight("w.T", (8, 4), made_of=("w",))),
        Op(
            "normed",
            "linear",
            weight=Weight("normed.weight", (4, 8), made_of=("g", "v")),
        ),
    )
    found = told(ops, {"plain": INT8, "turned": INT8, "normed": INT8}, census=census)
    assert [(row.weight, row.elements) for row in found.rows] == [
        ("w", 32),
        ("g", 4),
        ("v", 32),
    ]
    assert found.kept == 0
    assert unclaimed_of(census, ops) == ()
    assert told(ops, {"plain": INT8, "normed": INT8}, census=census).kept == 32


def test_what_the_census_has_and_the_ops_do_not_is_a_fault() -> None:
    census = (HeldWeight("a.weight", (4, 8)), HeldWeight("forgotten", (3, 3)))
    with pytest.warns(AdapterFault, match=r"32.*41.*forgotten"):
        told((linear("a", "a.weight"),), {"a": INT8}, census=census)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterFault)
        with pytest.raises(OctavoError, match="forgotten"):
            told((linear("a", "a.weight"),), {"a": INT8}, census=census)
    assert difference(told((linear("a", "a.weight"),), {}), census[:1]) == ""


def test_a_layer_that_is_counted_twice_is_a_fault() -> None:
    census = (HeldWeight("w", (4, 8)),)
    with pytest.warns(AdapterFault, match="copy"):
        told((linear("a", "w"), linear("b", "copy")), {}, census=census)


def test_it_comes_back_from_json() -> None:
    found = told((linear("a", "a.weight"), linear("b", "b.weight")), {"a": INT4})
    raw = json.loads(json.dumps(found.to_json()))
    assert (raw["total"], raw["quantized"], raw["kept"]) == (64, 32, 32)
    assert Coverage.from_json(raw) == found
    assert Coverage.from_json({}) == Coverage()


@pytest.mark.parametrize(
    "rows",
    [
        [["w", [2, 2], 4, None, 8]],
        [["w", 7, 4, None, 8, ""]],
        [["w", [2, 2], "x", None, 8, ""]],
        [["w", [2], float("inf"), None, 8, ""]],
        5,
        [None],
    ],
)
def test_a_damaged_record_is_a_typed_error(rows: object) -> None:
    with pytest.raises(OctavoError, match="save the result again"):
        Coverage.from_json({"rows": rows})


def test_the_summary_names_the_largest_reasons_first_and_stays_one_line() -> None:
    ops = tuple(linear(f"layer{i}", f"w{i}", (10, 10)) for i in range(200))
    loose = tuple(
        HeldWeight(f"p{i}", (100, 100 * (i + 1)), reason=f"reason {i}")
        for i in range(6)
    )
    found = told(ops, dict.fromkeys((op.name for op in ops[:100]), INT8), loose)
    kept, total = (
        100 * 100 + sum(10_000 * (i + 1) for i in range(6)),
        200 * 100 + 210_000,
    )
    text = found.summary()
    assert text.startswith(
        f"{kept:,} of {total:,} weights (95.7 %) stay float: 60,000 in p5 (reason 5); 50,000 in p4"
    )
    assert "\n" not in text
    assert len(text) < 300
    assert str(found) == text
    assert len(repr(found).splitlines()) <= 5


def test_a_whole_or_an_empty_model_has_a_summary_too() -> None:
    assert (
        told((linear("a", "w"),), {"a": INT8}).summary()
        == "all 32 weights are quantized"
    )
    assert "no weights" in told((Op("r", "relu"),), {}).summary()


def test_the_reason_of_the_ledger_comes_first() -> None:
    ledger = {"a": Applied(INT8, FLOAT, "kernel", "its width is odd")}
    found = account(
        ModelView((linear("a", "w"),)), ledger, lambda op: "never asked", None
    )
    assert found.rows[0].reason == "its width is odd"


def test_unclaimed_weights_do_not_change_the_views_digest() -> None:
    ops = (linear("a", "w"),)
    assert (
        ModelView(ops).digest
        == ModelView(ops, unclaimed=(HeldWeight("p", (2, 2), reason="r"),)).digest
    )
