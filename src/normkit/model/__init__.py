"""The floor under surgery and statistics: what looks at a model, changes it, and gives it back as it was.

dataflow, recorder           what feeds what, seen in one run of the model
families, probe, select      which normalization a layer is, and which layers an operation is about
swap                         copying a model, one module in another's place
restore, kept, kept_tensor   giving a model back as it was; ambient: what surrounds a run
transaction, interrupts      changing it wholly or not at all, whatever arrives meanwhile
table                        what was done, shown
"""
