"""Names of the agents of decomposition."""

QUESTIONER, ANSWERER, JUDGE, SOLVER = "questioner", "answerer", "judge", "solver"
TEACHERS = (QUESTIONER, ANSWERER, JUDGE)  # of generation, in the order in which they are asked
