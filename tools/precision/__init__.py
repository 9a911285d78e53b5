"""How often the doctor is right: healthy nets, the same nets with planted faults, and another tool beside it.

nets, made, sources  what is healthy, and how each net was made
faults               how each rule's fault is planted
peer                 what torch-audit says of the same models
plan, run            the table's numbers: `python -m tools.precision` writes docs/data/doctor_precision.json
plan_more, run_more  the second part: harder nets, faults by size (grades), two at once, stories of whole models
page, page_more      the tables of docs/doctor.md

The lists in aside were fixed before the first run of each part and before any rule was changed after one.
"""
