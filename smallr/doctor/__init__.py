"""Measures a machine: what `smallr doctor` runs. One module a question; `checkup` asks all of them."""
