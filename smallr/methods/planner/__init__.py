"""Picks a plan out of several: a generator proposes, a discriminator scores, a planner chooses."""
