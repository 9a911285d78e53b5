"""The docs as a site: `python -m tools.site [--out build/site]`, or `make site`."""
