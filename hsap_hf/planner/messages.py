"""An exchange in several messages: attention on the keys of one while the next travels."""

COUNTS = 1, 2, 4
"""How many messages are looked at. Each costs a launch, and rows that meet every message's keys one by one."""


def wait(own: float, rest: float, travel: float, message: float, count: int) -> float:
    """How long one direction of a slot's attention stands still for its exchange, in the unit of its arguments.

    own, rest: attention that needs no keys of others, and that which does; travel: a single message with all keys;
    message: one with next to none. Forward attends to what is its own, then to each message's keys as they come;
    backward is its mirror image, gradients leave message by message, and what is its own comes last. So in both either
    one message or all of them are waited for, less what runs beside.
    """
    whole = travel + message * (count - 1)
    return max(0.0, whole / count - own, whole - own - rest * (count - 1) / count)
