"""Pure planning: integers in, a frozen plan out; no torch, no clock, no environment."""

from hsap_hf.planner.exchange import Send, fetches, sends
from hsap_hf.planner.plan import Fetch, Piece, Plan, compile_plan

__all__ = ["Fetch", "Piece", "Plan", "Send", "compile_plan", "fetches", "sends"]
