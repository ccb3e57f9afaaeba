"""The tiny models, problems and reward of tests/stack, for runs on several hosts."""

from tests.stack.conftest import bench  # noqa: F401  (a fixture)
