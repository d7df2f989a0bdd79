"""What the names of a scheme stand for, and which do not go together."""

from __future__ import annotations

import sys
import tomllib
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.grammar import aliases
from octavo.core.opening.grammar.formats import USUAL, find_format, format_of
from octavo.core.opening.grammar.methods import (
    Method,
    all_methods,
    find_methods,
    method_names,
)
from octavo.core.opening.grammar.named import (
    NamedScheme,
    is_scheme,
    read_named,
    scheme_names,
)
from octavo.core.opening.grammar.written import Term, read
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from tests import tiny

HOST = PluginHost(third_party=False)


def named(text: str) -> NamedScheme:
    return read_named(text, HOST)


def kinds(choices: tuple[PartChoice, ...]) -> list[str]:
    return [str(choice) for choice in choices]


def stranger() -> PluginHost:
    """A host with the methods of tests/thirdparty/octavo_rounding."""
    assert str(tiny.HERE) in sys.path
    table = tomllib.loads(files("octavo").joinpath("plugins.toml").read_text())
    table["builtin"]["rounding"] = {"module": "octavo_rounding"}
    return PluginHost(table, third_party=False)


@pytest.mark.parametrize(
    ("text", "name", "mode", "weight", "source"),
    [
        ("int8-static", "int8-static", "static", "int8", "int8"),
        ("w8a8-static", "int8-static", "static", "int8", "int8"),
        ("W4A8-Dynamic", "w4a8-dynamic", "dynamic", "int4", "int8"),
        ("w8a16_static", "w8a16-static", "static", "int8", "int16"),
        ("w4a16", "int4-weight-only", "weight_only", "int4", ""),
        ("w3-weight-only", "int3-weight-only", "weight_only", "int3", ""),
        ("mxfp4-weight-only", "mxfp4-weight-only", "weight_only", "mxfp4", ""),
        ("fp8-dynamic", "fp8-dynamic", "dynamic", "fp8", "fp8"),
        ("fp8-e5m2-weight-only", "fp8-e5m2-weight-only", "weight_only", "fp8-e5m2", ""),
        ("bf16", "bfloat16", "cast", "bfloat16", ""),
        ("float", "float", "float", "", ""),
    ],
)
def test_formats(text: str, name: str, mode: str, weight: str, source: str) -> None:
    found = named(text).format
    assert found.name == name
    assert (found.mode, found.weight, found.input) == (mode, weight, source)


@pytest.mark.parametrize(
    ("alias", "format_name"),
    [
        ("gptq", "int4-weight-only"),
        ("awq", "int4-weight-only"),
        ("autoround", "int4-weight-only"),
        ("hqq", "int4-weight-only"),
        ("smoothquant", "int8-static"),
        ("spiq", "int8-static"),
        ("nf4", "nf4-weight-only"),
        ("qlora", "nf4-weight-only(scale_dtype=uint8)"),
        ("mxfp4", "mxfp4-weight-only"),
        ("dynamic", "int8-dynamic"),
        ("static", "int8-static"),
        ("fp16", "float16"),
        ("bf16", "bfloat16"),
        ("int4", "int4-weight-only"),
        ("int8", "int8-static"),
        ("outlier-suppression", "int8-static"),
        ("lqer", "int4-weight-only"),
    ],
)
def test_plain_names_stand_for_formats(alias: str, format_name: str) -> None:
    assert named(alias).format.name == format_name
    assert named(alias.upper().replace("-", "_")).format.name == format_name


def test_methods_do_what_they_are_called() -> None:
    found = named(
        "int8-static+smoothquant(alpha=0.75)+hadamard+gptq+mse+bias-correction"
    )
    assert kinds(found.transforms) == ["smoothquant(alpha=0.75)", "hadamard"]
    assert kinds(found.algorithms) == ["gptq"]
    assert str(found.calibrator) == "mse"
    assert found.bias_correction
    assert not found.recovery
    learned = named("int4-weight-only+gptq+autoround-block(iterations=3)+distill")
    assert kinds(learned.recovery) == [
        "reconstruction(iterations=3)",
        "distillation(half=False,rate=0,scale_rate=0.001)",
    ]


def test_distillation_keeps_the_codes_that_an_algorithm_chose_together() -> None:
    kept = named("int4-weight-only+gptq+distill(steps=7, rate=0.5)").recovery
    settings = dict(kept[0].options)
    assert settings["steps"] == 7
    assert settings["rate"] == 0.5
    assert settings["scale_rate"] == 0.001
    assert kinds(named("int4-weight-only+distill").recovery) == ["distillation"]
    assert kinds(named("int4-weight-only+rtn+distill").recovery) == ["distillation"]


