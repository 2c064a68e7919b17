"""HSAP for Hugging Face: packs of long and short documents, trained exactly, over many ranks."""

from typing import TYPE_CHECKING, Any

from hsap_hf.config import HsapPlugin

if TYPE_CHECKING:
    from hsap_hf.data import HsapDataCollator, PackedDataset
    from hsap_hf.hf import check_model_support, disable_hsap, enable_hsap, prepare_trainer

__all__ = [
    "HsapDataCollator",
    "HsapPlugin",
    "PackedDataset",
    "__version__",
    "check_model_support",
    "disable_hsap",
    "enable_hsap",
    "prepare_trainer",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load torch and transformers when something needs them: `hsap plan` does not."""
    if name in ("HsapDataCollator", "PackedDataset"):
        from hsap_hf import data

        return getattr(data, name)
    if name in ("check_model_support", "disable_hsap", "enable_hsap", "prepare_trainer"):
        from hsap_hf import hf

        return getattr(hf, name)
    raise AttributeError(f"module 'hsap_hf' has no attribute {name!r}")
