"""How long attention stands still for an exchange of several messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsap_hf.planner.messages import wait

times = st.floats(0.0, 100.0)


@given(own=times, rest=times, travel=times, message=times, count=st.integers(1, 6))
def test_waiting_is_what_the_order_of_events_gives(
    own: float, rest: float, travel: float, message: float, count: int
) -> None:
    """Event by event, in both directions; `travel` is one message with all keys, `message` one with none."""
    message = min(message, travel)
    step = message + (travel - message) / count
    forward = own
    for number in range(1, count + 1):
        forward = max(forward, number * step) + rest / count
    backward = home = 0.0
    for _ in range(count):
        backward += rest / count
        home = max(home, backward) + step
    for end in (forward, max(backward + own, home)):
        assert end - own - rest == pytest.approx(wait(own, rest, travel, message, count), abs=1e-9)


def test_two_messages_hide_the_half_that_attention_to_the_first_takes() -> None:
    assert wait(0.0, 10.0, 10.0, 0.0, 1) == 10.0
    assert wait(0.0, 10.0, 10.0, 0.0, 2) == 5.0
    assert wait(5.0, 10.0, 10.0, 0.0, 2) == 0.0
    assert wait(0.0, 10.0, 10.0, 2.0, 2) == 7.0  # (8 + 4) / 2 = 6 for the first, and another 1 behind it
