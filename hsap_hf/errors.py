"""Every error this package raises on purpose, one sentence each."""


class HsapError(Exception):
    """Base of all errors of hsap_hf."""


class ConfigError(HsapError, ValueError):
    """The configuration cannot work; the text lists every problem found and a way out."""


class UnsupportedModelError(HsapError):
    """The model has a layer or an option that HSAP cannot compute exactly."""


class PackError(HsapError, ValueError):
    """A batch cannot be read as whole documents."""


class PackTooLargeError(PackError):
    """A pack would deal more tokens to a rank than `max_tokens_per_rank`."""


class PlanError(HsapError, ValueError):
    """A list of document lengths cannot be planned."""


class RankMismatchError(HsapError, RuntimeError):
    """Ranks disagree, or one of them failed; raised on every rank with the same text."""


class CollectiveTimeoutError(HsapError, TimeoutError):
    """A rank did not arrive in time."""


class NonFiniteError(HsapError, ArithmeticError):
    """A loss or gradient is not finite."""
