"""Names the two orders of rationale and answer, and the texts that rows are written in."""

ORDERS = ("answer_first", "rationale_first")  # a row's number of its order is the index here
BOTH = "both"  # of a row, one example in each order
FORMATS = {
    "answer_first": "{question} ### {answer} --> {rationale}",
    "rationale_first": "{question} ### {rationale} --> {answer}",
}
PROMPT = "{question} ###"  # of choice rows
