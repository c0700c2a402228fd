"""A fixture for other people's tests: `matches_reference("rms_norm", my_rms_norm)`."""

from collections.abc import Callable

import pytest


@pytest.fixture
def matches_reference() -> Callable[..., None]:
    """`gemma_np.testing.assert_matches_reference`, without an import."""
    from gemma_np.testing import assert_matches_reference

    return assert_matches_reference
