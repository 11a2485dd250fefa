"""What every annotation job needs: agents and strict readings of their replies, usage, a circuit breaker, row workers."""
