"""Exact packed attention over the ranks of a group."""

from hsap_hf.attention.function import Call, attend
from hsap_hf.attention.kernels import Scores, all_kernels, choose_kernel, find_kernel
from hsap_hf.attention.tables import SlotTables, compile_tables

__all__ = ["Call", "Scores", "SlotTables", "all_kernels", "attend", "choose_kernel", "compile_tables", "find_kernel"]
