"""How often the doctor is right: healthy nets, the same nets with planted faults, and another tool beside it.

nets, sources    what is healthy, and how each net was made
faults           how each rule's fault is planted
peer             what torch-audit says of the same models
run              the table's numbers: `python -m tools.precision` writes docs/data/doctor_precision.json
page             the tables of docs/doctor.md

The list in nets.ASIDE was fixed before the first run and before any rule was changed after one.
"""
