"""A fuzzer of normkit's public surface: `make fuzz SECONDS=600 SEED=0`, or `python -m tools.fuzz`.

A case is plain data (`case.py`), drawn from (seed, number) alone (`generate.py`). It is rendered as the text of a small
program (`program.py`) made of the helpers of `values.py` and `tricks.py`; the very text that runs is what a finding's
script holds (`script.py`). A child process (`child.py`) runs the program with normkit, then with torch, and computes
the truth in float64 (`truth.py`); `judge.py` compares. What fails is shrunk (`shrink.py`) and kept once per kind
(`findings.py`); what fails only after other cases is replayed (`replay.py`).

Rules: only public names of normkit are called, so that a rewrite of what lies beneath needs no change here; torch
decides what raises, float64 decides what is right; nothing depends on time or on the order of cases.
"""
