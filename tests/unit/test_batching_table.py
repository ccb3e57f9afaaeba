"""The table of batching (tests/support/batching.py) against the schema: a new key has to be tried or excused."""

from __future__ import annotations

from score_openrlhf.config.host_args import host_args
from score_openrlhf.config.keys import keys, set_value
from score_openrlhf.config.schema import Config
from tests.support.batching import ELSEWHERE, MASKED, NUM_ROWS, WAYS, batching_keys


def test_every_batching_key_is_in_a_way_or_excused():
    tried = {key for way in WAYS.values() for key in way}
    assert tried | set(ELSEWHERE) >= batching_keys()
    assert not tried & set(ELSEWHERE)
    assert set(ELSEWHERE) <= set(keys())


def test_every_switch_among_them_stands_both_ways():
    """A boolean or a choice that every way sets alike would not be a way of its own."""
    for key in {key for way in WAYS.values() for key in way}:
        default = keys()[key].default
        if isinstance(default, bool):
            assert {way.get(key, default) for way in WAYS.values()} == {True, False}, key
        choices = keys()[key].limits.get("choices")
        if choices:
            assert {way.get(key, default) for way in WAYS.values()} == set(choices), key


def test_dynamic_batches_are_packed_whether_asked_or_not():
    """So the table needs no dynamic way without packing."""
    made = []
    for packing in (False, True):
        cfg = Config(model_path="m")
        set_value(cfg, "train.dynamic_batch_enable", True)
        set_value(cfg, "ds.packing_samples", packing)
        made.append(host_args(cfg, "solver", checkpoint_path="c", model_path="m"))
    assert made[0] == made[1] and made[0].ds.packing_samples


def test_the_masks_leave_what_their_names_say():
    assert {name: NUM_ROWS - len(failed) for name, failed in MASKED.items()} == {
        "none": NUM_ROWS, "some": 13, "a window and a rank": 1, "all": 0,
    }  # fmt: skip
