"""What all tests of the evaluation share."""

import pytest

from radvision_utils.evaluation import table


@pytest.fixture(scope="session", autouse=True)
def without_java():
    """METEOR's Java takes seconds to start; one test in test_text_metrics.py starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "meteor_scores", lambda sets: [None] * len(sets))
        yield
