"""Makes the built-in teacher data: arithmetic word problems with right, unfitting and wrong rationales.

Preference rows cover the three gaps of CogPO, one pair each per question:

  small   the fitted rationale over a right one that is too terse or too involved
  medium  that right but unfitting one over one with a slip
  large   the fitted one over another with a slip

Rationale rows hold question, fitted rationale and answer; teacher rows the same with rationales that fit the reader in two
cases of ten and are wrong in one. All of it is a function of the seed.
"""

from smallr.data.builtin.dataset import (
    VERSION,
    build,
    ensure_built,
    make_questions,
    preference_rows,
    rationale_rows,
    teacher_rows,
)

__all__ = ["VERSION", "build", "ensure_built", "make_questions", "preference_rows", "rationale_rows", "teacher_rows"]
