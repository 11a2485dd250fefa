"""Holds what every annotation job needs: agents, strict readings of replies, usage, a circuit breaker, row workers."""
