"""Bounds that are searched, against bounds that are compared one by one."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mined_batches import OPTIONS, apart_or_equal, batches, run

from facemetric.mining import mine as engine
from facemetric.mining.kernels import ladder


@pytest.mark.parametrize("many", [1, 2, 5, 8])
@settings(max_examples=40, deadline=None)
@given(data=batches(), options=OPTIONS, whole=st.booleans())
def test_bounds_searched_equal_bounds_compared(many, data, options, whole):
    """Anchors with few and with many positives in one batch, ties with a duplicate among them."""
    emb, labels = data
    assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    anchors = None if whole else slice(0, len(emb) // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SMALL_ROWS", 0)
        compared, grad_compared = run("all", emb, labels, anchors=anchors, **options)
        patch.setattr(ladder, "MANY_POSITIVES", many)
        patch.setattr(ladder, "SEARCH_BLOCK", 30)
        searched, grad = run("all", emb, labels, anchors=anchors, **options)
    assert searched.active == compared.active
    assert searched.loss.item() == pytest.approx(compared.loss.item(), abs=1e-13)
    torch.testing.assert_close(grad, grad_compared, atol=1e-13, rtol=0)
