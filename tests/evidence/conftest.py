"""What all tests of the evidence room share."""

from tests.evaluation.conftest import without_java  # noqa: F401
