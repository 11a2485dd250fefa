"""The support matrix: what it calls refused is refused with its message, what it calls working starts."""

from __future__ import annotations

import itertools

import pytest

from docs.site import support
from smallr.core.errors import UserError
from tests.docs.starting import start

PAIRS = [pair for pair in itertools.combinations(support.FEATURES, 2) if not support.exclusive(*pair)]


def features(a: str, b: str) -> tuple[str, ...]:
    """An objective, and what it is combined with."""
    options = [key for key in (a, b) if key in support.OPTIONS]
    objectives = [key for key in (a, b) if key in support.OBJECTIVES] or [support.base_of(*options)]
    return (*objectives, *options)


@pytest.mark.parametrize("a", support.FEATURES)
def test_each_pair_works_or_is_refused_as_the_matrix_says(a):
    for b in [b for first, b in PAIRS if first == a]:
        names = features(a, b)
        refusal = support.REFUSED.get(frozenset((a, b)))
        if refusal is None:
            start(support.run_with(*names), set(names))
        else:
            with pytest.raises(UserError) as error:
                start(support.run_with(*names), set(names))
            assert refusal[1] in str(error.value), f"{a} with {b}"


def test_the_matrix_has_no_refusals_that_nothing_provokes():
    assert set(support.REFUSED) <= {frozenset(pair) for pair in PAIRS}


def test_the_page_names_each_reason():
    page = support.page()
    assert all(f". {reason}\n" in page for reason, _ in support.REFUSED.values())
    assert page.count("| ✓ ") > page.count("| 1 ") > 0
