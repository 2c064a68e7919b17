"""What a placement gives every slot: comparable between any two placements of one pack."""

from dataclasses import dataclass, replace

from hsap_hf.planner.traffic import Traffic


@dataclass(frozen=True)
class Load:
    """Tokens, work and traffic of every slot."""

    tokens: tuple[int, ...]
    work: tuple[int, ...]
    """Query-key pairs."""
    own: tuple[int, ...]
    """Those that need no keys of other slots: they are computed while keys travel."""
    traffic: Traffic

    def all_hides(self) -> "Load":
        """The same if all attention could be computed while keys travel."""
        return replace(self, own=self.work)
