"""docs/scaling.md: what synchronised batch norm costs over many ranks, measured at the small end, modelled beyond."""
