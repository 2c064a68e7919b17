"""Pure planning: integers in, a frozen plan out; no torch, no clock, no environment."""

from hsap_hf.planner.exchange import Layout, Send, fetches, layouts, sends
from hsap_hf.planner.plan import Fetch, Piece, Plan, compile_plan

__all__ = ["Fetch", "Layout", "Piece", "Plan", "Send", "compile_plan", "fetches", "layouts", "sends"]
