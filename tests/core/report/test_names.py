"""Short names of schemes: true, and distinct wherever several stand in one table."""

from __future__ import annotations

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.report.names import distinct, legend, ran, short
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec

CHANNEL = QuantSpec(dtype="int8", granularity="channel")
UNSIGNED = QuantSpec(dtype="uint8", symmetric=False)
STATIC = OpScheme(mode="static", weight=CHANNEL, input=UNSIGNED)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (FLOAT, "float"),
        (STATIC, "w8a8 per channel"),
        (STATIC.variant(mode="dynamic"), "w8a8 dynamic per channel"),
        (STATIC.variant(input=QuantSpec(dtype="int8")), "w8a8 per channel, int8 input"),
        (STATIC.variant(algorithm=PartChoice(kind="gptq")), "w8a8 per channel, gptq"),
        (
            OpScheme(
                mode="weight_only",
                weight=QuantSpec(dtype="int4", granularity="group:32"),
            ),
            "w4 g32",
        ),
        (
            OpScheme(
                mode="weight_only",
                weight=QuantSpec(
                    dtype="nf4", granularity="group:64", scale_dtype="uint8"
                ),
            ),
            "nf4 weight g64, scales in uint8",
        ),
        (OpScheme(mode="cast", weight=QuantSpec(dtype="bfloat16")), "bf16"),
        (OpScheme(mode="static", input=UNSIGNED, output=UNSIGNED), "a8"),
    ],
)
def test_a_name_says_what_matters(scheme: OpScheme, name: str) -> None:
    assert short(scheme) == name


def test_all_schemes_of_all_backends_have_names_of_their_own() -> None:
    host = PluginHost(third_party=False)
    schemes = {}
    for name, card in host.adapters().items():
        capability = card.build(host.read("adapters", {"kind": name})).capability()
        for offers in capability.offers.values():
            schemes |= {offer.scheme: None for offer in offers}
    assert len(schemes) > 50
    names = distinct(schemes)
    assert len(set(names.values())) == len(schemes)
    assert max(map(len, names.values())) <= 60


def test_details_that_no_name_tells_still_tell_two_schemes_apart() -> None:
    # A dynamic scheme's calibrator decides nothing, and is in no string of it.
    other = STATIC.variant(mode="dynamic", calibrator=PartChoice(kind="entropy"))
    names = distinct([STATIC.variant(mode="dynamic"), other, FLOAT])
    assert len(set(names.values())) == 3


def test_a_legend_writes_out_what_is_short_and_leaves_float_out() -> None:
    assert legend([STATIC, FLOAT, STATIC]) == [("w8a8 per channel", str(STATIC))]


def test_an_op_that_carries_codes_is_not_float() -> None:
    line = Applied(FLOAT, FLOAT, "codes", "it carries the codes of its input")
    assert ran(line) == "carries codes"
    assert ran(Applied(FLOAT, FLOAT)) == "float"


def test_old_records_say_it_in_words() -> None:
    row = ["kernel", "it carries the codes of its input", None]
    assert Applied.from_row(FLOAT, row).carries_codes
    assert not Applied.from_row(FLOAT, ["kernel", "", None]).carries_codes
