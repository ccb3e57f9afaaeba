"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Machines differ by more than a test's own time, and none of these tests is about time.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")