def test_awq_is_both_searches_of_its_paper_and_each_by_itself() -> None:
    both = named("awq")
    assert kinds(both.transforms) == kinds(both.algorithms) == ["awq"]
    scales = named("int4-weight-only+transform:awq+gptq")
    assert (kinds(scales.transforms), kinds(scales.algorithms)) == (["awq"], ["gptq"])
    clip = named("int4-weight-only+algorithm:awq")
    assert (kinds(clip.transforms), kinds(clip.algorithms)) == ([], ["awq"])
    chained = named("awq+gptq")
    assert kinds(chained.algorithms) == ["awq", "gptq"]


def test_outlier_suppression_brings_its_clipping_where_ranges_are_calibrated() -> None:
    assert str(named("outlier-suppression").calibrator) == "token"
    assert str(named("int8-static+outlier_suppression+mse").calibrator) == "mse"
    assert str(named("int8-static+gamma-migration").calibrator) == "minmax"
    dynamic = named("int8-dynamic+outlier-suppression")
    assert "token" in dynamic.remarks[0]
    assert not named("outlier-suppression").remarks


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("int8-static", True),
        ("int8-dynamic", False),
        ("int8-dynamic+smoothquant", True),
        ("int8-dynamic+equalization", False),
        ("int4-weight-only+hadamard", False),
        ("hqq", False),
        ("gptq", True),
        ("eora", True),
        ("lqer", False),
        ("int4-weight-only+bias-correction", True),
        ("int4-weight-only+distill", True),
        ("float", False),
    ],
)
def test_it_is_known_what_needs_data(text: str, needs: bool) -> None:
    assert named(text).needs_data is needs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8-statik", "no scheme called 'int8-statik'; did you mean 'int8-static'"),
        ("gtpq", "no scheme called 'gtpq'; did you mean 'gptq'"),
        ("int8-static+smoothquand", "no method .*did you mean 'smoothquant'"),
        ("w8a8", "w8a8-static .* or w8a8-dynamic"),
        ("w4a8-weight-only", "contradicts itself"),
        ("w1a8-static", "2 to 8 bits, or 16"),
        ("w8a9-static", "2 to 8 bits, or 16"),
        ("mse", "stands for no format by itself; write one before it: int8-static"),
        ("bias-correction", "stands for no format by itself"),
        ("gptq+int8-static", "the format comes first, then methods: int8-static"),
        ("int8-static+int4", "int4 is a format, and a scheme has one"),
        ("int4-weight-only+smoothquant", "inputs stay in floating point"),
        ("int4-weight-only+spiq", "inputs stay in floating point"),
        ("int8-dynamic+mse", "finds ranges at each call"),
        ("int4-weight-only+mse", "finds ranges for no input"),
        ("bfloat16+gptq", "gptq has nothing to do"),
        ("float+bias-correction", "no rounding"),
        ("int8-static+distill", "distillation is for weight-only formats"),
        ("mxfp4+hqq", "hqq cannot round mxfp4, .* what can: .*gptq"),
        ("nf4+autoround", "autoround cannot round nf4"),
        ("gptq+gptq", "gptq stands twice"),
        ("int8-static+bias-correction+bias-correction", "stands twice"),
        ("int8-static+mse+entropy", "one calibrator"),
        ("int4-weight-only+distill+gptq", "write it behind gptq"),
        ("int4-weight-only+gptq+hqq", "hqq cannot go on .*write hqq before it"),
        ("int4-weight-only+awq+hqq", "leave one of them out"),
        ("int4-weight-only+kalibrator:mse", "did you mean 'calibrator'"),
        ("int4-weight-only+gptq(dampin=1)", "did you mean 'damping'"),
        ("int4-weight-only+gptq(damping=high)", "damping"),
        ("int4-weight-only+awq(gird=1)", "no setting 'gird'"),
        ("int4-weight-only+distill(stepz=1)", "did you mean 'steps'"),
        ("int4-weight-only(gruop=32)", "did you mean 'group'"),
        ("int4-weight-only(group=0)", "a number such as 32"),
        ("int4-weight-only(group=32,granularity=channel)", "give one of them"),
        ("int4-weight-only(symmetric=perhaps)", "symmetric"),
        ("int4-weight-only(input_granularity=token)", "no option"),
        ("bfloat16(group=32)", "bfloat16 has no options"),
        ("int8-static+bias-correction(a=1)", "no options"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        named(text)


def test_every_name_of_the_lists_can_be_read() -> None:
    for name in (*USUAL, *aliases.FORMATS, *scheme_names(HOST)):
        assert str(named(name)) == name
    for alias in aliases.FORMATS.values():
        named(alias.stands_for)
    for method in all_methods(HOST):
        fitting = {"static", "dynamic", "weight_only"} & method.modes
        assert method.card is None or method.card.can_round("int8")
        mode = sorted(fitting)[0].replace("_", "-")
        found = named(f"int8-{mode}+{method.name}")
        assert method.choice in {m.choice for m in found.methods}


def test_a_schemes_format_reads_back() -> None:
    schemes = []
    for name, card in HOST.adapters().items():
        capability = card.build(HOST.read("adapters", {"kind": name})).capability()
        for offers in capability.offers.values():
            schemes += [offer.scheme for offer in offers]
    assert len(schemes) > 100
    for scheme in schemes:
        found = find_format(Term(format_of(scheme)))
        assert found is not None
        assert found.choices("linear", [scheme]) == (scheme,)


def test_options_of_a_format_choose_among_what_is_offered() -> None:
    offered = [
        OpScheme(mode="weight_only", weight=QuantSpec(**spec))
        for spec in (
            {"dtype": "uint4", "symmetric": False, "granularity": "group:32"},
            {"dtype": "int4", "granularity": "group:32"},
            {"dtype": "int4", "granularity": "group:64"},
            {"dtype": "int8", "granularity": "channel"},
        )
    ]

    def chosen(text: str) -> list[str]:
        return [str(s.weight) for s in named(text).choices("linear", offered)]

    assert len(chosen("int4-weight-only")) == 3
    assert chosen("int4-weight-only(group=64)") == ["int4/group:64"]
    assert chosen("int4(symmetric=false)") == ["uint4-asym/group:32"]
    assert chosen("int4(dtype=int4)") == ["int4/group:32", "int4/group:64"]
    assert chosen("w8a16(reduce_range=true)") == ["int8/channel-7bit"]


def test_an_op_takes_the_chain_the_calibrator_and_the_correction() -> None:
    w8 = QuantSpec(dtype="int8", granularity="channel")
    static = OpScheme(mode="static", weight=w8, input=QuantSpec(dtype="uint8"))
    (made,) = named("int8-static+rtn+gptq+mse+bias-correction").choices(
        "linear", [static]
    )
    assert kinds(made.algorithms) == ["rtn", "gptq(bias_correction=True)"]
    assert str(made.calibrator) == "mse"
    # A sum has no weight to round; a table no input whose range is found.
    plain = OpScheme(mode="static", input=QuantSpec(dtype="uint8"))
    (added,) = named("w4a8-static+gptq+mse").choices("add", [plain])
    assert (kinds(added.algorithms), str(added.calibrator)) == (["rtn"], "mse")
    table = OpScheme(mode="weight_only", weight=w8)
    assert named("int8-static").choices("embedding", [table]) == (table,)
    assert named("int8-static").choices("linear", [table]) == ()
    assert named("fp8-dynamic").choices("embedding", [table]) == ()


WORDS = (*scheme_names(HOST), *method_names(HOST), "w4a8", "nonsense", "", "gptq(")


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4))
def test_any_names_are_a_scheme_or_a_typed_error(words: list[str]) -> None:
    text = "+".join(words)
    try:
        found = named(text)
    except ConfigError:
        return
    assert read_named(str(found), HOST) == found
    # Nothing that was written is lost.
    asked = {m.choice.kind for word in words for m in methods_of(word)}
    done = {m.choice.kind for m in found.methods}
    assert asked == done


