"""The floor under surgery and statistics: what looks at a model, changes it, and gives it back as it was.

dataflow, recorder      what feeds what, seen in one run of the model
families, select        which normalization a layer is, and which layers an operation is about
swap                    copying a model, one module in another's place
"""
