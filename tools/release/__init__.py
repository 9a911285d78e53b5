"""What a release needs, checked in one table: `python -m tools.release`, or `make release-check`."""
