"""The integration with Transformers: enable, deal, attend, undo."""

from hsap_hf.hf.enable import HsapHandle, causal_model, disable_hsap, enable_hsap
from hsap_hf.hf.support import ModelReport, check_model_support
from hsap_hf.hf.trainer import prepare_trainer

__all__ = [
    "HsapHandle",
    "ModelReport",
    "causal_model",
    "check_model_support",
    "disable_hsap",
    "enable_hsap",
    "prepare_trainer",
]
