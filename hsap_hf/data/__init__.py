"""Feed the ranks: packs of whole documents, a dataset that deals their parts, a collator that joins them."""

from hsap_hf.data.collator import HsapDataCollator
from hsap_hf.data.dataset import PackedDataset
from hsap_hf.data.packing import Span, deal_parts, order_packs, pack_documents

__all__ = ["HsapDataCollator", "PackedDataset", "Span", "deal_parts", "order_packs", "pack_documents"]
