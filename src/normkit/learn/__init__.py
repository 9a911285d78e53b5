"""`normkit learn`: batch normalization as one page that a reader plays with, in English and Chinese.

A section is two files in `sections/`: its text (.html, read by `markup`) and what moves (.js). `assets/` holds what all
share: the page's frame, its styles, a forward and a backward in plain JavaScript, plots, controls. `page` joins them;
`numbers` computes with normkit what the page shows; `runs` holds trainings that were made before, by `make learn-data`.
"""

from .command import learn

__all__ = ["learn"]
