"""Defines the names that a CRV run's rows, agents and reports share."""

LABELS = ("easy", "medium", "hard")  # too terse for the student, fitting, too involved
CRITICS = ("words", "grades")  # what a critic says of a rationale: one of LABELS, or two grades
ROLES = ("critic", "rethinker", "verifier", "student", "injector")
# How an attempt came about: the teacher's rationale as it is, steps added, simplified, or a mistake mended.
ACTIONS = ("keep", "extend", "simplify", "repair")
# What became of an attempt: right; no usable reply; the rule check or the verifier said no; the verifier said nothing.
VERDICTS = ("right", "malformed", "wrong answer", "rejected", "no verdict")
INCORRECT_SOURCES = ("teacher", "student", "injected")