def methods_of(word: str) -> tuple[Method, ...]:
    """The methods of one word, looked up by itself."""
    alias = aliases.METHODS.get(word)
    (term,) = read(alias.stands_for if alias else word).terms
    return find_methods(term, HOST)


def test_strangers_methods_join_by_their_cards() -> None:
    host = stranger()
    found = read_named("int8-static+round-down(by=0.25)+wide+bias-correction", host)
    assert kinds(found.algorithms) == ["Round_Down(by=0.25)"]
    assert str(found.calibrator) == "wide"
    assert read_named("ROUND_DOWN", host).format.name == "int8-dynamic"
    assert "round-down" in scheme_names(host)
    for text, message in (
        ("int8-static+bare", "bare is for weight-only formats"),
        ("int8-weight-only+bare+bias-correction", "no setting bias_correction"),
        ("bare", "stands for no format"),
        ("int8-static+round-dwon", "did you mean 'round-down'"),
        ("int8-static+round-down(bye=1)", "did you mean 'by'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_named(text, host)
    with pytest.raises(ConfigError, match="no method called 'round-down'"):
        named("int8-static+round-down")


def test_a_text_that_begins_as_a_scheme_is_one() -> None:
    for text in ("int8-static", "w8a8", "gptq+nonsense", "GPTQ(", "algorithm:awq"):
        assert is_scheme(text, HOST) is (text != "GPTQ(")
    for text in ("model.json", "./gptq", "runs/gptq", "some-folder", ""):
        assert not is_scheme(text, HOST)
