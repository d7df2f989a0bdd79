"""A few dozen mutated models, results, histories and settings: each works, or ends in an error of
octavo's own."""

from benchmarks.fuzz import FAMILIES, fuzz

CASES = 60


def test_nothing_but_typed_errors_comes_of_mutated_inputs() -> None:
    found = fuzz(600, seed=14, cases=CASES)
    assert not found.controls, "these fail with nothing changed, so they test nothing"
    assert not found.bad, found.first
    assert found.total("passed", "typed") == CASES
    # Mutations that nothing notices, or that nothing survives, would both be a fuzzer that tests
    # little.
    assert found.total("passed") > CASES // 10
    assert found.total("typed") > CASES // 3
    assert {family for family, _ in found.outcomes} == set(FAMILIES)


def test_an_exception_of_another_kind_is_found_and_can_be_drawn_again() -> None:
    """The judge itself: what is no OctavoError counts as bare, with its place, and a crash is no
    end."""
    import random
    from pathlib import Path

    from benchmarks._fuzzing import child, families

    def faulty(bench: families.Bench) -> None:
        raise KeyError(bench.random.randrange(10**6))

    families.FAMILIES["faulty"] = faulty  # type: ignore[index]
    try:
        first, again = (
            child.run("faulty", random.Random("3/4"), Path()) for _ in range(2)
        )
    finally:
        del families.FAMILIES["faulty"]  # type: ignore[attr-defined]
    assert first["outcome"] == "bare"
    assert first["kind"].startswith("KeyError")
    assert first["detail"].splitlines()[-1] == again["detail"].splitlines()[-1]
